"""Genie: accelerators of other machines as devices of this PyTorch program.

    import genie, torch
    genie.connect("embedded:")                    # or "unix:/path.sock", "tcp://host:port"
    x = torch.randn(3, 4, device="remote_accelerator:0")
    print((x @ x.t()).relu().cpu())

Operations on the device are captured and run on a node when a value is needed. Everything else is PyTorch.
Without connect() the first use of the device connects to $GENIE_CLUSTER, else to "embedded:". A session lasts until its close()
or the end of the process. docs/python.md says more.
"""

import torch  # first: it brings the libraries that genie_native is linked to

from genie_native import (
    Description,
    Error,
    Graph,
    GraphNode,
    GraphValue,
    OpTime,
    Session,
    Stats,
    connect,
    describe,
    _set_source_finder,
    graph,
    is_capturing,
    is_checking_shapes,
    is_lazy,
    is_materialized,
    is_remote,
    is_timing,
    is_tracing_lines,
    materialize,
    register_shape_function,
    set_check_shapes,
    set_lazy,
    set_timing,
    set_trace_lines,
    stats,
    synchronize,
)

from . import _device, _trace
from ._capture import capture

_device.register()
_set_source_finder(_trace.where)

# Names of Genie's first prototype, kept for the programs that use them.
get_graph = graph
MaterializationError = Error
UnsupportedOperationError = NotImplementedError


class _RemoteTensor(type):
    def __instancecheck__(cls, value):
        return isinstance(value, torch.Tensor) and is_remote(value)


class LazyTensor(metaclass=_RemoteTensor):
    """Not a class of its own: isinstance(t, genie.LazyTensor) asks whether a tensor is on the remote device."""

    def __new__(cls, *_args, **_kwargs):
        raise TypeError('make tensors with PyTorch: torch.empty(..., device="remote_accelerator:0"), or x.to(...)')


__all__ = [
    "Description",
    "Error",
    "Graph",
    "GraphNode",
    "GraphValue",
    "LazyTensor",
    "MaterializationError",
    "OpTime",
    "Session",
    "Stats",
    "UnsupportedOperationError",
    "capture",
    "connect",
    "describe",
    "get_graph",
    "graph",
    "is_capturing",
    "is_checking_shapes",
    "is_lazy",
    "is_materialized",
    "is_remote",
    "is_timing",
    "is_tracing_lines",
    "materialize",
    "register_shape_function",
    "set_check_shapes",
    "set_lazy",
    "set_timing",
    "set_trace_lines",
    "stats",
    "synchronize",
]
