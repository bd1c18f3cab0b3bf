"""What the tests of the Python side share. GENIE_TEST_NODE=program: against a genie-node process, else embedded."""

import os

import pytest
import torch

import genie

torch.set_num_threads(1)  # before the first session: numbers depend on how many threads compute them


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    program = os.environ.get("GENIE_TEST_NODE")
    if not program:
        yield "embedded:"
        return
    from op_db import start_node

    node, where = start_node(program, str(tmp_path_factory.mktemp("node")))
    yield where
    node.terminate()
    assert node.wait(30) == 0


@pytest.fixture(scope="session")
def session(address):
    with_node = genie.connect(address)
    yield with_node
    with_node.close()


@pytest.fixture
def device(session):
    return session.device()


def on_both(device, run):
    """The tensors that run(device) answers are the same bits on the CPU and there."""
    here, there = ([value.detach().cpu() for value in run(where)] for where in ("cpu", device))
    assert len(here) == len(there)
    for index, (one, other) in enumerate(zip(here, there)):
        assert one.dtype == other.dtype and torch.equal(one, other), (index, (one - other).abs().max())
