"""Operators of a library in Python, shape functions, lines of errors. GENIE_TEST_NODE=program: against a genie-node process."""

import os
import sys

import pytest
import torch

import genie

LIBRARY = os.environ["GENIE_CUSTOM_OPS"]
REMOTE = os.environ.get("GENIE_TEST_NODE")

torch.set_num_threads(1)
torch.ops.load_library(LIBRARY)
ops = torch.ops.genie_test


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    if not REMOTE:
        session = genie.connect("embedded:")
        yield session.device()
        session.close()
        return
    sys.path.insert(0, os.path.dirname(__file__))
    from op_db import start_node

    node, address = start_node(REMOTE, str(tmp_path_factory.mktemp("node")), "--load-library", LIBRARY)
    session = genie.connect(address)
    yield session.device()
    session.close()
    node.terminate()
    assert node.wait(30) == 0


def test_operators_of_a_library_are_captured(device):
    x = torch.arange(6.0).view(2, 3)
    before = genie.stats().flushes
    y = ops.scale(x.to(device), 2.5)
    first, second = ops.halves(y)
    assert genie.stats().flushes == before
    assert torch.equal(first.cpu(), x[:1] * 2.5) and torch.equal(second.cpu(), x[1:] * 2.5)

    leaf = x.to(device).requires_grad_()
    ops.cube(leaf).sum().backward()
    assert torch.equal(leaf.grad.cpu(), 3 * x * x)


def test_they_run_within_torchscript(device):
    @torch.jit.script
    def f(x):
        return torch.relu(torch.ops.genie_test.scale(x, -0.5)) + 1

    x = torch.arange(6.0) - 3
    assert torch.equal(f(x.to(device)).cpu(), torch.relu(x * -0.5) + 1)


def test_a_shape_function_in_python(device):
    x = torch.arange(6.0).view(2, 3)
    remote = x.to(device)

    def flushes():
        before = genie.stats().flushes
        ops.repeat_rows(remote, 2)
        return genie.stats().flushes - before

    assert flushes() == 1
    genie.register_shape_function(
        "genie_test::repeat_rows", lambda x, times: torch.empty(x.size(0) * times, x.size(1), dtype=x.dtype, device="meta")
    )
    assert flushes() == 0
    assert torch.equal(ops.repeat_rows(remote, 3).cpu(), x.repeat(3, 1))
    genie.register_shape_function("genie_test::repeat_rows", lambda x, times: None)
    assert flushes() == 1
    genie.register_shape_function("genie_test::repeat_rows", lambda x, times: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ops.repeat_rows(remote, 2)
    genie.register_shape_function("genie_test::repeat_rows", None)
    genie.register_shape_function(
        "genie_test::unknown_rows", lambda x: [torch.empty(x.size(1), device="meta") for _ in range(x.size(0))]
    )
    assert [row.tolist() for row in ops.unknown_rows(remote)] == x.tolist()
    genie.register_shape_function(
        "genie_test::halves", lambda x: (torch.empty(1, 3, device="meta"), torch.empty(1, 4, device="meta"))
    )
    with pytest.raises(RuntimeError, match=r"genie_test::halves gives Float\[1, 3\].*Float\[1, 4\]"):
        ops.halves(remote)[1].cpu()
    genie.register_shape_function("genie_test::halves", None)
    with pytest.raises(genie.Error, match="no operator 'nothing::here'"):
        genie.register_shape_function("nothing::here", None)


def define(name, schema, kernel, fake=None):
    library = torch.library.Library("genie_test_python", "FRAGMENT")
    library.define(name + schema)
    library.impl(name, kernel, "CPU")
    if fake is not None:
        torch.library.register_fake(f"genie_test_python::{name}", fake, lib=library)
    return library


def test_operators_that_python_defines(device):
    library = define("twice", "(Tensor x) -> Tensor", lambda x: x * 2, torch.empty_like)
    x = torch.arange(3.0)
    if REMOTE:
        with pytest.raises(NotImplementedError, match="genie_test_python::twice is not on node .*--load-library"):
            torch.ops.genie_test_python.twice(x.to(device))
        return
    before = genie.stats().flushes
    y = torch.ops.genie_test_python.twice(x.to(device))
    assert genie.stats().flushes == before
    assert torch.equal(y.cpu(), x * 2)
    # Gone while a record waits, and back with another schema.
    waiting = torch.ops.genie_test_python.twice(x.to(device))
    library._destroy()
    with pytest.raises(RuntimeError, match="genie_test_python::twice"):
        waiting.cpu()
    library = define("twice", "(Tensor x, int times) -> Tensor", lambda x, times: x * times)
    assert torch.equal(torch.ops.genie_test_python.twice(x.to(device), 3).cpu(), x * 3)
    library._destroy()


@pytest.mark.skipif(bool(REMOTE), reason="an operator that Python defines is on no other node")
def test_a_shape_function_outlives_its_operator(device):
    x = torch.arange(4.0)
    remote = x.to(device)

    def doubled():
        return define("kept_shape", "(Tensor x) -> Tensor", lambda x: x * 2)

    def flushes():
        before = genie.stats().flushes
        result = torch.ops.genie_test_python.kept_shape(remote)
        return genie.stats().flushes - before, result.cpu().tolist()

    first = doubled()
    genie.register_shape_function("genie_test_python::kept_shape", lambda x: torch.empty_like(x, device="meta"))
    assert flushes() == (0, [0.0, 2.0, 4.0, 6.0])
    first._destroy()
    second = doubled()
    assert flushes() == (0, [0.0, 2.0, 4.0, 6.0])
    genie.register_shape_function("genie_test_python::kept_shape", None)
    second._destroy()
    third = doubled()
    assert flushes()[0] == 1
    third._destroy()


def test_errors_say_where_they_were_captured(device):
    class Head(torch.nn.Module):
        def forward(self, x, index):
            return x.index_select(1, index) * 2  # the line

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Identity(), Head()])

        def forward(self, x, index):
            return self.blocks[1](self.blocks[0](x), index)

    index = torch.tensor([99]).to(device)
    x = torch.ones(2, 3).to(device)
    assert not genie.is_tracing_lines()
    genie.set_trace_lines(True)
    try:
        y = Net()(x, index)
        assert genie.describe(y).module == "Net.blocks.1"
        with pytest.raises(RuntimeError) as error:
            y.cpu()
    finally:
        genie.set_trace_lines(False)
    line = next(i for i, text in enumerate(open(__file__, encoding="utf-8"), 1) if text.endswith("# the line\n"))
    assert "aten::index_select (self=Float[2, 3], index=Long[1])" in str(error.value)
    assert f"test_custom_ops.py:{line} in Net.blocks.1)" in str(error.value)


def test_the_check_of_shapes(device):
    genie.set_check_shapes(True)
    try:
        assert genie.is_checking_shapes()
        with pytest.raises(RuntimeError, match=r"by_columns gives Float\[2, 3\] with strides \[1, 2\] where Float\[2, 3\] with"):
            ops.by_columns(torch.ones(2, 3).to(device)).cpu()
    finally:
        genie.set_check_shapes(False)
    assert ops.by_columns(torch.ones(2, 3).to(device)).sum().item() == 6
