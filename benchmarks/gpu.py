"""On a GPU: products against compiled gradients, memory, eigenvalues beside PyHessian, bfloat16.

    python -m benchmarks.gpu [--minutes 9] [--device cuda] [--tiny]

It asks for nothing, writes `benchmarks/results/gpu.md` after each section, and skips the sections
for which no time is left, so that it can run unattended where a GPU is lent for ten minutes.
`--tiny` runs all of it on small networks, also on a CPU, to see that it works; nothing is written.

Targets: a product costs at most 2.2 compiled gradients and 1.5 times the memory of a gradient, one
with the Gauss-Newton matrix 1.8 gradients; the eigenvalues agree with PyHessian's within residuals.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatkit import HessianOperator, Objective
from flatkit.devices import ordinary_torch
from flatkit.hessian.gauss_newton import GaussNewtonOperator
from flatkit.integrations.pyhessian import pyhessian_eigenvalues
from flatkit.models.resnet import build_resnet18
from flatkit.objective.noise import measure_noise
from flatkit.spectrum.lanczos import lanczos

_RESULTS = Path(__file__).parent / "results" / "gpu.md"


class Subject(NamedTuple):
    """What is measured: a name, a model, a loss by name, and samples."""

    name: str
    model: nn.Module
    loss: str
    data: tuple[Tensor, Tensor]


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.way = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.short = nn.Sequential()
        if stride > 1 or channels != out:
            self.short = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes out."""
        return F.relu(self.way(x) + self.short(x))


def resnet50(width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> Any:
    """Return a ResNet-50, or a narrower one, for images of any size."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        for number in range(count):
            stride = 2 if stage and number == 0 else 1
            layers.append(Bottleneck(channels, width * 2**stage, stride))
            channels = 4 * width * 2**stage
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


class Layer(nn.Module):
    """Attention and a perceptron, each normalised before and added."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes out, [B, T, width]."""
        shape = (x.shape[0], x.shape[1], self.heads, -1)
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A transformer of the shape of nanoGPT's: 124 million weights with 50,304 words."""

    def __init__(self, words: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores [B, T, words]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.layers(self.words(tokens) + self.places(places))))


class ViT(nn.Module):
    """A ViT-S/4 for images of 32 pixels."""

    def __init__(self, width: int, layers: int, heads: int, classes: int = 10) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.Sequential(*(Layer(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, classes]."""
        x = self.cut(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


def images(count: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return random images: the time does not depend on what they show."""
    return torch.randn(count, 3, size, size), torch.randint(classes, (count,))


def products(tiny: bool) -> Iterator[Subject]:
    """Yield the networks whose products are timed, over one batch."""
    torch.manual_seed(0)
    if tiny:
        yield Subject("resnet", resnet50(4, (1, 1)), "cross_entropy", images(4, 32, 1000))
        words, size = 5000, (2, 16)
        gpt = GPT(words, 16, 16, 2, 2)
    else:
        yield Subject("ResNet-50, batch 64", resnet50(), "cross_entropy", images(64, 224, 1000))
        words, size = 50304, (8, 512)
        gpt = GPT(words, 512, 768, 12, 12)
    tokens = torch.randint(words, size)
    yield Subject(f"GPT {size}", gpt, "token_cross_entropy", (tokens, tokens.roll(-1, 1)))


def spectra(tiny: bool) -> Iterator[Subject]:
    """Yield the networks whose eigenvalues are found, over 5,000 images."""
    torch.manual_seed(0)
    count = 64 if tiny else 5000
    resnet = build_resnet18(in_shape=(3, 32, 32), classes=10, width=4 if tiny else 64)
    yield Subject("ResNet-18", resnet, "cross_entropy", images(count, 32, 10))
    vit = ViT(16, 1, 2) if tiny else ViT(384, 12, 6)
    yield Subject("ViT-S/4", vit, "cross_entropy", images(count, 32, 10))


class Clock:
    """Times work on a device, and its memory.

    Args:
        device: where it is done.
        rounds: of each measurement, of which the median counts.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds = device, rounds

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long work takes, once it is warm."""
        work()
        times: list[float] = []
        for _ in range(self.rounds):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self, work: Callable[[], object]) -> float:
        """Return the bytes that work holds at most beside what is there; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        work()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def plain_gradient(
    subject: Subject, device: torch.device, *, compiled: bool
) -> Callable[[], object]:
    """Return a gradient by torch alone, the floor against which all else is held."""
    model = subject.model.to(device).eval()
    inputs, targets = (part.to(device) for part in subject.data)

    def loss() -> Tensor:
        outputs = model(inputs)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    value = torch.compile(loss) if compiled else loss
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(value(), parameters)


def product_lines(subject: Subject, clock: Clock, *, compiled: bool) -> Iterator[str]:
    """Yield a row for each way to multiply, in gradients."""
    device = clock.device
    with ordinary_torch():  # without TF32, as flatkit computes
        eager = clock.seconds(plain_gradient(subject, device, compiled=False))
        memory = clock.peak(plain_gradient(subject, device, compiled=False))
        floor = eager
        if compiled:
            floor = clock.seconds(plain_gradient(subject, device, compiled=True))
    ratio = f"{1e3 * eager:.1f} | {eager / floor:.2f}"
    yield f"| {subject.name} | gradient, torch | float32 | {ratio} | 1 | |"
    if compiled:
        yield f"| {subject.name} | gradient, compiled | float32 | {1e3 * floor:.1f} | 1 | | |"
    size = len(subject.data[0])
    for dtype in (torch.float32, torch.bfloat16):
        objective = Objective(
            subject.model, subject.loss, subject.data, device=device, dtype=dtype, chunk_size=size
        )
        vector = torch.randn_like(objective.theta)
        named = str(dtype).removeprefix("torch.")
        ways: dict[str, tuple[Callable[[], object], str]] = {
            "gradient": (objective.gradient, ""),
        }
        hessian, gauss = HessianOperator(objective), GaussNewtonOperator(objective)
        ways[f"product, {hessian.choice.engine}"] = (partial(hessian.matvec, vector), "2.2")
        ways[f"Gauss-Newton, {gauss.choice.engine}"] = (partial(gauss.matvec, vector), "1.8")
        for what, (work, target) in ways.items():
            taken, held = clock.seconds(work), clock.peak(work)
            share = f"{held / memory:.2f}" if memory else "-"
            yield (
                f"| {subject.name} | {what} | {named} | {1e3 * taken:.1f} | {taken / floor:.2f} | "
                f"{share} | {target} |"
            )
        del hessian, gauss, objective, ways


def spectrum_lines(subject: Subject, clock: Clock, left: Callable[[], float]) -> Iterator[str]:
    """Yield a row for each way to the largest eigenvalue."""
    for dtype in (torch.float32, torch.bfloat16):
        named = str(dtype).removeprefix("torch.")
        objective = Objective(
            subject.model, subject.loss, subject.data, device=clock.device, dtype=dtype
        )
        start = time.perf_counter()
        found = lanczos(
            HessianOperator(objective),
            tolerance=1e-3,
            max_matvecs=60,
            generator=torch.Generator().manual_seed(0),
        )
        noise = measure_noise(objective) if objective.narrow is not None else None
        said = "" if noise is None else f"loss off by at most {noise.loss:.1e}"
        yield (
            f"| {subject.name} | flatkit, {named} | {float(found.value[0]):.5g} | "
            f"{float(found.error[0]):.1e} | {found.matvecs} | {time.perf_counter() - start:.1f} | "
            f"{found.status} {said} |"
        )
        if dtype == torch.float32 and left() > 120:
            start = time.perf_counter()
            theirs = pyhessian_eigenvalues(objective, k=1, seed=0)
            yield (
                f"| {subject.name} | PyHessian | {float(theirs.value[0]):.5g} | "
                f"{float(theirs.error[0]):.1e} | {theirs.matvecs} | "
                f"{time.perf_counter() - start:.1f} | |"
            )


def main() -> None:
    """Run what fits into the time, and write after each section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device, started = torch.device(args.device), time.monotonic()

    def left() -> float:
        return 60 * args.minutes - (time.monotonic() - started)

    clock = Clock(device, rounds=1 if args.tiny else 5)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    lines = [
        f"# On a GPU: {name}, torch {torch.__version__}",
        "",
        "`python -m benchmarks.gpu`. In compiled gradients by torch, and memory in eager ones.",
        "",
        "| network | what | dtype | ms | compiled gradients | memory | target |",
        "|---|---|---|--:|--:|--:|--:|",
    ]

    def add(new: Iterator[str]) -> None:
        for line in new:
            print(line, flush=True)
            lines.append(line)
            if not args.tiny:
                _RESULTS.write_text("\n".join(lines) + "\n", "utf-8")

    for subject in products(args.tiny):
        if left() > 150 or args.tiny:
            add(product_lines(subject, clock, compiled=not args.tiny))
    head = ["", "Largest eigenvalue over 5,000 images, to 1e-3:", ""]
    head += ["| network | by | λmax | error | products | s | |", "|---|---|--:|--:|--:|--:|---|"]
    add(iter(head))
    for subject in spectra(args.tiny):
        if left() > 90 or args.tiny:
            add(spectrum_lines(subject, clock, left))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
