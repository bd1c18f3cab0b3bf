"""torch.remote_accelerator: what PyTorch's Python side asks of a device's module."""

import functools
import itertools
import os
import sys
import types

import torch

import genie_native

# What the module offers; the rest is ours.
__all__ = [
    "current_device",
    "default_generator",
    "device",
    "device_count",
    "get_amp_supported_dtype",
    "get_rng_state",
    "is_available",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "set_device",
    "set_rng_state",
    "synchronize",
]

_NAME = "remote_accelerator"
_pid = os.getpid()
# torch.utils.checkpoint asks it, under this name, before it keeps generators for the second forward pass.
_initialized = True


def __dir__():
    return __all__


def is_available():
    return True


def is_initialized():
    return True


def _lazy_init():
    pass


def device_count():
    """How many indices sessions may own in all: constant for the process, as PyTorch wants it. Those that a session of
    genie.connect() serves are session.device(0) to session.device(session.device_count - 1)."""
    return torch._C._accelerator_hooks_device_count()


def current_device():
    return torch._C._accelerator_hooks_get_current_device()


def set_device(device):
    index = torch.device(device).index if not isinstance(device, int) else device
    torch._C._accelerator_hooks_set_current_device(0 if index is None else index)


class device:
    """Context manager: factories that name no index use this one."""

    def __init__(self, index):
        self._index = index if isinstance(index, int) else (torch.device(index).index or 0)
        self._before = -1

    def __enter__(self):
        self._before = current_device()
        set_device(self._index)

    def __exit__(self, *_error):
        set_device(self._before)
        return False


def synchronize(_device=None):
    """Sends what is captured and waits for all of it."""
    genie_native.synchronize()


def _is_in_bad_fork():
    return os.getpid() != _pid


def manual_seed(seed):
    default_generator(current_device()).manual_seed(seed)


def manual_seed_all(seed):
    """Also of devices that no session serves yet: their seed waits."""
    for index in range(device_count()):
        default_generator(index).manual_seed(seed)


def default_generator(index=0):
    return genie_native.default_generator(index)


def get_rng_state(device=_NAME):
    index = torch.device(device).index if not isinstance(device, int) else device
    return default_generator(current_device() if index is None else index).get_state()


def set_rng_state(state, device=_NAME):
    index = torch.device(device).index if not isinstance(device, int) else device
    default_generator(current_device() if index is None else index).set_state(state)


def get_amp_supported_dtype():
    return [torch.bfloat16, torch.float16]


def _pickle_by_value(pickled_by_torch):
    """torch.save, pickle and multiprocessing take a tensor's bytes from its address, which a remote one has not.

    It goes as a CPU tensor with the name of its device, in a form that plain PyTorch reads with map_location="cpu".
    Tensors that share a storage are saved one by one.
    """

    @functools.wraps(pickled_by_torch)
    def __reduce_ex__(self, protocol):
        if type(self) is torch.Tensor and self.device.type == _NAME:
            value = self.detach().cpu()
            parts = (value, self.dtype, str(self.device), self.requires_grad)
            return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts
        return pickled_by_torch(self, protocol)

    return __reduce_ex__


def _without_address(address_of_torch):
    """torch.load asks whether a storage has an address before it remembers it."""

    @functools.wraps(address_of_torch)
    def data_ptr(self):
        return 0 if self.device.type == _NAME else address_of_torch(self)

    return data_ptr


def _clone_on_the_device(clone_of_torch):
    """copy.deepcopy copies storages by their addresses; ours is copied by the node."""

    @functools.wraps(clone_of_torch)
    def clone(self):
        if self.device.type != _NAME:
            return clone_of_torch(self)
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(self).clone().untyped_storage()

    return clone


def _graphs_as_they_are(compile_of_torch):
    """torch.compile: the device captures by itself, so that what Dynamo traced runs as it is instead of becoming CPU code."""

    @functools.wraps(compile_of_torch)
    def __call__(self, model_, inputs_):
        tensors = itertools.chain(inputs_, model_.parameters(), model_.buffers())
        if any(isinstance(t, torch.Tensor) and t.device.type == _NAME for t in tensors):
            return model_
        return compile_of_torch(self, model_, inputs_)

    return __call__


def register():
    """Makes this module torch.remote_accelerator, once."""
    inductor = torch._TorchCompileInductorWrapper
    inductor.__call__ = _graphs_as_they_are(inductor.__call__)
    torch.UntypedStorage.clone = _clone_on_the_device(torch.UntypedStorage.clone)
    torch.UntypedStorage.data_ptr = _without_address(torch.UntypedStorage.data_ptr)
    torch.Tensor.__reduce_ex__ = _pickle_by_value(torch.Tensor.__reduce_ex__)
    # The library has named the device; Python's side of PyTorch keeps the name once more, and chooses fast paths by it.
    torch.utils.rename_privateuse1_backend(_NAME)
    if getattr(torch, _NAME, None) is None:
        torch._register_device_module(_NAME, sys.modules[__name__])
        torch.utils.generate_methods_for_privateuse1_backend()  # x.remote_accelerator(), module.remote_accelerator(), ...
    assert isinstance(getattr(torch, _NAME), types.ModuleType)
