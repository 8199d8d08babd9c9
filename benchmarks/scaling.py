"""What a measurement holds and takes by its size: the model of `docs/scaling.md` against runs.

    python -m benchmarks.scaling [--write]

Bytes are counted: those of the tensors that are alive at once, beside what there was before
(`measure_bytes`). Predicted is what the model says from the number of weights, and of activations
what chunks of 2 and 4 samples lead to expect of 16. Seconds are those of the processor.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.resnet20 import resnet20
from flatkit import HessianOperator, Objective
from flatkit.hessian.memory import measure_bytes
from flatkit.spectrum.krylov import KEPT_BYTES
from flatkit.spectrum.lanczos import lanczos

_RESULTS = Path(__file__).parent / "results" / "scaling.md"
_DOUBLE = 20_000_000
"""Weights beyond which nothing is held against float64 (`hessian/reference.py`)."""


class Size(NamedTuple):
    """What the memory of a measurement follows from, beside activations.

    Attributes:
        weights: P.
        dtype: of the computation; the vectors of bfloat16 are of float32.
        ranks: processes that share the samples and the Krylov vectors.
        vectors: M of a Krylov basis.
    """

    weights: int
    dtype: torch.dtype = torch.float32
    ranks: int = 1
    vectors: int = 20

    @property
    def narrow(self) -> bool:
        """Whether the model computes in bfloat16."""
        return self.dtype == torch.bfloat16

    @property
    def vector(self) -> int:
        """Bytes of a vector [P]."""
        return self.weights * (8 if self.dtype == torch.float64 else 4)

    @property
    def objective(self) -> float:
        """Held: a copy of the model, θ, and half a copy for bfloat16."""
        return self.vector * (2.5 if self.narrow else 2.0)

    @property
    def loss(self) -> float:
        """At most, beside that: the point that stands in the model."""
        return self.vector * (1.5 if self.narrow else 1.0)

    @property
    def gradient(self) -> float:
        """At most: the point, the sum, the gradient of a chunk in pieces and as one vector."""
        return self.vector * 4.0

    @property
    def product(self) -> float:
        """At most, layer by layer, nothing kept: the sum, a gradient, a product, a layer."""
        return self.vector * (4.5 if self.narrow else 3.1)

    @property
    def basis(self) -> float:
        """Held by a search on each rank: M + 1 vectors, and the images of M while they fit."""
        own = self.vector / self.ranks
        whole = (2 * self.vectors + 1) * own
        return whole if 2 * (self.vectors + 1) * own <= KEPT_BYTES else (self.vectors + 1) * own

    @property
    def compared(self) -> float:
        """At most, at its end: products in float64 beside those in 32 bits."""
        checked = self.dtype != torch.float64 and self.weights <= _DOUBLE
        return self.vector * 22.0 if checked else self.product

    @property
    def search(self) -> float:
        """At most, of a search for one eigenvalue: the basis, its vector, and the last check."""
        return self.basis + self.vector + max(self.compared, self.product)

    @property
    def sent(self) -> float:
        """Bytes that each rank sends for a product: an all-reduce of P numbers, as a ring."""
        return 2 * (self.ranks - 1) / self.ranks * self.vector


class Row(NamedTuple):
    """A prediction beside what was measured."""

    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def perceptron(width: int) -> nn.Module:
    """Return a network whose weights are most of its memory."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(100, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()),
        nn.Linear(width, 10),
    )


def of_weights(width: int, dtype: torch.dtype) -> Iterator[Row]:
    """Yield the memory of a network with few activations, from its number of weights."""
    model, data = perceptron(width), (torch.randn(8, 100), torch.randint(10, (8,)))
    size = Size(sum(p.numel() for p in model.parameters()), dtype)
    name = f"{size.weights / 1e6:.3g} M weights, {str(dtype).removeprefix('torch.')}"

    def made() -> Objective:
        return Objective(model, "cross_entropy", data, dtype=dtype, chunk_size=4, examine=False)

    _, held, objective = measure_bytes(made)
    yield Row(f"{name}: objective", size.objective, held)
    yield Row(f"{name}: loss", size.loss, measure_bytes(objective.loss)[0])
    yield Row(f"{name}: gradient", size.gradient, measure_bytes(objective.gradient)[0])
    hessian = HessianOperator(objective, engine="layers", retain_graph=False)
    vector = torch.randn_like(objective.theta)
    _ = hessian @ vector
    yield Row(f"{name}: product", size.product, measure_bytes(lambda: hessian @ vector)[0])

    def search() -> object:
        return lanczos(hessian, max_matvecs=22, generator=torch.Generator().manual_seed(0))

    yield Row(f"{name}: search", size.search, measure_bytes(search)[0])


def of_activations(model: nn.Module, shape: tuple[int, ...], name: str) -> Iterator[Row]:
    """Yield the memory of 16 samples at once, from that of 2 and of 4."""
    data = (torch.randn(16, *shape), torch.randint(10, (16,)))

    def peak(work: Callable[[Objective], Callable[[], object]], chunk: int) -> int:
        objective = Objective(model, "cross_entropy", data, chunk_size=chunk, examine=False)
        run = work(objective)
        run()
        return measure_bytes(run)[0]

    def product(objective: Objective) -> Callable[[], object]:
        hessian = HessianOperator(objective, engine="layers", retain_graph=False)
        return lambda: hessian @ objective.theta

    works: dict[str, Callable[[Objective], Callable[[], object]]] = {
        "gradient": lambda objective: objective.gradient,
        "product": product,
    }
    for what, work in works.items():
        two, four = peak(work, 2), peak(work, 4)
        each = (four - two) / 2
        yield Row(f"{name}, 16 at once: {what}", four + 12 * each, peak(work, 16))


def of_time(model: nn.Module, shape: tuple[int, ...], name: str) -> Iterator[Row]:
    """Yield the seconds of a search, from those of a product and of the vectors of a step."""
    data = (torch.randn(64, *shape), torch.randint(10, (64,)))
    objective = Objective(model, "cross_entropy", data, chunk_size=16)
    hessian = HessianOperator(objective, engine="layers", retain_graph=False)
    vector = torch.randn_like(objective.theta)
    _ = hessian @ vector, hessian.plan

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    def multiply() -> None:
        for _ in range(10):
            _ = hessian @ vector

    for products in (10, 20):

        def search(products: int = products) -> object:
            draws = torch.Generator().manual_seed(0)
            return lanczos(hessian, max_matvecs=products, tolerance=1e-9, generator=draws)

        before, taken, after = seconds(multiply), seconds(search), seconds(multiply)
        yield Row(f"{name}: {products} products, s", products * (before + after) / 20, taken)


def rows(*, large: bool) -> Iterator[Row]:
    """Yield all that is counted; `large`: also networks that take seconds."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        yield from of_weights(600, dtype)
    if large:
        yield from of_weights(2000, torch.float32)
    yield from of_activations(resnet20(), (3, 32, 32), "ResNet-20")


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    lines = [
        "# The cost model against runs",
        "",
        "`python -m benchmarks.scaling --write`: bytes of tensors at most, beside what there was",
        "before, and seconds of the processor. The model is that of [Scaling](../scaling.md).",
        "",
        "| what | predicted | measured | ratio |",
        "|---|--:|--:|--:|",
    ]
    found = [*rows(large=True), *of_time(resnet20(), (3, 32, 32), "ResNet-20, 64 samples")]
    for row in found:
        timed = row.what.endswith(", s")
        unit, by = ("s", 1.0) if timed else ("MB", 1e6)
        cells = (f"{part / by:.3g} {unit}" for part in (row.predicted, row.measured))
        lines.append(f"| {row.what.removesuffix(', s')} | {' | '.join(cells)} | {row.ratio:.2f} |")
    print("\n".join(lines))
    if write:
        _RESULTS.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
