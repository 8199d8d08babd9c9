"""What channels-last images save: passes over them, against the same with the channels second.

`python -m benchmarks.layouts [THREADS ...]`. The rule of
`flatkit.objective.model.layout` is taken from it.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.resnet20 import resnet20
from benchmarks.timing import medians, save
from flatkit import Objective

ROUNDS = 5


def plain(groups: int = 1, channels: int = 16, kernel: int = 3) -> nn.Module:
    """Return four convolutions with BatchNorm and ReLU, and a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1), nn.ReLU()]
    for _ in range(3):
        layers += [
            nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=groups),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def pooled() -> nn.Module:
    """Return two convolutions with max pooling, and a classifier."""
    first = nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4096, 10))


def depthwise() -> nn.Module:
    """Return three inverted bottlenecks (Sandler et al., 2018) without shortcuts."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)]
    channels = 16
    for out in (24, 32, 32):
        wide = 4 * channels
        layers += [nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers += [nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), nn.BatchNorm2d(wide)]
        layers += [nn.ReLU6(), nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-20": (resnet20, 32),
    "16 channels": (plain, 16),
    "64 channels": (lambda: plain(channels=64), 16),
    "kernels of one pixel": (lambda: plain(channels=32, kernel=1), 16),
    "max pooling": (pooled, 32),
    "depthwise": (depthwise, 32),
    "four groups": (lambda: plain(groups=4, channels=32), 16),
    "4 channels, 8x8": (lambda: plain(channels=4), 8),
}


def row(name: str, dtype: torch.dtype) -> str:
    """Return one line of the table: how long passes take, relative to channels second."""
    build, side = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    data = torch.randn(64, 3, side, side), torch.randint(0, 10, (64,))
    second, last = (Objective(model, "cross_entropy", data, dtype=dtype) for _ in range(2))
    second.samples = second.samples.laid_out(torch.contiguous_format)
    last.samples = last.samples.laid_out(torch.channels_last)
    # The time of the process: other work on the machine then hurts little.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    gradient, loss = (
        medians({"second": before, "last": after}, rounds=ROUNDS, clock=clock)
        for before, after in ((second.gradient, last.gradient), (second.loss, last.loss))
    )
    number = str(dtype).removeprefix("torch.")
    return (
        f"| {name} | {number} | {torch.get_num_threads()} | {1e3 * gradient['second']:.0f} ms "
        f"| {gradient['last'] / gradient['second']:.2f} | {loss['last'] / loss['second']:.2f} |"
    )


def main() -> None:
    """Measure with each of the numbers of threads that the command names; one by default."""
    lines = [
        "| network, 64 images | dtype | threads | gradient | channels last | loss, channels last |",
        "|---|---|---|---|---|---|",
    ]
    for threads in map(int, sys.argv[1:] or ["1"]):
        torch.set_num_threads(threads)
        lines += [row(name, torch.float32) for name in NETWORKS]
        lines += [row(name, torch.float64) for name in ("ResNet-20", "depthwise")]
    save("layouts", "Images with the channels last", "python -m benchmarks.layouts", lines)


if __name__ == "__main__":
    main()
