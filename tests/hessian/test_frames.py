"""The way from `analyze` down to a multiplication is short: so many of flatkit's own frames."""

import inspect
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import flatkit

ROOT = str(Path(flatkit.__file__).parent)
LATER, FIRST = 12, 17
"""Frames of a product, and of the first one, which the probe of the engines comes before."""


def own_frames() -> list[str]:
    """Return flatkit's own frames on the stack, outermost first."""
    found: list[str] = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT):
            found.append(f"{file[len(ROOT) + 1 :]}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]


class Watch(TorchDispatchMode):
    """Keeps the deepest stacks of multiplications inside products, with a probe and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[str] = []
        self.later: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.__name__ for word in ("mm", "convolution", "mul.Tensor", "bmm")):
            self.look()
        return func(*args, **(kwargs or {}))

    def look(self) -> None:
        stack = own_frames()
        if not any(frame.endswith((":matvec", ":unchecked")) for frame in stack):
            return
        kind = "first" if any("autotune" in frame for frame in stack) else "later"
        if len(stack) > len(getattr(self, kind)):
            setattr(self, kind, stack)


class Untraceable(nn.Module):
    """Control flow that depends on values: graphs of gradients multiply, not layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        return self.second(h.tanh()) if bool((x == x).all()) else h


NETWORKS = {
    "linear layers": nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolutions": nn.Sequential(
        nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    ),
    "no layers": Untraceable(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_few_frames_lie_between_analyze_and_a_multiplication(name):
    torch.manual_seed(0)
    data = torch.randn(16, 3, 2, 2), torch.randint(0, 3, (16,))
    with Watch() as watch:
        flatkit.analyze(NETWORKS[name], "cross_entropy", data, measures=["top_eigenvalues"])
    for stack in (watch.first, watch.later):
        assert stack and stack[0].endswith(":analyze")
    assert len(watch.first) <= FIRST, "\n".join(watch.first)
    assert len(watch.later) <= LATER, "\n".join(watch.later)
