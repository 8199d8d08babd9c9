"""Comparisons of a CNN of 9,098 weights: nine runs by seven measures, and 54 checkpoints by four.

`python -m benchmarks.compare nine` and `python -m benchmarks.compare all54`, with `--jobs N`; each
is one comparison in processes of its own, and says its seconds, those of all cores, and what was
counted. `--alone` analyzes checkpoint after checkpoint instead, which shares nothing.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import flatkit
from benchmarks.timing import save_section
from flatkit.results import Comparison, Entry

_IMAGES, _SIDE, _EPOCHS = 500, 28, 6
_OPTIMIZERS = ("sgd", "sam", "gam")
_SEVEN = (
    "loss",
    "accuracy",
    "gradient_norm",
    "top_eigenvalues",
    "trace",
    "zeroth_order_sharpness",
    "first_order_flatness",
)
_FOUR = ("loss", "accuracy", "top_eigenvalues", "trace")


def network() -> nn.Module:
    """Return the CNN."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (_SIDE // 4) ** 2, 10),
    )


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of ten patterns under noise, and which they are."""
    patterns = torch.randn(10, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    patterns = nn.functional.interpolate(patterns, size=_SIDE, mode="bilinear")
    draws = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 10, (count,), generator=draws)
    noise = torch.randn(count, 1, _SIDE, _SIDE, generator=draws)
    return patterns[classes] + 4.0 * noise, classes


def build() -> flatkit.Task:
    """Return the task of every checkpoint, for `--task`."""
    return flatkit.Task(network(), "cross_entropy", images(_IMAGES, 1), images(_IMAGES, 2))


def train_all(folder: Path) -> None:
    """Train nine runs, and save each after every epoch as anybody would."""
    inputs, targets = images(_IMAGES, 1)
    for optimizer in _OPTIMIZERS:
        for seed in range(3):
            torch.manual_seed(seed)
            model, run = network(), folder / f"{optimizer}-seed{seed}"
            run.mkdir()
            base = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
            wrap = {"sam": flatkit.SAM, "gam": flatkit.GAM}.get(optimizer, lambda base: base)
            step = wrap(base)
            for epoch in range(_EPOCHS):
                for rows in torch.randperm(len(targets)).split(50):

                    def closure(rows: torch.Tensor = rows, model: nn.Module = model) -> Any:
                        model.zero_grad()
                        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
                        loss.backward()
                        return loss

                    step.step(closure)
                torch.save(model.state_dict(), run / f"epoch-{epoch + 1}.pt")


def compared(folder: Path, pattern: str, measures: tuple[str, ...], jobs: int | None) -> Comparison:
    """Compare the checkpoints of a pattern."""
    return flatkit.compare(
        [str(folder / pattern)],
        task=f"{__file__}:build",
        measures=measures,
        jobs=jobs,
        progress=False,
    )


def one_by_one(folder: Path, pattern: str, measures: tuple[str, ...]) -> Comparison:
    """Analyze the checkpoints of a pattern, each alone."""
    entries = list[Entry]()
    for path in sorted(folder.glob(pattern)):
        task = build()
        flatkit.load(path).load_into(task.model)
        name = str(path.relative_to(folder))
        report = flatkit.analyze(task, measures=measures, progress=False)
        entries.append(Entry(name, name, report))
    return Comparison(entries)


def used() -> float:
    """Return the seconds of all cores so far, also in processes that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


@click.command()
@click.argument("which", type=click.Choice(["nine", "all54"]))
@click.option("--jobs", type=int)
@click.option("--alone", is_flag=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Checkpoints, made if missing.")
@click.option("--write", is_flag=True, help="Write benchmarks/results/compare.md.")
def main(which: str, jobs: int | None, alone: bool, keep: Path | None, write: bool) -> None:
    """Run one of the two comparisons."""
    folder = keep or Path(tempfile.mkdtemp())
    if not list(folder.glob("*/*.pt")):
        folder.mkdir(exist_ok=True, parents=True)
        train_all(folder)
    last = f"*/epoch-{_EPOCHS}.pt"
    pattern, measures = (last, _SEVEN) if which == "nine" else ("*/epoch-*.pt", _FOUR)
    begun, before = time.perf_counter(), used()
    if alone:
        found = one_by_one(folder, pattern, measures)
    else:
        found = compared(folder, pattern, measures, jobs)
    seconds, cores = time.perf_counter() - begun, used() - before
    gradients = sum(e.report.analysis["gradients"] for e in found.entries)
    how = "each alone" if alone else f"jobs={jobs}"
    lines = [
        f"{len(found.entries)} checkpoints x {len(measures)} measures, {how}: {seconds:.1f} s, "
        f"{cores:.1f} s of CPU, {gradients:,.0f} gradients."
    ]
    click.echo(lines[0])
    if write:
        heading = f"{which}, {how}"
        command = f"python -m benchmarks.compare {' '.join(sys.argv[1:])}"
        save_section("compare", "Comparisons of a CNN of 9,098 weights", heading, command, lines)


if __name__ == "__main__":
    main()
