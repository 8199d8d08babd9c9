"""What a product takes: engines by the clock and by count, and the gradients of wide convolutions.

Run with `python -m benchmarks.products [SECTION ...]`, the sections being engines, patches and
choice; writes these of benchmarks/results/products.md. Times are those of the processor, on one
thread, so that a machine may be shared; the least of interleaved rounds. Needs
cifar10_train_first10k.npz in $FLATKIT_DATA or ../shared/data.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import save_section
from flatkit import Objective
from flatkit.hessian.autotune import choose
from flatkit.hessian.layers.patches import weight_gradient
from flatkit.hessian.products import EngineName, build_engine
from flatkit.hessian.work import Work
from flatkit.models import MODELS

TITLE = "Products"
_CHOICES = 20
ENGINES: tuple[EngineName, ...] = ("layers", "double_backward")


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return normalised CIFAR-10 images and classes."""
    folder = Path(os.environ.get("FLATKIT_DATA", "../shared/data"))
    with np.load(folder / "cifar10_train_first10k.npz") as data:
        x, y = data["x"][:count], data["y"][:count]
    return (torch.from_numpy(x).float() / 255 - 0.47) / 0.25, torch.from_numpy(y).long()


def least(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each, after a round of warm-up."""
    found = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            started = time.process_time()
            run()
            if turn:
                found[name] = min(found[name], time.process_time() - started)
    return found


def objective(name: str, count: int) -> tuple[nn.Module, Objective]:
    """Return an untrained network in eval mode, and its loss over some images at once."""
    torch.manual_seed(0)
    data = images(count)
    model = MODELS.build(name, in_shape=(3, 32, 32), classes=10).eval()
    return model, Objective(model, "cross_entropy", data, chunk_size=count, examine=False)


def engines() -> list[str]:
    """Measure and count products in gradients of which the channels lie last."""
    lines = [
        "| network, images | gradient, contiguous | layers (counted) | double backward (counted) "
        "| layers, in contiguous gradients |",
        "|---|---|---|---|---|",
    ]
    for name, count, rounds in (("cnn", 128, 5), ("resnet20", 128, 4), ("resnet18", 32, 2)):
        model, loss = objective(name, count)
        x, y = images(count)
        vector, chunk = torch.randn(1, loss.num_parameters), next(loss.chunks())
        own = list(model.parameters())

        def bare(model=model, x=x, y=y, own=own) -> None:
            torch.autograd.grad(cross_entropy(model(x), y), own)

        runs: dict[str, Callable[[], object]] = {"bare": bare, "gradient": loss.gradient}
        for engine in ENGINES:
            prepared = build_engine(engine, loss, loss.theta).prepare(chunk)
            runs[engine] = partial(prepared.products, vector)
        seconds = least(runs, rounds)
        work = {key: _work(run) for key, run in runs.items()}
        cells = [f"{seconds['bare'] / seconds['gradient']:.2f}"]
        for engine in ENGINES:
            counted = work[engine] / work["gradient"]
            cells.append(f"{seconds[engine] / seconds['gradient']:.2f} ({counted:.2f})")
        cells.append(f"{seconds['layers'] / seconds['bare']:.2f}")
        lines.append(f"| {name}, {count} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def patches() -> list[str]:
    """Measure the gradient of a 3x3 convolution's weight, by oneDNN and by patches."""
    lines = ["| channels, image | oneDNN ms | patches ms | ratio |", "|---|---|---|---|"]
    same = [1, 1]
    settings = (same, same, same, False, [0, 0], 1, [False, True, False])
    for channels, side in ((16, 32), (64, 32), (64, 8), (128, 16), (256, 8), (512, 4)):
        shape = (32, channels, side, side)
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        g, w = torch.randn_like(x), torch.randn(channels, channels, 3, 3)
        seconds = least(
            {
                "onednn": partial(torch.ops.aten.convolution_backward, g, x, w, None, *settings),
                "patches": partial(weight_gradient, [(g, x)], [3, 3], same, same, same),
            },
            rounds=8,
        )
        one, other = seconds["onednn"] * 1e3, seconds["patches"] * 1e3
        lines.append(f"| {channels}, {side}x{side} | {one:.1f} | {other:.1f} | {other / one:.2f} |")
        print(lines[-1], flush=True)
    return lines


def choice() -> list[str]:
    """Measure what choosing the engine takes, in products, and whether it is the same each time."""
    lines = [
        "| network, images | choosing, least | in products | engine, in runs | error |",
        "|---|---|---|---|---|",
    ]
    for name, count in (("resnet20", 256), ("resnet18", 32)):
        seconds, chosen, error = math.inf, Counter[str](), 0.0
        for _ in range(_CHOICES):
            _, loss = objective(name, count)
            loss.gradient()
            started = time.process_time()
            found = choose(loss, loss.theta)
            seconds = min(seconds, time.process_time() - started)
            chosen[found.engine] += 1
            error = max(error, found.error or 0.0)
        prepared = build_engine(found.engine, loss, loss.theta).prepare(next(loss.chunks()))
        vector = torch.randn(1, loss.num_parameters)
        product = least({"": partial(prepared.products, vector)}, rounds=2)[""]
        runs = ", ".join(f"{engine} in {times}" for engine, times in chosen.items())
        lines.append(
            f"| {name}, {count} | {seconds:.1f} s | {seconds / product:.1f} | {runs} "
            f"| {error:.0e} |"
        )
        print(lines[-1], flush=True)
    return lines


def _work(run: Callable[[], object]) -> int:
    with Work() as work:
        run()
    return work.count


SECTIONS: Mapping[str, tuple[str, Callable[[], list[str]]]] = {
    "engines": ("A product, in gradients with the channels last", engines),
    "patches": ("The gradient of a 3x3 convolution's weight, 32 images", patches),
    "choice": ("Choosing the engine", choice),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for section in sys.argv[1:] or SECTIONS:
        heading, run_section = SECTIONS[section]
        lines = run_section()
        command = f"python -m benchmarks.products {section}"
        save_section("products", TITLE, heading, command, lines)
