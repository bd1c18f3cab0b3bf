"""PyTorch's own operator database on remote_accelerator:0, against the CPU.

usage: op_db.py [--node GENIE_NODE] [--shard I/N] [--other-dtypes] [--capture] [NAME...]

Every entry of torch.testing._internal's op_db, every sample input (float32 where the entry knows it, else its first dtype):
results and, where supported, gradients must be the CPU's bits; what is only close to them, or differs, stands with its reason
in op_db_exceptions.yaml. An entry fails when it is worse than the file says, and when one that differed no longer does (correct
the file then). What is close may be equal on another machine: LAPACK's sums depend on where its work space lies.
With --other-dtypes it is every other dtype that the CPU has for the entry instead, from bool to complex128; exceptions are then
named "entry/dtype".
With --capture nothing is moved: the operator gets the CPU's tensors inside genie.capture(). Exceptions are then named
"entry/capture" first, and plain "entry" otherwise.
Samples that eager refuses count when the device refuses them too.
Prints one GoogleTest line per entry and "N passed, M failed" last.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import warnings

import torch
import yaml
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

import genie

warnings.filterwarnings("ignore")

# Their results are memory that nobody has written: only the form is promised.
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
# Arguments that PyTorch wants on the CPU whatever the device.
STAYS_ON_CPU = {"tensor_split"}
# The CPU has no nan_to_num for them: compared in a wider type.
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
WIDENED = {torch.complex32: torch.complex64} | dict.fromkeys(EIGHT_BITS, torch.float32)


class Difference(Exception):
    pass


def to_device(device, skip_arguments):
    def move(value):
        if isinstance(value, torch.Tensor):
            moved = value.detach().to(device)
            return moved.requires_grad_(value.requires_grad)
        return value

    def whole(sample):
        arguments = sample.args if skip_arguments else tree_map(move, sample.args)
        return tree_map(move, sample.input), arguments, tree_map(move, sample.kwargs)

    return whole


def as_it_is(sample):
    return sample.input, sample.args, sample.kwargs


def to_cpu(value):
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def plain(tensor):
    tensor = tensor.to(WIDENED.get(tensor.dtype, tensor.dtype))
    return torch.nan_to_num(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor


def compare(expected, got, what, form_only=False):
    """True when equal, False when close; raises Difference."""
    if isinstance(expected, torch.Tensor) != isinstance(got, torch.Tensor):
        raise Difference(f"{what}: {type(expected).__name__} on the CPU, {type(got).__name__} on the device")
    if not isinstance(expected, torch.Tensor):
        if expected == got or expected != expected:
            return True
        raise Difference(f"{what}: {expected} on the CPU, {got} on the device")
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise Difference(f"{what}: {expected.dtype}{list(expected.shape)}, on the device {got.dtype}{list(got.shape)}")
    if form_only or torch.equal(plain(expected), plain(got)):
        return True
    try:
        torch.testing.assert_close(plain(got), plain(expected))
        return False
    except AssertionError as error:
        raise Difference(f"{what}: {' '.join(str(error).split())[:160]}") from None


def attempt(function):
    try:
        return function(), None
    except Exception as error:  # whatever the operator raises is its answer
        return None, error


def tensors_that_need_grad(values):
    return [t for t in tree_flatten(values)[0] if isinstance(t, torch.Tensor) and t.requires_grad]


def check_backward(results, inputs, moved_results, moved_inputs):
    wanted, moved_wanted = tensors_that_need_grad(results), tensors_that_need_grad(moved_results)
    if not wanted:
        return True
    if len(wanted) != len(moved_wanted):
        raise Difference("another number of results needs gradients")
    torch.manual_seed(2)
    weights = [torch.randn_like(t) for t in wanted]
    moved_weights = [w.to(t.device) for w, t in zip(weights, moved_wanted)]
    leaves, moved_leaves = tensors_that_need_grad(inputs), tensors_that_need_grad(moved_inputs)
    expected, error = attempt(lambda: torch.autograd.grad(wanted, leaves, weights, allow_unused=True))
    if error is not None:
        return True  # eager has no gradient here
    got = torch.autograd.grad(moved_wanted, moved_leaves, moved_weights, allow_unused=True)
    return all([compare(e, to_cpu(g), f"gradient {i}") for i, (e, g) in enumerate(zip(expected, got))])


def check_sample(op, sample, move, style):
    """True when equal, False when close; raises."""
    inputs = (sample.input, sample.args, sample.kwargs)
    moved = move(sample)
    torch.manual_seed(1)
    expected, error = attempt(lambda: op(sample.input, *sample.args, **sample.kwargs))
    torch.manual_seed(1)
    with style():
        got, moved_error = attempt(lambda: op(moved[0], *moved[1], **moved[2]))
    if error is not None:
        if moved_error is None:
            tree_map(to_cpu, got)  # refused late, where the value is used
            raise Difference(f"eager refuses ({error}), the device does not")
        return True
    if moved_error is not None:
        raise moved_error
    results, moved_results = tree_flatten(expected)[0], tree_flatten(got)[0]
    if len(results) != len(moved_results):
        raise Difference(f"{len(results)} results on the CPU, {len(moved_results)} on the device")
    form_only = op.name in UNINITIALISED
    same = [
        compare(to_cpu(e), to_cpu(g), f"result {i}", form_only)
        for i, (e, g) in enumerate(zip(results, moved_results))
    ]
    if op.supports_autograd:
        same.append(check_backward(expected, inputs, got, moved))
    return all(same)


def dtypes_of(op, others):
    supported = sorted(op.supported_dtypes("cpu"), key=str)
    main = torch.float32 if torch.float32 in supported else (supported or [None])[0]
    return [dtype for dtype in supported if (dtype != main) == others]


def check_entry(op, dtype, device, captured):
    """"equal", "close", or why it is neither."""
    differentiable = op.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    move = as_it_is if captured else to_device(device, op.name in STAYS_ON_CPU)
    style = genie.capture if captured else contextlib.nullcontext
    close = False
    torch.manual_seed(0)
    for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=differentiable)):
        try:
            if not check_sample(op, sample, move, style):
                close = True
        except Exception as error:
            return f"sample {number}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "close" if close else "equal"


def full_name(op):
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def start_node(program, folder, *flags):
    address = f"unix:{folder}/node.sock"
    log = open(f"{folder}/node.log", "w+", encoding="utf-8")
    command = [program, "--listen", address, "--threads", "1", *flags]
    node = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
    for _ in range(600):
        with open(log.name, encoding="utf-8") as text:
            if "ready" in text.read():
                return node, address
        if node.poll() is not None:
            break
        time.sleep(0.05)
    node.kill()
    raise RuntimeError("genie-node did not become ready: " + open(log.name, encoding="utf-8").read())


def judge(found, allowed):
    """None when it is as the file says, else what is wrong."""
    if allowed is None or allowed["kind"] == "equal":
        return None if found == "equal" else found
    if allowed["kind"] == "close":
        return None if found in ("equal", "close") else found
    if found in ("equal", "close"):
        return f"is {found} now: correct op_db_exceptions.yaml (it said: {allowed['why']})"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", help="a genie-node program; without it the node lives in this process")
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th entry, from the I-th")
    parser.add_argument("--other-dtypes", action="store_true", help="every dtype but the main one of each entry")
    parser.add_argument("--capture", action="store_true", help="tensors of the CPU inside genie.capture()")
    parser.add_argument("names", nargs="*", help="only these entries")
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    style = "/capture" if arguments.capture else ""
    with open(os.path.join(os.path.dirname(__file__), "op_db_exceptions.yaml"), encoding="utf-8") as file:
        exceptions = yaml.safe_load(file) or {}

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        node = None
        uri = "embedded:"
        if arguments.node:
            node, uri = start_node(arguments.node, folder)
        # One operator of half precision may take a minute.
        session = genie.connect(uri, progress_timeout_ms=600_000)
        passed, failed = 0, []
        try:
            for number, op in enumerate(op_db):
                name = full_name(op)
                if number % shards != shard or (arguments.names and name not in arguments.names):
                    continue
                dtypes = dtypes_of(op, arguments.other_dtypes)
                if not dtypes and not arguments.other_dtypes:
                    print(f"op_db.py: Skipped\n{name} has no dtype on the CPU\n[  SKIPPED ] OpDb.{name} (0 ms)")
                for dtype in dtypes:
                    case = f"{name}/{str(dtype).removeprefix('torch.')}" if arguments.other_dtypes else name
                    begin = time.monotonic()
                    found = check_entry(op, dtype, session.device(), arguments.capture)
                    wrong = judge(found, exceptions.get(case + style, exceptions.get(case, exceptions.get(name))))
                    took_ms = int((time.monotonic() - begin) * 1e3)
                    if wrong is None:
                        passed += 1
                        print(f"[       OK ] OpDb.{case} ({took_ms} ms)", flush=True)
                    else:
                        failed.append(case)
                        print(f"{case}: {wrong}\n[  FAILED  ] OpDb.{case} ({took_ms} ms)", flush=True)
            fallbacks = genie.stats().client_fallbacks
            if fallbacks:
                failed.append("client fall-backs")
                print(f"{fallbacks} operators ran on the client\n[  FAILED  ] OpDb.client_fallbacks (0 ms)")
        finally:
            session.close()
            if node is not None:
                node.terminate()
                node.wait(30)
    print(f"{passed} passed, {len(failed)} failed")
    for name in failed:
        print(f"  {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
