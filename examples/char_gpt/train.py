#!/usr/bin/env python3
"""Trains char_gpt, a character-level GPT of 0.8 million parameters, and saves it as TorchScript.

The text is what every Debian system ships in /usr/share/common-licenses. One run is decided by --seed, and takes
about a quarter of an hour on one core:

    .venv/bin/python examples/char_gpt/train.py             # trains, checks, writes char_gpt.pt beside this file
    .venv/bin/python examples/char_gpt/train.py --check     # checks the file that is there

The saved module has
    forward(tokens[B, T] int64, pos: int, cache: List[Tensor]) -> (logits[B, T, V], cache)
        pos is the number of tokens that the cache already holds; an empty list starts a sequence. The new cache holds
        a key and a value for each layer, [B, heads, pos + T, width / heads].
    encode(text) -> int64[1, T], decode(int64[T]) -> text, context: int, vocab: str
"""

import argparse
import math
import os
import sys
import time
import warnings
from typing import List, Tuple

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch  # noqa: E402
import torch.nn.functional as F
from torch import Tensor, nn

LICENSES = "/usr/share/common-licenses"
HERE = os.path.dirname(os.path.abspath(__file__))
SIZE_LIMIT = 4 * 1000 * 1000


class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a residual path."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, past: List[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).split(width, dim=2)
        q = q.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        k = k.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        if len(past) == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        else:
            k = torch.cat([past[0], k], dim=2)
            v = torch.cat([past[1], v], dim=2)
            if length == 1:
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                total = k.size(2)
                mask = torch.ones(length, total, dtype=torch.bool, device=x.device).tril(total - length)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.project(y.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.gelu(self.up(self.norm_feed(x))))
        return x, k, v


class CharGpt(nn.Module):
    vocab: str
    context: int

    def __init__(self, vocab: str, layers: int, width: int, heads: int, context: int):
        super().__init__()
        self.vocab = vocab
        self.context = context
        self.embed = nn.Embedding(len(vocab), width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(vocab), bias=False)
        self.apply(self.initialise)
        # Residual paths add up; their last projections start smaller with depth.
        for block in self.blocks:
            for last in (block.project, block.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * layers))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor, pos: int, cache: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        length = tokens.size(1)
        if pos + length > self.context:
            raise ValueError("char_gpt: the sequence is longer than the context of the model")
        x = self.embed(tokens) + self.position.weight[pos : pos + length]
        grown: List[Tensor] = []
        index = 0
        for block in self.blocks:
            past: List[Tensor] = []
            if len(cache) > 0:
                past = [cache[2 * index], cache[2 * index + 1]]
            x, k, v = block(x, past)
            grown.append(k)
            grown.append(v)
            index += 1
        return self.head(self.norm(x)), grown

    @torch.jit.export
    def encode(self, text: str) -> Tensor:
        ids: List[int] = []
        for c in text:
            found = self.vocab.find(c)
            if found < 0:
                raise ValueError("char_gpt: a character is not in the vocabulary: " + c)
            ids.append(found)
        return torch.tensor([ids], dtype=torch.long)

    @torch.jit.export
    def decode(self, tokens: Tensor) -> str:
        text = ""
        for i in range(tokens.numel()):
            text += self.vocab[int(tokens[i])]
        return text


def load_text() -> str:
    """All license texts, without margins and page layout: what is left is words and paragraphs."""
    if not os.path.isdir(LICENSES):
        sys.exit(f"train.py: {LICENSES} is not there: this script reads the license texts that Debian ships")
    parts = []
    for name in sorted(os.listdir(LICENSES)):
        path = os.path.join(LICENSES, name)
        if os.path.islink(path):
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [" ".join(line.split()) for line in file.read().replace("\f", "\n").split("\n")]
        text = "\n".join(lines)
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        parts.append(text.strip() + "\n\n")
    return "".join(c for c in "".join(parts) if c == "\n" or 32 <= ord(c) < 127)


def train(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    text = load_text()
    vocab = "".join(sorted(set(text)))
    data = torch.tensor([vocab.index(c) for c in text])
    model = CharGpt(vocab, args.layers, args.width, args.heads, args.context)
    count = sum(p.numel() for p in model.parameters())
    print(f"text: {len(text)} characters, {len(vocab)} different; model: {count} parameters", flush=True)

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.98))
    start = time.monotonic()
    average = math.log(len(vocab))
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / 50)
        rate = args.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(data) - args.context, (args.batch,))
        rows = torch.stack([data[i : i + args.context + 1] for i in at])
        logits, _ = model(rows[:, :-1], 0, [])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average += 0.05 * (loss.item() - average)
        if step % 25 == 24 or step + 1 == args.steps:
            took = time.monotonic() - start
            print(f"step {step + 1}/{args.steps}: loss {average:.3f}, {(step + 1) / took:.2f} steps/s", flush=True)
    return model


@torch.inference_mode()
def generate(model, prompt: str, count: int, temperature: float, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    tokens, cache, pos, out = model.encode(prompt), [], 0, []
    for _ in range(count):
        logits, cache = model(tokens, pos, cache)
        pos += tokens.size(1)
        last = logits[:, -1]
        if temperature == 0:
            tokens = last.argmax(dim=-1, keepdim=True)
        else:
            tokens = torch.multinomial(torch.softmax(last / temperature, dim=-1), 1, generator=generator)
        out.append(int(tokens))
    return model.decode(torch.tensor(out))


@torch.inference_mode()
def check(path: str) -> None:
    """The file loads, is small, generates, and says the same with its cache as without."""
    size = os.path.getsize(path)
    if size > SIZE_LIMIT:
        sys.exit(f"train.py: {path} has {size} bytes, more than {SIZE_LIMIT}")
    model = torch.jit.load(path).eval()
    tokens = model.encode("This License applies to any program or other work")
    whole, _ = model(tokens, 0, [])
    steps, cache = [], []
    for i in range(tokens.size(1)):
        logits, cache = model(tokens[:, i : i + 1], i, cache)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)
    head, cache = model(tokens[:, :20], 0, [])
    tail, _ = model(tokens[:, 20:], 20, cache)
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, rtol=1e-4, atol=1e-4)
    print(f"{path}: {size} bytes; with the cache as without it")
    for temperature in (0.0, 0.5, 0.8):
        print(f"--- temperature {temperature}")
        print("This License" + generate(model, "This License", 200, temperature, 7))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train char_gpt and save it as TorchScript.")
    parser.add_argument("--out", default=os.path.join(HERE, "char_gpt.pt"))
    parser.add_argument("--check", action="store_true", help="only check the file that is there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check:
        model = train(args).eval()
        torch.jit.script(model).save(args.out)
    check(args.out)


if __name__ == "__main__":
    main()
