"""Where a Python program is: its line outside of torch, and the path of the nn.Module that runs."""

import os
import sys

import torch

_HIDDEN = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep)
_MODULE_CALL = torch.nn.Module._call_impl.__code__


def _path(modules):
    """Outermost first: its class, then the names under which each one holds the next."""
    parts = []
    for parent, module in zip([None, *modules], modules):
        names = [] if parent is None else [name for name, child in parent.named_modules() if child is module and name]
        parts.append(names[0] if names else type(module).__name__)
    return ".".join(parts)


def where():
    """("train.py:12", "Net.layers.0"), empty where unknown."""
    line = ""
    modules = []
    frame = sys._getframe().f_back
    while frame is not None:
        code = frame.f_code
        if code is _MODULE_CALL:
            modules.append(frame.f_locals["self"])
        elif not line and not code.co_filename.startswith(_HIDDEN):
            line = f"{os.path.relpath(code.co_filename) if os.path.exists(code.co_filename) else code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return line, _path(modules[::-1])
