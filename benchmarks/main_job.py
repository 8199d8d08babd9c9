"""What the main job costs, against bare floors and PyHessian, on the demo's network and data.

Run with `make bench`; writes benchmarks/results/main_job.md.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from pyhessian import hessian as pyhessian_hessian
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import medians, save
from flatkit import HessianOperator, Objective
from flatkit.data import DATASETS
from flatkit.landscape import LandscapeJob, axis_steps, random_subspace
from flatkit.optim import GAM, SAM
from flatkit.spectrum import lanczos, power_iteration

ROUNDS = 15


def trained_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return an MLP trained for a while on digits, with its data."""
    torch.manual_seed(0)
    x, y = DATASETS.build("digits").train
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):
        rows = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model, x, y


def true_top(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the top eigenvalue in float64, to 1e-9."""
    objective = Objective(model, "cross_entropy", (x, y), dtype=torch.float64)
    operator = HessianOperator(objective)
    return float(lanczos(operator, tolerance=1e-9, generator=torch.Generator()).value[0])


def eigenvalue_lines(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Compare the top eigenvalue: time and true relative error."""
    truth, found = true_top(model, x, y), {}

    def ours(method: Callable) -> Callable[[], None]:
        def run() -> None:
            operator = HessianOperator(Objective(model, "cross_entropy", (x, y)))
            estimate = method(operator, tolerance=1e-3, generator=torch.Generator())
            found[method.__name__] = float(estimate.value[0])

        return run

    def theirs() -> None:
        second = pyhessian_hessian(
            copy.deepcopy(model), nn.CrossEntropyLoss(), data=(x, y), cuda=False
        )
        found["PyHessian"] = second.eigenvalues(top_n=1)[0][0]

    seconds = medians(
        {"lanczos": ours(lanczos), "power_iteration": ours(power_iteration), "PyHessian": theirs},
        rounds=ROUNDS,
    )
    return [
        "## Top eigenvalue (1,437 digits, MLP 64-64-64-10, float32)",
        "",
        "| method | median seconds | ratio to PyHessian | true relative error |",
        "|---|---|---|---|",
        *(
            f"| {name} | {seconds[name]:.3f} | {seconds[name] / seconds['PyHessian']:.2f} "
            f"| {abs(found[name] / truth - 1):.1e} |"
            for name in seconds
        ),
    ]


def product_lines(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Compare a Hessian-vector product with a gradient."""
    objective = Objective(model, "cross_entropy", (x, y))
    kept = HessianOperator(objective, retain_graph=True)
    rebuilt = HessianOperator(objective, retain_graph=False)
    vector = torch.randn(objective.num_parameters)
    bare = copy.deepcopy(model)

    def gradient() -> None:
        torch.autograd.grad(cross_entropy(bare(x), y), list(bare.parameters()))

    seconds = medians(
        {
            "bare gradient": gradient,
            "Objective.gradient": objective.gradient,
            "product, graph kept": lambda: kept.matvec(vector),
            "product, graph rebuilt": lambda: rebuilt.matvec(vector),
        },
        rounds=10 * ROUNDS,
    )
    return ratio_lines("Hessian-vector product, full batch", seconds, "bare gradient")


def step_lines(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Compare steps of the optimizers, batch 64."""
    x, y = x[:64], y[:64]

    def stepper(wrap: Callable) -> Callable[[], None]:
        own = copy.deepcopy(model)
        optimizer = wrap(torch.optim.SGD(own.parameters(), lr=1e-3, momentum=0.9))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(own(x), y)
            loss.backward()
            return loss

        def exact_closure() -> torch.Tensor:
            return cross_entropy(own(x), y)

        exact = isinstance(optimizer, GAM) and optimizer.mode == "exact"
        return lambda: optimizer.step(exact_closure if exact else closure)

    seconds = medians(
        {
            "SGD": stepper(lambda base: base),
            "SAM": stepper(SAM),
            "GAM, accelerated": stepper(GAM),
            "GAM, exact": stepper(lambda base: GAM(base, mode="exact")),
        },
        rounds=20 * ROUNDS,
    )
    return ratio_lines("Optimizer step, batch 64", seconds, "SGD")


def plane_lines(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """Compare a plane with a bare loop of forward passes."""
    objective = Objective(model, "cross_entropy", (x, y))
    subspace = random_subspace(objective.space, objective.theta)
    first, second = subspace.vectors
    steps = axis_steps(-1.0, 1.0, 21)
    bare = copy.deepcopy(model)
    parameters = list(bare.parameters())
    sizes = [p.numel() for p in parameters]

    @torch.no_grad()
    def loop() -> np.ndarray:
        losses = []
        for up in steps:
            for right in steps:
                point = objective.theta + right * first + up * second
                for p, part in zip(parameters, point.split(sizes), strict=True):
                    p.copy_(part.view_as(p))
                losses.append(float(cross_entropy(bare(x), y)))
        return np.array(losses)

    def plane() -> None:
        quantities = ("loss", "accuracy")
        axes = {"x": steps, "y": steps}
        LandscapeJob({"train": objective}, subspace, axes, quantities=quantities).measure()

    seconds = medians({"bare loop": loop, "loss_plane": plane}, rounds=ROUNDS)
    return ratio_lines("Plane of 21×21 losses", seconds, "bare loop")


def ratio_lines(title: str, seconds: dict[str, float], floor: str) -> list[str]:
    """Return a table of medians and ratios to the floor."""
    return [
        "",
        f"## {title}",
        "",
        f"| what | median milliseconds | ratio to {floor} |",
        "|---|---|---|",
        *(
            f"| {name} | {1e3 * value:.2f} | {value / seconds[floor]:.2f} |"
            for name, value in seconds.items()
        ),
    ]


def main() -> None:
    """Measure everything and write the results."""
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore", message="Using backward")  # PyHessian's own
    network = trained_network()
    lines = eigenvalue_lines(*network) + product_lines(*network)
    lines += step_lines(*network) + plane_lines(*network)
    save("main_job", "The main job", "python -m benchmarks.main_job", lines, "pyhessian")


if __name__ == "__main__":
    main()
