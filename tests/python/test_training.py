"""Training as Python has it: every step's loss and all weights are the CPU's. GENIE_TEST_NODE=program: against a genie-node
process, else embedded. What libtorch's C++ has too is in tests/frontend/training_test.cc."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import genie
from conftest import on_both


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def train(device, optimizer, steps=5, model=None, loss_of=None):
    torch.manual_seed(0)
    model = (model or (lambda: nn.Sequential(Block(16, 4), nn.Linear(16, 3))))().to(device)
    data, target = torch.randn(4, 5, 16), torch.randint(0, 3, (4, 5))
    step = optimizer(model.parameters())
    torch.manual_seed(1)
    out = []
    for _ in range(steps):
        step.zero_grad()
        loss = loss_of(model, data.to(device)) if loss_of else None
        if loss is None:
            loss = nn.functional.cross_entropy(model(data.to(device)).flatten(0, 1), target.flatten().to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=True)
        step.step()
        out.append(loss)
    state = [value for values in step.state_dict()["state"].values() for value in values.values()]
    return out + list(model.parameters()) + [value for value in state if isinstance(value, torch.Tensor)]


OPTIMIZERS = {
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd_loop": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False, fused=False),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True, fused=False),
    "adam_loop": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=False, fused=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, fused=False),
    "adamw_loop": lambda p: torch.optim.AdamW(p, lr=0.01, maximize=True, foreach=False, fused=False),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, foreach=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, foreach=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_five_steps_of_a_transformer(device, optimizer):
    on_both(device, lambda where: train(where, optimizer))


def test_a_schedule_and_an_average(device):
    def run(where):
        torch.manual_seed(0)
        model = nn.Linear(16, 3).to(where)
        step = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(step, 5)
        average = torch.optim.swa_utils.AveragedModel(model)
        data = torch.randn(4, 16).to(where)
        for _ in range(5):
            step.zero_grad()
            model(data).pow(2).mean().backward()
            step.step()
            schedule.step()
            average.update_parameters(model)
        return [*model.parameters(), *average.module.parameters()]

    on_both(device, run)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_draws_the_same_dropout_again(device, reentrant):
    def run(where):
        torch.manual_seed(0)
        blocks = nn.Sequential(Block(16, 4), Block(16, 4)).to(where)
        x = torch.randn(2, 5, 16).to(where).requires_grad_()
        out = []
        for kept in (False, True):
            torch.manual_seed(1)
            y = blocks(x) if kept else checkpoint(blocks, x, use_reentrant=reentrant)
            grads = torch.autograd.grad(y.pow(2).sum(), [x, *blocks.parameters()]) if not reentrant or kept else None
            if grads is None:
                y.pow(2).sum().backward()
                grads = [x.grad, *[p.grad for p in blocks.parameters()]]
            out.append([y, *grads])
        for with_checkpoint, without in zip(*out):
            assert torch.equal(with_checkpoint.detach().cpu(), without.detach().cpu())
        sequence = checkpoint_sequential(blocks, 2, x, use_reentrant=False)
        return out[0] + [sequence]

    on_both(device, run)


def test_module_hooks(device):
    def run(where):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).to(where)
        seen = []
        model[0].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
        model[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output) or output + 1)
        model[0].register_full_backward_hook(lambda _module, grads, _outputs: seen.extend(g for g in grads if g is not None))
        model[2].weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
        x = torch.randn(3, 4).to(where).requires_grad_()
        model(x).sum().backward()
        assert len(seen) == 3
        return [*seen, x.grad]

    on_both(device, run)


def test_saved_tensors_may_wait_on_the_cpu(device):
    def run(where):
        x = torch.linspace(-1, 1, 6).to(where).requires_grad_()
        with torch.autograd.graph.save_on_cpu():
            y = (x.sin() * x.exp()).sum()
        y.backward()
        return [y, x.grad]

    on_both(device, run)


def test_double_backward_of_recurrent_and_convolution(device):
    def run(where):
        torch.manual_seed(0)
        conv, lstm = nn.Conv1d(3, 4, 3, padding=1).to(where), nn.LSTM(4, 5, batch_first=True).to(where)
        x = torch.randn(2, 3, 6).to(where).requires_grad_()
        y, _ = lstm(conv(x).transpose(1, 2))
        (grad,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        grad.pow(2).sum().backward()
        return [y, grad, x.grad, *[p.grad for p in (*conv.parameters(), *lstm.parameters())]]

    on_both(device, run)


def test_a_resumed_training_is_the_uninterrupted_one(device, tmp_path):
    def steps(model, optimizer, where, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(2, 6, device=where)).pow(2).mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.3), nn.Linear(4, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True)
    steps(model, optimizer, device, 2)
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.remote_accelerator.get_rng_state(),
        },
        tmp_path / "checkpoint.pt",
    )
    again = copy.deepcopy(model)
    steps(model, optimizer, device, 3)

    kept = torch.load(tmp_path / "checkpoint.pt", map_location=device)
    resumed = torch.optim.AdamW(again.parameters(), lr=0.1, foreach=True)
    again.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["optimizer"])
    torch.remote_accelerator.set_rng_state(kept["random"].cpu())
    steps(again, resumed, device, 3)
    for one, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(one.cpu(), other.cpu())


def test_autocast_trains(device):
    def run(where):
        kind = torch.device(where).type

        def loss_of(model, data):
            with torch.autocast(kind, dtype=torch.bfloat16):
                return model(data).float().pow(2).mean()

        model = lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))  # noqa: E731
        return train(where, lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), model=model, loss_of=loss_of)

    on_both(device, run)


def test_a_step_is_one_submission(device):
    torch.manual_seed(0)
    model = nn.Sequential(Block(16, 4), nn.Linear(16, 3)).to(device)
    step = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True, fused=False)
    data = torch.randn(2, 5, 16)

    def once():
        step.zero_grad()
        loss = model(data.to(device)).pow(2).mean()
        loss.backward()
        step.step()
        return loss.item()

    for _ in range(3):
        once()
    before = genie.stats()
    for _ in range(3):
        once()
    after = genie.stats()
    assert after.flushes - before.flushes == 3
    assert after.templates_registered == before.templates_registered
    assert after.client_fallbacks == 0


def test_a_shared_weight_is_trained_in_a_copy_of_its_own(address):
    """Two sessions bring one model: the second one's weights do not travel, and its steps are its own."""
    torch.manual_seed(3)
    model = nn.Linear(1024, 512)
    data = torch.randn(8, 1024)

    def step(device):
        trained = copy.deepcopy(model).to(device)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        trained(data.to(device)).square().mean().backward()
        optimizer.step()
        return [value.detach().cpu() for value in trained.parameters()]

    with genie.connect(address) as first, genie.connect(address) as second:
        kept = copy.deepcopy(model).to(first.device())
        first.synchronize()
        there = step(second.device())
        known = second.stats().upload_known_bytes
        assert known == (0 if address == "embedded:" else model.weight.nbytes)
        for one, other in zip(step("cpu"), there):
            assert torch.equal(one, other)
        assert torch.equal(kept.weight.cpu(), model.weight)
