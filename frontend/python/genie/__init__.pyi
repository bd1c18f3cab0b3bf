from typing import Any, Callable

import torch

class Error(RuntimeError): ...

class OpTime:
    """Where the client's time for an operator went, summed over its calls; see genie/stats.h."""

    calls: int
    dispatch_ns: int
    shape_ns: int
    record_ns: int
    plan_ns: int
    @property
    def total_ns(self) -> int: ...

class Stats:
    """Counters of capture, execution and transfer; see genie/stats.h for what each means."""

    captured_ops: int
    executed_ops: int
    pruned_ops: int
    client_fallbacks: int
    captured_by_op: dict[str, int]
    executed_by_op: dict[str, int]
    time_by_op: dict[str, OpTime]
    flushes: int
    flush_reasons: dict[str, int]
    templates_registered: int
    template_hits: int
    template_misses: int
    templates_forgotten: int
    shapes_cached: int
    shapes_own: int
    shapes_meta: int
    shapes_from_node: int
    submissions: int
    message_bytes: int
    uploads: int
    upload_bytes: int
    upload_known_bytes: int
    snapshot_bytes: int
    upload_copied_bytes: int
    fetches: int
    fetch_bytes: int
    fetch_copied_bytes: int
    user_copied_bytes: int
    last_failures: list[str]

class GraphValue:
    dtype: str
    sizes: list[int]
    storage: int

class GraphNode:
    id: int
    op: str
    inputs: list[GraphValue]
    outputs: list[GraphValue]
    depends_on: list[int]

class Graph:
    nodes: list[GraphNode]
    omitted: int
    def to_string(self) -> str:
        """One line per node; str(graph) is the same."""
    def to_dot(self) -> str: ...
    def __len__(self) -> int: ...

class Description:
    op: str
    shape: str
    dtype: str
    device: str
    module: str
    state: str

class Session:
    """Lasts until close(), or the end of `with connect(...) as session:`, or the end of the process."""

    device_count: int
    node_name: str
    node_threads: int
    transport: str
    def device(self, index: int = 0) -> torch.device:
        """0 is the planned device, 1 and on are the session's physical ones."""
    def synchronize(self) -> None:
        """Sends what is captured and waits for it; raises the first error that nobody has seen."""
    def stats(self) -> Stats: ...
    def close(self) -> None:
        """Ends the session on the node; its device indices are free again. Captured work that was not sent is dropped."""
    def __enter__(self) -> Session: ...
    def __exit__(self, *error: Any) -> None: ...

def connect(
    uri: str,
    *,
    connect_timeout_ms: int = 10_000,
    progress_timeout_ms: int = 30_000,
    busy_polling: bool = False,
    transport: str = "auto",
    token: str = "",
    peer_timeout_ms: int = 5_000,
    rdma_devices: str = "",
) -> Session:
    """Opens a session: "embedded:" (a node inside this process), "unix:/path.sock" or "tcp://host:port".

    It lasts until its close(), also when the result is dropped; its devices are session.device(i) for i below
    session.device_count. Without any connect() the first use of the device connects to $GENIE_CLUSTER, and when that is not set,
    to "embedded:". token: for a node that asks for one; by default that of the file that $GENIE_TOKEN_FILE names.
    Across machines, a node that is silent for peer_timeout_ms has gone (0: never); rdma_devices: those that verbs may use, as
    "mlx5_0,mlx5_2:1", by default every port that is up.
    """

def is_remote(tensor: torch.Tensor) -> bool: ...
def is_materialized(tensor: torch.Tensor) -> bool:
    """Whether nothing captured for the tensor waits to be sent."""

def describe(tensor: torch.Tensor) -> Description:
    """What the tensor is, without running anything."""

def materialize(tensor: torch.Tensor) -> None:
    """Sends what the tensor needs and waits until it is computed."""

def synchronize() -> None: ...
def set_lazy(lazy: bool) -> None:
    """False: every operator runs on the node before its call returns."""

def is_lazy() -> bool: ...
def set_timing(timing: bool) -> None:
    """True: stats().time_by_op says where the client's time for each operator goes (also GENIE_TIME_OPS=1)."""

def is_timing() -> bool: ...
def register_shape_function(op: str, function: Callable[..., Any] | None) -> None:
    """Says what the results of "namespace::name" look like, before everything else: the function gets the call's arguments (tensors
    have sizes and dtypes, no values) and returns a tensor that looks like the result (torch.empty(..., device="meta")), a
    list of these for a list, a tuple for several results, or None when it does not know. None as the function takes it away."""

def set_check_shapes(check: bool) -> None:
    """True: the node compares the result of every operator with what was expected of it (also GENIE_CHECK_SHAPES=1)."""

def is_checking_shapes() -> bool: ...
def set_trace_lines(trace: bool) -> None:
    """True: errors from the node say which line of the program captured the operator, and in which module (also
    GENIE_TRACE_LINES=1). Costs tens of microseconds per operator."""

def is_tracing_lines() -> bool: ...
def stats() -> Stats: ...
def graph() -> Graph:
    """The capture that the thread finished last; when there is none, what is pending, else what was sent last."""

class capture:
    """Context manager: within it, what this thread computes is captured for the remote device, also where the program never
    names that device.

    Factories without a device make remote tensors, CPU operands are lifted (a model that was never moved works: its parameters
    travel once per version), and gradients reach CPU leaves. Views and copies of CPU tensors, and in-place operators among CPU
    tensors, stay on the CPU; a result that is written into a CPU tensor is there when the call returns. genie/capture.h says
    all of it.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        """device: that of a session, session.device(); by default the enclosing capture's, else the current one."""

    def __enter__(self) -> capture: ...
    def __exit__(self, *error: Any) -> None: ...
    def graph(self) -> Graph:
        """Exactly the operators issued in the scope (so far), in program order, inner captures' among them."""

def is_capturing() -> bool:
    """Whether the calling thread has a capture open."""

get_graph = graph
MaterializationError = Error
UnsupportedOperationError = NotImplementedError

class LazyTensor:
    """isinstance(t, LazyTensor) asks whether a tensor is on the remote device."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any: ...
