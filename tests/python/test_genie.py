"""The Python side, as a program uses it. GENIE_TEST_NODE=program: against a genie-node process, else embedded."""

import copy
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import numpy
import pytest
import torch

import genie


def test_the_session_says_what_it_is(session):
    assert session.device() == torch.device("remote_accelerator:0")
    assert session.device_count >= 2
    assert session.transport in ("embedded", "shm")
    assert session.node_threads >= 1


def test_a_session_ends_with_its_scope():
    with genie.connect("embedded:") as scoped:
        devices = f"{scoped.device()} to {scoped.device(1).index}"
        assert repr(scoped) == f"<genie.Session on node '{scoped.node_name}' (embedded): {devices}>"
        y = torch.ones(2, device=scoped.device())
    with pytest.raises(RuntimeError, match="closed"):
        (y + 1).cpu()


def test_a_session_whose_handle_is_dropped_goes_on_until_it_is_closed():
    program = """
        import genie, torch
        genie.connect("embedded:")
        x = torch.ones(2, device="remote_accelerator:0")
        assert x.sum().item() == 2.0
        second = genie.connect("embedded:")
        device = second.device()
        assert device.index > 0
        del second
        third = genie.connect("embedded:")
        assert third.device().index > device.index
        index = third.device().index
        third.close()
        assert genie.connect("embedded:").device().index == index  # what close() gave back
        assert x.sum().item() == 2.0
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and "no session was opened" not in ran.stderr, ran.stderr


def test_the_devices_module_shows_what_it_offers():
    module = torch.remote_accelerator
    assert "device_count" in dir(module) and not {"os", "torch", "functools", "register"} & set(dir(module))
    assert all(hasattr(module, name) for name in dir(module))


def test_a_result_is_the_programs_own(device):
    """However the program comes by its memory, it writes neither the remote tensor nor what it fetches later."""
    expected = torch.arange(8192.0) * 2
    remote = torch.arange(8192.0, device=device) * 2

    def by_numpy(value):
        value.numpy()[:] = -1

    def by_dlpack(value):
        torch.from_dlpack(torch.utils.dlpack.to_dlpack(value)).fill_(-1)

    def by_numpy_dlpack(value):
        torch.from_dlpack(value).view(-1).numpy()[:] = -1

    def by_storage(value):
        value.untyped_storage().fill_(7)

    def by_file(value):
        io.BytesIO(bytes(value.nbytes)).readinto(value.numpy())

    for write in (torch.Tensor.zero_, by_numpy, by_dlpack, by_numpy_dlpack, by_storage, by_file):
        value, other = remote.cpu(), remote.cpu()
        write(value)
        assert not torch.equal(value, expected), write
        assert torch.equal(other, expected) and torch.equal(remote.cpu(), expected), write
        fresh = (remote + 1).cpu()
        write(fresh)
        del fresh, value, other
        assert torch.equal((remote + 1).cpu(), expected + 1), write
    shared = remote.cpu()
    array = shared.numpy()
    remote.zero_()
    assert torch.equal(remote.cpu(), torch.zeros(8192)) and array[-1] == expected[-1]


def test_factories_and_results(device):
    x = torch.arange(12.0, device=device).view(3, 4)
    with torch.device("remote_accelerator:0"):
        y = torch.ones(4, 2)
    assert genie.is_remote(y) and isinstance(y, genie.LazyTensor) and not isinstance(torch.ones(1), genie.LazyTensor)
    assert torch.equal((x @ y).cpu(), torch.arange(12.0).view(3, 4) @ torch.ones(4, 2))
    assert (x @ y).sum().item() == 132.0


def test_nothing_runs_before_a_value_is_needed(session, device):
    x = torch.ones(3, device=device)
    genie.synchronize()
    before = genie.stats()
    y = (x + 1).relu()
    assert y.shape == (3,) and genie.describe(y).op == "aten::relu"
    assert not genie.is_materialized(y)
    assert [node.op for node in genie.graph().nodes] == ["aten::add.Tensor", "aten::relu"]
    assert "digraph" in genie.graph().to_dot()
    assert "aten::relu" in genie.graph().to_string() == str(genie.graph())
    assert genie.stats().flushes == before.flushes
    genie.materialize(y)
    assert genie.is_materialized(y)
    assert genie.stats().flushes == before.flushes + 1


def test_printing_and_numpy(device):
    x = torch.tensor([1.5, 2.5], device=device)
    assert repr(x) == "tensor([1.5000, 2.5000], device='remote_accelerator:0')"
    assert numpy.array_equal(x.cpu().numpy(), numpy.array([1.5, 2.5], dtype=numpy.float32))
    with pytest.raises(TypeError):
        x.numpy()


def test_the_seed_gives_the_cpus_numbers(device):
    torch.manual_seed(7)
    expected = torch.randn(5)
    torch.manual_seed(7)
    assert torch.equal(torch.randn(5, device=device).cpu(), expected)
    state = torch.remote_accelerator.get_rng_state()
    first = torch.rand(3, device=device).cpu()
    torch.remote_accelerator.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=device).cpu(), first)


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3)
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    ],
    ids=["sgd", "adam", "adamw_foreach"],
)
def test_training_is_eagers(device, optimizer):
    data, target = torch.randn(8, 6), torch.randint(0, 3, (8,))

    def train(where):
        model = make_model().to(where)
        step = optimizer(model.parameters())
        torch.manual_seed(1)
        losses = []
        for _ in range(5):
            step.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(data.to(where)), target.to(where))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step.step()
            losses.append(loss.detach().cpu())
        return losses, [p.detach().cpu() for p in model.parameters()]

    for here, there in zip(train("cpu"), train(device)):
        assert all(torch.equal(a, b) for a, b in zip(here, there))


def test_save_load_pickle_and_copy(device, tmp_path):
    model = make_model().to(device)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    here = torch.load(tmp_path / "model.pt", map_location="cpu")
    there = torch.load(tmp_path / "model.pt", map_location=device)
    for name, value in model.state_dict().items():
        assert torch.equal(here[name], value.cpu()) and torch.equal(there[name].cpu(), value.cpu())
        assert there[name].device == torch.device(device)
    tensor = torch.arange(4, device=device)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)).cpu(), torch.arange(4))
    assert torch.equal(copy.deepcopy(tensor).cpu(), torch.arange(4))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(make_model().eval()), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer, map_location=device)
    x = torch.randn(2, 6)
    assert torch.equal(scripted(x.to(device)).cpu(), make_model().eval()(x))


def test_data_loader_with_pinned_memory(device):
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    loader = torch.utils.data.DataLoader(data, batch_size=4, pin_memory=True)
    sums = [batch.to(device, non_blocking=True).sum() for (batch,) in loader]
    assert [s.item() for s in sums] == [6.0, 22.0]


def test_errors_name_what_to_do(device):
    with pytest.raises(genie.Error, match="start genie-node"):
        genie.connect("unix:/nowhere/node.sock", connect_timeout_ms=500)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=device) + torch.ones(2)
    with pytest.raises(RuntimeError, match="strided"):
        torch.ones(2, 2, device=device).to_sparse().cpu()
    with pytest.raises(RuntimeError, match=r"no session serves remote_accelerator:15.*genie\.connect\(\)"):
        torch.ones(2, device="remote_accelerator:15")
    with pytest.raises(TypeError, match="remote_accelerator"):
        genie.LazyTensor()


def test_eager_mode_raises_at_the_line(device):
    index = torch.tensor([5], device=device)
    table = torch.ones(3, device=device)
    late = table.index_select(0, index)
    with pytest.raises(RuntimeError, match="index"):
        late.cpu()
    genie.set_lazy(False)
    try:
        with pytest.raises(RuntimeError, match="index"):
            table.index_select(0, index)
    finally:
        genie.set_lazy(True)


def test_time_is_split_by_operator(device):
    x = torch.ones(2, 3).to(device)
    genie.set_timing(True)
    (x * 2).cos().cpu()
    genie.set_timing(False)
    time = genie.stats().time_by_op["aten::cos"]
    assert time.calls >= 1
    assert time.total_ns == time.dispatch_ns + time.shape_ns + time.record_ns + time.plan_ns > 0
    assert "aten::cos" in str(genie.stats())


def test_the_fast_path_of_a_transformer_is_the_cpus(device):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    remote = copy.deepcopy(encoder).to(device)
    x = torch.randn(2, 16, 64)
    with torch.no_grad():
        assert torch.equal(remote(x.to(device)).cpu(), encoder(x))
        before = genie.stats().captured_by_op.get("aten::_transformer_encoder_layer_fwd", 0)
        scripted = torch.jit.script(encoder)
        assert torch.equal(torch.jit.script(remote)(x.to(device)).cpu(), scripted(x))
        assert genie.stats().captured_by_op["aten::_transformer_encoder_layer_fwd"] == before + 2


def test_tensors_and_modules_move_by_name(device):
    x = torch.ones(3)
    assert x.remote_accelerator().device == device and x.remote_accelerator().is_remote_accelerator
    assert torch.nn.Linear(2, 2).remote_accelerator().weight.device == device


def test_an_import_alone_connects_to_nothing():
    program = textwrap.dedent("""
        import genie, torch
        assert genie.stats().submissions == 0
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
        print("fine")
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "fine\n" and "no session was opened" not in ran.stderr


def test_fake_tensors_and_autocast_need_no_session():
    program = textwrap.dedent("""
        import genie, torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode():
            x = torch.empty(2, 4, device="remote_accelerator:0")
            assert torch.nn.functional.linear(x, torch.empty(5, 4, device=x.device)).shape == (2, 5)
            with torch.autocast("remote_accelerator", dtype=torch.bfloat16):
                assert (x @ x.T).dtype == torch.bfloat16
        with torch.autocast("remote_accelerator", dtype=torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        print("fine")
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout == "fine\n" and "no session was opened" not in ran.stderr, ran.stderr


def test_compile_says_how_to_go_on(device):
    compiled = torch.compile(lambda x: (x * 2).relu())
    x = torch.randn(4, device=device)
    try:
        assert torch.equal(compiled(x).cpu(), (x.cpu() * 2).relu())
    except Exception as error:
        assert "remote_accelerator" in str(error)
        pytest.fail(f"torch.compile neither works nor says what to do: {error}")


def test_autocast_for_the_device(device):
    x, w = torch.randn(3, 4), torch.randn(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = x @ w
    with torch.autocast("remote_accelerator", dtype=torch.bfloat16):
        got = x.to(device) @ w.to(device)
    assert got.dtype == torch.bfloat16 and torch.equal(got.cpu(), expected)


def test_hooks_double_backward_and_checkpointing(device):
    def run(where):
        x = torch.linspace(-1, 1, 6).to(where).requires_grad_()
        seen = []
        x.register_hook(lambda grad: seen.append(grad.detach().cpu()))
        y = torch.utils.checkpoint.checkpoint(lambda t: (t.sin() * t).exp(), x, use_reentrant=False)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        first.pow(2).sum().backward()
        return [first.detach().cpu(), x.grad.cpu(), *seen]

    assert all(torch.equal(a, b) for a, b in zip(run("cpu"), run(device)))


def test_a_forked_child_is_told(device):
    torch.ones(1, device=device).cpu()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device=device).cpu()
            answer = b"ran"
        except Exception as error:
            answer = str(error).encode()
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 4096).decode()
    os.waitpid(child, 0)
    assert "fork" in answer


def test_numbers_on_the_cpu_mix(device):
    x = torch.arange(3.0, device=device)
    assert (x * torch.tensor(2.0)).cpu().tolist() == [0, 2, 4]
    assert torch.where(torch.tensor(True), x, x + 1).cpu().tolist() == [0, 1, 2]
    assert torch.where(torch.tensor(False), x, torch.tensor(5.0)).cpu().tolist() == [5, 5, 5]
    assert (x * torch.tensor(True)).dtype == torch.float32


# Last: from the first finished capture on, genie.graph() gives the latest.


def test_a_capture_lifts_a_model_that_was_never_moved(session, device):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x, target = torch.randn(6, 4), torch.randint(2, (6,))

    def step(net):
        loss = torch.nn.functional.cross_entropy(net(x), target)
        loss.backward()
        return loss

    eager = copy.deepcopy(model)
    expected = step(eager)
    with genie.capture() as captured:
        assert genie.is_capturing()
        loss = step(model)
    assert not genie.is_capturing()
    assert loss.device == device and torch.equal(loss.cpu(), expected)
    for (name, mine), other in zip(model.named_parameters(), eager.parameters()):
        assert mine.grad.device.type == "cpu" and torch.equal(mine.grad, other.grad), name
    for (name, mine), other in zip(model.named_buffers(), eager.buffers()):
        assert mine.device.type == "cpu" and torch.equal(mine, other), name
    ops = [node.op for node in captured.graph().nodes]
    assert ops.count("aten::relu") == 1 and len(genie.graph()) == len(ops) == len(genie.get_graph())
    assert captured.graph().omitted == 0


def test_factories_in_a_capture(device):
    array = numpy.arange(3.0, dtype=numpy.float32)
    with genie.capture():
        made = {
            "ones": torch.ones(3),
            "tensor": torch.tensor([1.0, 2.0, 3.0]),
            "as_tensor": torch.as_tensor([1.0, 2.0, 3.0]),
            "normal": torch.normal(0.0, 1.0, (3,)),
            "randperm": torch.randperm(3),
            "like": torch.ones_like(torch.ones(3, device="cpu")),
            "randint_like": torch.randint_like(torch.ones(3, device="cpu"), 5),
            "new": torch.ones(3, device="cpu").new_zeros(3),
            "numpy": torch.from_numpy(array) + 0,
        }
        for explicit in (
            torch.tensor([1.0], device="cpu"),
            torch.ones(2, device="cpu"),
            torch.zeros_like(array_tensor := torch.from_numpy(array), device="cpu"),
            array_tensor,
            torch.randn(2, generator=torch.Generator()),
            torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64, device="cpu"), [1.0], (2,)),
        ):
            assert explicit.device.type == "cpu"
        with torch.device("cpu"):
            assert torch.ones(2).device.type == "cpu"
        assert torch.ones(2).device == device
        array[0] = 5
        assert (torch.from_numpy(array) * 2).cpu().tolist() == [10, 2, 4]
    for name, value in made.items():
        assert value.device == device, name
    assert made["numpy"].cpu().tolist() == [0, 1, 2]
    assert made["randperm"].cpu().sort().values.tolist() == [0, 1, 2]
    assert torch.ones(1).device.type == "cpu" and torch.tensor([1.0]).device.type == "cpu"


def test_captures_nest_and_end_with_errors(device):
    weight = torch.full((2, 2), 2.0)
    with pytest.raises(ZeroDivisionError), genie.capture() as outer:
        weight.exp()
        with genie.capture(device) as inner:
            weight.neg().cpu()
            assert [node.op for node in inner.graph().nodes] == ["aten::neg"]
        weight.sin()
        1 / 0
    assert not genie.is_capturing()
    assert [node.op for node in outer.graph().nodes] == ["aten::exp", "aten::neg", "aten::sin"]
    with pytest.raises(RuntimeError, match="entered before"), outer:
        pass
    with pytest.raises(RuntimeError, match="two devices"):
        weight + torch.ones(2, 2, device=device)


def test_optimizers_and_writes_from_python_in_a_capture(device):
    torch.manual_seed(2)
    model = torch.nn.Linear(3, 2)
    eager = copy.deepcopy(model)
    x = torch.randn(5, 3)

    def train(net):
        for kind in (torch.optim.SGD, torch.optim.AdamW):
            optimizer = kind(net.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                net(x).pow(2).mean().backward()
                optimizer.step()
        net.weight.data.clamp_(max=0.3)
        net.weight.detach().numpy()[0, 0] = 0.25
        return net(x)

    expected = train(eager)
    with genie.capture():
        y = train(model)
    assert torch.equal(y.cpu(), expected)
    assert torch.equal(model.weight, eager.weight)
    print(model.weight)


class _Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.tensor([float(i)]) * torch.ones(2) + torch.nn.functional.relu(torch.full_like(torch.ones(2), i))


def test_workers_that_load_data_in_a_capture(device):
    with genie.capture():
        weight = torch.ones(2, device="cpu")
        before = weight + 1
        loader = torch.utils.data.DataLoader(_Numbers(), batch_size=3, num_workers=2, multiprocessing_context="fork")
        seen = [(batch.device.type, (batch * weight).cpu().tolist()) for batch in loader]
        assert before.cpu().tolist() == [2, 2]
    assert seen == [("cpu", [[0, 0], [2, 2], [4, 4]]), ("cpu", [[6, 6], [8, 8], [10, 10]])]


def test_threads_of_a_capturing_program(device):
    seen = []
    with genie.capture():
        thread = threading.Thread(target=lambda: seen.append((genie.is_capturing(), torch.ones(1).device.type)))
        thread.start()
        thread.join()
    assert seen == [(False, "cpu")]
