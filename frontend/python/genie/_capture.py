"""genie.capture(): the context style, as genie/capture.h has it."""

import functools

import torch
from torch.utils._device import DeviceContext, _device_constructors

import genie_native


@functools.lru_cache(1)
def _factories():
    """Those that make strided tensors."""
    other = ("sparse", "nested", "quantized")
    return {f for f in _device_constructors() if not any(layout in f.__name__ for layout in other)}


@functools.lru_cache(1)
def _likes():
    """Those that take a tensor's looks."""
    names = ("empty", "full", "ones", "rand", "randint", "randn", "zeros")
    methods = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
    return {getattr(torch, f"{name}_like") for name in names} | {getattr(torch.Tensor, name) for name in methods}


def _leaves_the_device_open(func, args, kwargs):
    if kwargs.get("device") is not None or kwargs.get("pin_memory"):
        return False
    if kwargs.get("layout") not in (None, torch.strided):
        return False
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        return False
    if func in _factories():
        return True
    if func is torch.normal:
        return len(args) > 2 or "size" in kwargs
    if func in _likes():
        like = args[0] if args else kwargs.get("input")
        return (
            isinstance(like, torch.Tensor)
            and like.device.type == "cpu"
            and like.layout == torch.strided
            and torch._C._current_graph_task_id() == -1
        )
    return False


class _Factories(DeviceContext):
    """PyTorch's Python functions always name a device to what is below them: whether the program did is known only here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # The mode may outlive the capture: in a forked worker, or when another thread ended it.
        if _leaves_the_device_open(func, args, kwargs) and genie_native.is_capturing():
            kwargs = {**kwargs, "device": self.device}
        return func(*args, **kwargs)


class capture:
    """Within it, what this thread computes is captured for the remote device.

        with genie.capture() as captured:
            y = model(torch.randn(2, 6))      # a model that was never moved: its parameters travel once
        print(y.cpu(), captured.graph())

    device: that of a session, session.device(); by default the enclosing capture's, else the current one.
    """

    def __init__(self, device=None):
        self._device = None if device is None else torch.device(device)
        self._captured = None

    def __enter__(self):
        if self._captured is not None:
            raise RuntimeError("this genie.capture() was entered before: make another one")
        self._captured = genie_native.Capture(self._device)
        self._factories = _Factories(self._captured.device)
        self._factories.__enter__()
        return self

    def __exit__(self, *error):
        self._factories.__exit__(*error)
        self._captured.end()

    def graph(self):
        """Exactly the operators issued in the scope (so far), in program order, inner captures' among them."""
        if self._captured is None:
            raise RuntimeError("nothing was captured yet: use `with genie.capture() as captured:`")
        return self._captured.graph()
