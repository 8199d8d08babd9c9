"""The command `flatkit demo`: the whole way, from training to the comparison."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.files import make_folder, write_text_atomically
from flatkit_cli.options import Command

# The published settings of GAM for CIFAR-10 with a ResNet (Zhang et al., 2023), and what the paper
# trains with (SGD, lr 0.1, momentum 0.9, weight decay 5e-4, cosine, label smoothing 0.1), but for
# batch and epochs, which fit 1,437 small images. Nothing was tuned on these data.
_COMMON = {
    "data": "digits",
    "model": "mlp",
    "model_kwargs": {"hidden": (64, 64), "activation": "relu"},
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "batch_size": 64,
    "device": "cpu",
}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "sam": {"optimizer": "sam", "rho": 0.1},
    "gam": {
        "optimizer": "gam",
        "rho": 0.2,
        "rho_prime": 0.03,
        "alpha": 0.1,
        "beta": 0.1,
        "gamma": 0.05,
    },
}
_LANDSCAPES = ("loss_slice", "loss_plane")


@click.command(
    cls=Command,
    short_help="train SGD, SAM and GAM on digits, analyze and compare them",
    help="""Train SGD, SAM and GAM on scikit-learn's digits and compare how flat they end.

Writes OUT/sgd/ckpt.pt, OUT/sam/ckpt.pt, OUT/gam/ckpt.pt (further seeds in OUT/seed-N),
OUT/report.json, OUT/report.md and OUT/figures. Takes about a minute on two cores.

\b
flatkit demo --out demo
""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for checkpoints, report and figures.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Runs of each optimizer.")
@click.option("--epochs", type=int, default=60, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the runs of an earlier demo.")
def demo(out: Path, seeds: int, epochs: int, overwrite: bool) -> None:
    """Train, measure and show; the help text is that of the command."""
    check_count("seeds", seeds)
    check_count("epochs", epochs)
    if (out / "report.json").exists() and not overwrite:
        raise InvalidArgumentError(
            f"{out} holds an earlier demo; pass --overwrite to replace it, or another --out"
        )
    make_folder(out)
    started = time.perf_counter()
    comparison = _measure(out, seeds, epochs, overwrite)
    comparison.save(out / "report.json")
    verdict = "\n".join(_verdict(comparison))
    _write_report(comparison, verdict, out)
    _print(comparison, verdict)
    click.echo(f"{out}: done in {time.perf_counter() - started:.0f} s", err=True)


def _measure(out: Path, seeds: int, epochs: int, overwrite: bool) -> Any:
    """Train and analyze every run; return the comparison."""
    import torch

    from flatkit.measures import AnalysisSettings, analyze
    from flatkit.results import Comparison, Entry
    from flatkit.training import TrainingConfig, train

    # Threads only wait for each other on networks this small, badly so on a busy machine.
    torch.set_num_threads(1)
    entries = []
    for seed, name, folder in _runs(out, seeds):
        config = TrainingConfig(**_COMMON, **_OPTIMIZERS[name], epochs=epochs, seed=seed)
        started = time.perf_counter()
        checkpoint = train(config, folder, overwrite=overwrite).checkpoint
        trained = time.perf_counter()
        usual = AnalysisSettings().measures
        measures = [m for m in usual if seed == 0 or m not in _LANDSCAPES]
        report = analyze(
            checkpoint, measures=measures, dtype="float64", command=["flatkit", *sys.argv[1:]]
        )
        entries.append(Entry(f"{name}, seed {seed}", name, report))
        click.echo(
            f"{name}, seed {seed}: trained in {trained - started:.1f} s, "
            f"analyzed in {time.perf_counter() - trained:.1f} s",
            err=True,
        )
    return Comparison(entries)


def _runs(out: Path, seeds: int) -> Iterator[tuple[int, str, Path]]:
    """Yield seed, optimizer and folder of every run."""
    for seed in range(seeds):
        for name in _OPTIMIZERS:
            yield seed, name, (out if seed == 0 else out / f"seed-{seed}") / name


def _verdict(comparison: Any) -> list[str]:
    """Say what came out for GAM against SGD, seed by seed, whatever it is."""
    lines = []
    largest = max(result.settings["rho"] for result in _all_flatness(comparison))
    for title, measure, settings in (
        ("top Hessian eigenvalue", "top_eigenvalues", {}),
        (f"R1 at rho = {largest:g}", "first_order_flatness", {"rho": largest}),
    ):
        pairs = [
            tuple(_number(run.report.find(measure, **settings)) for run in pair)
            for pair in zip(comparison.in_group("gam"), comparison.in_group("sgd"), strict=True)
        ]
        below = sum(gam < sgd for gam, sgd in pairs)
        values = ", ".join(f"{gam:.3g} against {sgd:.3g}" for gam, sgd in pairs)
        lines.append(f"{title}: GAM below SGD in {below} of {len(pairs)} seeds ({values})")
    accuracies = {
        group: [
            run.report.find("accuracy", split="test").value for run in comparison.in_group(group)
        ]
        for group in comparison.groups
    }
    means = ", ".join(f"{g} {100 * sum(a) / len(a):.1f} %" for g, a in accuracies.items())
    return [*lines, f"test accuracy, mean over the seeds: {means}"]


def _all_flatness(comparison: Any) -> list[Any]:
    return comparison.entries[0].report.all("first_order_flatness")


def _number(result: Any) -> float:
    return result.value[0] if isinstance(result.value, list) else result.value


def _write_report(comparison: Any, verdict: str, out: Path) -> None:
    from flatkit.render import comparison_markdown, history_figure, save_figure, save_figures
    from flatkit.training.history import read_history

    figures = save_figures(comparison, out / "figures")
    histories = {name: read_history(out / name / "history.json") for name in _OPTIMIZERS}
    figures += save_figure(history_figure(histories), out / "figures", "history")
    pictures = "\n\n".join(
        f"![{path.stem}]({path.relative_to(out).as_posix()})"
        for path in figures
        if path.suffix == ".png"
    )
    bullets = "\n".join(f"- {line}" for line in verdict.splitlines())
    parts = ["# SGD, SAM and GAM on digits", bullets, comparison_markdown(comparison), pictures]
    write_text_atomically(out / "report.md", "\n\n".join(parts) + "\n")


def _print(comparison: Any, verdict: str) -> None:
    from rich.console import Console

    from flatkit.render import comparison_table

    Console().print(comparison_table(comparison))
    click.echo(verdict)
