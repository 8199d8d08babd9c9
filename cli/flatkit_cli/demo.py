"""The command `flatkit demo`: the whole way, from training to the comparison."""

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.files import check_writable, write_text_atomically
from flatkit_cli.drawing import Drawing, drawing_options, take_drawing
from flatkit_cli.options import Command
from flatkit_cli.output import show

if TYPE_CHECKING:
    from flatkit.results.comparison import Comparison, Entry

# The published settings of GAM for CIFAR-10 with a ResNet (Zhang et al., 2023), and what the paper
# trains with (SGD, lr 0.1, momentum 0.9, weight decay 5e-4, cosine, label smoothing 0.1), but for
# batch and epochs, which fit 1,437 small images. Nothing was tuned on these data.
_COMMON = {
    "data": "digits",
    "model": "mlp",
    "model_kwargs": {"hidden": [64, 64], "activation": "relu"},
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
_SEARCH_BUDGET = 150  # on these networks R0 and R1 are then within 0.4 % of what 600 find


class Run(NamedTuple):
    """One training and its analysis.

    Attributes:
        name: in tables.
        group: its optimizer.
        folder: for the checkpoints.
        settings: of the training.
        measures: what to analyze.
    """

    name: str
    group: str
    folder: Path
    settings: dict[str, Any]
    measures: Sequence[str]


@click.command(
    cls=Command,
    short_help="train SGD, SAM and GAM on digits, analyze and compare them",
    help="""Train SGD, SAM and GAM on scikit-learn's digits and compare how flat they end.

Writes OUT/sgd/ckpt.pt, OUT/sam/ckpt.pt, OUT/gam/ckpt.pt (further seeds in OUT/seed-N),
OUT/report.json, OUT/report.md, OUT/report.html and OUT/figures. Takes about a
minute and a half on two cores; a first table is shown as soon as one seed is done.

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
@click.option("--jobs", type=int, metavar="N", help="Runs at once.  [default: as there are cores]")
@click.option("--overwrite", is_flag=True, help="Replace the runs of an earlier demo.")
@drawing_options
def demo(
    out: Path, seeds: int, epochs: int, jobs: int | None, overwrite: bool, **options: Any
) -> None:
    """Train, measure and show; the help text is that of the command."""
    drawing = take_drawing(options)
    drawing.check()
    check_count("seeds", seeds)
    check_count("epochs", epochs)
    if jobs is not None:
        check_count("jobs", jobs)
    if (out / "report.json").exists() and not overwrite:
        raise InvalidArgumentError(
            f"{out} holds an earlier demo; pass --overwrite to replace it, or another --out"
        )
    check_writable(out / "report.json")
    started = time.perf_counter()
    comparison = _measure(_runs(out, seeds, epochs), jobs, overwrite=overwrite)
    comparison.save(out / "report.json")
    verdict = "\n".join(_verdict(comparison))
    _write_report(comparison, verdict, out, drawing)
    _print(comparison, verdict)
    click.echo(f"{out}: done in {time.perf_counter() - started:.0f} s", err=True)


def _runs(out: Path, seeds: int, epochs: int) -> list[Run]:
    """Return every run, those of the first seed first; landscapes are measured of these alone."""
    from flatkit.measures.settings import DEFAULT_MEASURES

    curvature = [measure for measure in DEFAULT_MEASURES if measure not in _LANDSCAPES]
    return [
        Run(
            f"{name}, seed {seed}",
            name,
            (out if seed == 0 else out / f"seed-{seed}") / name,
            {**_COMMON, **own, "epochs": epochs, "seed": seed},
            DEFAULT_MEASURES if seed == 0 else curvature,
        )
        for seed in range(seeds)
        for name, own in reversed(_OPTIMIZERS.items())  # the longest first
    ]


def _measure(runs: Sequence[Run], jobs: int | None, *, overwrite: bool) -> "Comparison":
    """Train and analyze every run, several at once; show a table when the first seed is done."""
    from flatkit.results.comparison import Comparison, Entry
    from flatkit.results.report import Report

    command = ["flatkit", *sys.argv[1:]]
    calls = [(str(r.folder), r.settings, r.measures, command, overwrite) for r in runs]
    first, found = len(_OPTIMIZERS), dict[int, Entry]()
    for number, (report, told) in _done(calls, jobs):
        run = runs[number]
        found[number] = Entry(
            run.name, run.group, Report.from_json(report), seed=str(run.settings["seed"])
        )
        click.echo(f"{run.name}: {told}", err=True)
        early = number < first < len(runs) and all(n in found for n in range(first))
        if early:
            _print(Comparison(_in_order(found, first)), "The first seed; more follow.\n")
    return Comparison(_in_order(found, len(runs)))


def _in_order(found: "Mapping[int, Entry]", count: int) -> "list[Entry]":
    """Return the first runs, seed by seed, the optimizers as they are listed."""
    listed, size = list(_OPTIMIZERS), len(_OPTIMIZERS)
    entries = [found[number] for number in range(count)]
    parts = (entries[at : at + size] for at in range(0, count, size))
    return [e for part in parts for e in sorted(part, key=lambda e: listed.index(e.group))]


def _done(
    calls: Sequence[tuple[Any, ...]], jobs: int | None
) -> Generator[tuple[int, tuple[str, str]], None, None]:
    """Yield number and answer of every call as it is done."""
    from flatkit.comparison.workers import in_processes, usable_cores

    jobs = usable_cores() if jobs is None else jobs
    if jobs > 1:
        yield from in_processes(train_and_analyze, calls, jobs=jobs)
        return
    for number, call in enumerate(calls):
        yield number, train_and_analyze(*call)


def train_and_analyze(
    folder: str,
    settings: Mapping[str, Any],
    measures: Sequence[str],
    command: Sequence[str],
    overwrite: bool,
) -> tuple[str, str]:
    """Return the report of a run as JSON, and how long it took in words.

    Args:
        folder: for the checkpoints.
        settings: of the training.
        measures: what to analyze.
        command: kept in the report.
        overwrite: whether an earlier run in its folder is replaced.
    """
    import torch

    from flatkit.measures import analyze
    from flatkit.training import TrainingConfig, train

    # Threads only wait for each other on networks this small, badly so on a busy machine.
    torch.set_num_threads(1)
    started = time.perf_counter()
    checkpoint = train(TrainingConfig(**settings), folder, overwrite=overwrite).checkpoint
    trained = time.perf_counter()
    report = analyze(
        checkpoint,
        measures=measures,
        dtype="float64",
        search_budget=_SEARCH_BUDGET,
        progress=False,
        command=command,
    )
    analyzed = time.perf_counter()
    told = f"trained in {trained - started:.1f} s, analyzed in {analyzed - trained:.1f} s"
    return report.to_json(), told


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


def _write_report(comparison: Any, verdict: str, out: Path, drawing: Drawing) -> None:
    from flatkit.render import comparison_markdown, history_figure, save_figure, save_figures
    from flatkit.training.history import read_history

    folder, formats = out / "figures", drawing.formats
    histories = {name: read_history(out / name / "history.json") for name in _OPTIMIZERS}
    with drawing.style():
        figures = save_figures(comparison, folder, formats, dpi=drawing.dpi)
        history = history_figure(histories)
        figures += save_figure(history, folder, "history", formats, dpi=drawing.dpi)
    pictures = "\n\n".join(
        f"![{path.stem}]({path.relative_to(out).as_posix()})"
        for path in figures
        if path.suffix == f".{formats[0]}"
    )
    bullets = "\n".join(f"- {line}" for line in verdict.splitlines())
    parts = ["# SGD, SAM and GAM on digits", bullets, comparison_markdown(comparison), pictures]
    write_text_atomically(out / "report.md", "\n\n".join(parts) + "\n")
    comparison.to_html(out / "report.html")


def _print(comparison: Any, words: str) -> None:
    from flatkit.render import comparison_table

    show(comparison_table(comparison))
    click.echo(words)
