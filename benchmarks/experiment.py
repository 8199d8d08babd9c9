"""Do GAM and SAM find flatter minima? Accuracy and flatness of runs on CIFAR-10, over seeds.

`python -m benchmarks.experiment --data-root DIR` trains each optimizer with each seed, analyzes the
last checkpoint, and writes benchmarks/results/experiment.md when all are done. What is done already
in --out is kept, so the command goes on where it was stopped; several may run side by side, each
with its own `--seed`.

On a GPU: ResNet-18, all images, 200 epochs. On a CPU, scaled down: ResNet-20 of half the width on
images of half the side, the first 5,000 of them, 4 epochs. The settings of each optimizer are
those published for CIFAR-10, none was tuned here.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.timing import machine
from flatkit.files import write_text_atomically
from flatkit.measures import analyze
from flatkit.render import comparison_markdown
from flatkit.results import Comparison, Entry, load_results
from flatkit.training import TrainingConfig, train
from flatkit.training.settings_file import read_settings

VARIANTS = ("sgd", "sam", "gam", "gam-sam")
CPU: dict[str, Any] = {
    "model": "resnet20",
    "model_kwargs": {"width": 8},
    "data_kwargs": {"train_samples": 5000, "shrink": 2},
    "epochs": 4,
}
RESULT = Path(__file__).parent / "results" / "experiment.md"


@click.command(help=__doc__)
@click.option("--data-root", help="Folder with CIFAR-10; by default $FLATKIT_DATA_ROOT, or data.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/experiment"))
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--epochs", type=int, help="In place of those above.")
@click.option("--samples", type=int, default=128, show_default=True, help="Of the analysis.")
@click.option("--table", is_flag=True, help="Train nothing; write the table of what is there.")
def main(
    data_root: str | None,
    out: Path,
    seeds: tuple[int, ...],
    epochs: int | None,
    samples: int,
    table: bool,
) -> None:
    """Train, analyze, and write the table when all is done."""
    torch.set_num_threads(1 if not torch.cuda.is_available() else torch.get_num_threads())
    if not table:
        for seed in seeds:
            for variant in VARIANTS:
                config = settings(variant, seed, data_root, epochs)
                measure(config, out / variant / f"seed-{seed}", samples)
    entries = list(finished(out))
    expected = {f"{variant}, seed {seed}" for variant in VARIANTS for seed in seeds}
    if entries and (table or expected <= {entry.name for entry in entries}):
        write_table(entries)


def settings(
    variant: str, seed: int, data_root: str | None, epochs: int | None = None
) -> TrainingConfig:
    """Return the settings of one run."""
    chosen: dict[str, Any] = {
        **read_settings(f"cifar10-resnet18-{variant}"),
        "data_root": data_root,
    }
    if not torch.cuda.is_available():
        chosen |= CPU
    chosen["epochs"] = epochs or chosen["epochs"]
    return TrainingConfig(**chosen, seed=seed, evaluate_every=chosen["epochs"])


def measure(config: TrainingConfig, folder: Path, samples: int) -> None:
    """Train, or go on, and analyze; nothing if the report is there."""
    report = folder / "report.json"
    if report.exists():
        return
    outcome = train(config, folder, resume=(folder / "ckpt.pt").exists(), on_epoch=_say(folder))
    analyze(
        outcome.checkpoint,
        measures=[
            "loss", "accuracy", "gradient_norm", "top_eigenvalues", "trace",
            "zeroth_order_sharpness", "first_order_flatness",
        ],
        rho=[0.05],
        samples=samples,
        search_budget=30,
        tolerance=0.01,
        trace_tolerance=0.05,
        max_matvecs=40,
        device=config.device,
        command=["python", "-m", "benchmarks.experiment", *sys.argv[1:]],
    ).save(report)  # fmt: skip
    print(f"{folder}: analyzed", flush=True)


def finished(out: Path) -> Iterator[Entry]:
    """Yield the reports, by optimizer and seed."""
    for variant in VARIANTS:
        for file in sorted((out / variant).glob("seed-*/report.json")):
            name = f"{variant}, seed {file.parent.name.removeprefix('seed-')}"
            yield Entry(name, variant, load_results(file).entries[0].report)


def write_table(entries: list[Entry]) -> None:
    """Write benchmarks/results/experiment.md and print it."""
    training = entries[0].report.checkpoint["training"]
    model, data = (entries[0].report.checkpoint[key] for key in ("model", "data"))
    seeds = {v: sum(entry.group == v for entry in entries) for v in VARIANTS}
    shown = {k: v for k, v in data["kwargs"].items() if k not in ("root", "verify")}
    lines = [
        "# SGD, SAM, GAM and GAM over SAM on CIFAR-10",
        "",
        f"`make experiment`, {machine()}.",
        "",
        f"{model['name']} ({_pairs(model['kwargs'])}), {data['name']} ({_pairs(shown)}), "
        f"{training['epochs']} epochs of batches of {training['batch_size']}; otherwise the "
        "recipes `cifar10-resnet18-*`. "
        f"Seeds: {', '.join(f'{count} of {v}' for v, count in seeds.items())}.",
        "",
        comparison_markdown(Comparison(entries)),
    ]
    write_text_atomically(RESULT, "\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _say(folder: Path) -> Any:
    return lambda row: print(f"{folder}: epoch {row.epoch}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
