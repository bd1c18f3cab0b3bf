"""Modes and tensors of Python's that stand between a program and the device: they see what they see on the CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def model(device):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).to(device)


def test_a_mode_sees_the_cpus_operators(device):
    def seen(where):
        net, x = model(where), torch.ones(3, 4, device=where)
        with Names() as names:
            net(x).sum().backward()
        return names.seen

    assert seen(device) == seen("cpu")


def test_flops_are_the_cpus(device):
    def flops(where):
        net, x = model(where), torch.ones(3, 4, device=where)
        with FlopCounterMode(display=False) as counter:
            net(x).sum().backward()
        return counter.get_total_flops()

    assert flops(device) == flops("cpu") > 0


def test_fake_tensors_of_the_device(device):
    with FakeTensorMode():
        weight = torch.empty(5, 4, device=device, requires_grad=True)
        out = torch.nn.functional.linear(torch.empty(2, 4, device=device), weight)
        assert out.shape == (2, 5) and out.device == device
        out.sum().backward()
        assert weight.grad.shape == (5, 4)


def test_fake_tensors_through_a_recurrent_layer(device):
    layer = torch.nn.LSTM(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.nn.LSTM(4, 3, device=device)
        out, _ = fake(torch.empty(2, 1, 4, device=device))
        assert out.shape == layer(torch.empty(2, 1, 4))[0].shape


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("grad", [False, True])
def test_compile_gives_the_cpus_numbers(device, backend, grad):
    torch._dynamo.reset()
    net, reference = model(device), model("cpu")
    x = torch.randn(3, 4)
    compiled = torch.compile(net, backend=backend)
    with torch.set_grad_enabled(grad):
        out = compiled(x.to(device))
    torch.testing.assert_close(out.detach().cpu(), reference(x).detach(), rtol=1e-6, atol=1e-6)
    if grad:
        out.sum().backward()
        reference(x).sum().backward()
        torch.testing.assert_close(net[0].weight.grad.cpu(), reference[0].weight.grad, rtol=1e-6, atol=1e-6)


def test_export(device):
    net = model(device)
    x = torch.ones(3, 4, device=device)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x).cpu(), net(x).cpu())


@pytest.mark.parametrize("differentiate", ["weight", "input"])
def test_transforms_differentiate_layers(device, differentiate):
    """torch.func wraps operands in tensors without storage: what is captured whole elsewhere goes by its pieces there."""

    def derivatives(where):
        torch.manual_seed(1)
        x, w, b = (torch.randn(*shape).to(where) for shape in ((3, 4), (4, 4), (4,)))

        def layers(x, w):
            return torch.nn.functional.layer_norm(torch.nn.functional.linear(x, w, b), (4,), b).pow(2).sum()

        argument = 1 if differentiate == "weight" else 0
        first = torch.func.grad(layers, argnums=argument)(x, w)
        _, tangent = torch.func.jvp(lambda x: layers(x, w), (x,), (torch.ones_like(x),))
        each = torch.func.vmap(torch.func.grad(lambda x, w: layers(x.unsqueeze(0), w), argnums=argument), (0, None))(x, w)
        return [value.cpu() for value in (first, tangent, each)]

    for ours, theirs in zip(derivatives(device), derivatives("cpu")):
        torch.testing.assert_close(ours, theirs)
