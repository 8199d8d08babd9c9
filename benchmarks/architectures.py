"""Which published architectures the layer-wise engine takes, and what its products cost."""

import copy

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.timing import keep_freed_memory, medians, save
from flatkit import Objective
from flatkit.errors import FlatkitError
from flatkit.hessian.products import EngineName, Prepared, build_engine
from flatkit.objective.passes import differentiate
from tests.architectures import ARCHITECTURES, CLASSES


def product_of_torch(model: nn.Module, x: Tensor, y: Tensor, vector: Tensor) -> Tensor:
    """Return a product with the Hessian in float64, by double backward."""
    model = copy.deepcopy(model).double()
    free = dict(model.named_parameters())
    values = [value.detach().requires_grad_() for value in free.values()]
    parts = vector.double().split([value.numel() for value in values])
    along = [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        outputs = functional_call(model, dict(zip(free, values, strict=True)), (x,))
        loss = F.cross_entropy(outputs, y)
        slopes = torch.autograd.grad(loss, values, create_graph=True)
        found = torch.autograd.grad(slopes, values, along, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def row(name: str, samples: int, rounds: int) -> str:
    """Return a row of the table."""
    torch.manual_seed(0)
    model, x = ARCHITECTURES[name].build().eval(), ARCHITECTURES[name].inputs(samples)
    y = torch.randint(0, CLASSES, (len(x),))
    data = (x.float() if x.is_floating_point() else x, y)
    objective = Objective(model, "cross_entropy", data, chunk_size=samples)
    theta, chunk = objective.theta, next(objective.chunks())
    vector = torch.randn_like(theta)
    try:
        truth = product_of_torch(model, x, y, vector)
    except RuntimeError:  # torch has no such derivative
        truth = None
    prepared: dict[EngineName, Prepared] = {}
    refusals: dict[EngineName, str] = {}
    for engine in ("layers", "double_backward"):
        try:
            prepared[engine] = build_engine(engine, objective, theta).prepare(chunk)
            prepared[engine].products(vector[None])
        except FlatkitError as error:
            prepared.pop(engine, None)
            refusals[engine] = str(error).partition(":")[0]

    def gradient() -> Tensor:
        with objective.placed(theta, smooth=False) as point:
            return differentiate(objective.chunk_loss(point, chunk), point)

    runs = {"gradient": gradient} | {
        engine: lambda one=one: one.products(vector[None]) for engine, one in prepared.items()
    }
    seconds = medians(runs, rounds=rounds)
    costs = [
        f"{seconds[engine] / seconds['gradient']:.2f}" if engine in seconds else "none"
        for engine in ("layers", "double_backward")
    ]
    if "layers" not in prepared:
        taken, error = refusals["layers"], ""
    else:
        found = prepared["layers"].products(vector[None])[0].double()
        taken = "yes"
        error = "" if truth is None else f"{float((found - truth).norm() / truth.norm()):.0e}"
    return (
        f"| {name} | {objective.num_parameters} | {taken} | {error} | "
        f"{1e3 * seconds['gradient']:.1f} ms | {costs[0]} | {costs[1]} |"
    )


@click.command()
@click.option("--samples", default=256, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(samples: int, rounds: int) -> None:
    """Measure every architecture and write benchmarks/results/architectures.md."""
    keep_freed_memory("benchmarks.architectures")
    torch.set_num_threads(1)
    rows = [row(name, samples, rounds) for name in ARCHITECTURES]
    taken = sum("| yes |" in each for each in rows)
    save(
        "architectures",
        "The layer-wise engine on published architectures",
        f"python -m benchmarks.architectures --samples {samples} --rounds {rounds}",
        [
            f"It takes {taken} of {len(rows)}, written from their papers in small sizes "
            "(`tests/architectures.py`). The error is that of a product in float32, relative to "
            "double backward in float64; none where torch has no second derivative. Costs of a "
            "product are in gradients, medians of interleaved runs; in sizes so small they are "
            "those of many small operations. `auto` uses whichever engine is faster.",
            "",
            "| architecture | weights | taken | error | gradient | layers | double backward |",
            "|---|--:|---|--:|--:|--:|--:|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
