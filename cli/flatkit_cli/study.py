"""The command `flatkit study`."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.errors import InvalidArgumentError
from flatkit.render.notation import duration
from flatkit.studies.settings import read_study, study_names
from flatkit_cli.drawing import Drawing, drawing_options, take_drawing
from flatkit_cli.launched import is_launched, speaks
from flatkit_cli.output import draw, show
from flatkit_cli.processes import SharedCommand, processes_option

if TYPE_CHECKING:
    from flatkit.studies.outcome import Outcome
    from flatkit.studies.settings import Study


@click.command(
    cls=SharedCommand,
    short_help="train several optimizers over seeds and judge what is claimed of them",
    help=f"""Train every arm of STUDY with every seed, measure all alike, and say of each claim
(flatter; generalises better; both; more than the controls) whether it holds, fails or cannot be
told, by rules that are fixed before the numbers.

STUDY is a TOML file, or one that comes along: {", ".join(study_names())}. What is done lies in
--out and is never made again: the same command goes on after it was stopped. First it says how long
it will take.

\b
flatkit study digits --out studies/digits
flatkit study my_study.toml --out studies/mine --seeds 5 --plan
""",
)
@click.argument("source", metavar="STUDY")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the runs, tables and figures.  [default: studies/ and the name of STUDY]",
)
@click.option("--seeds", type=int, metavar="N", help="In place of those of the study: 0 to N - 1.")
@click.option("--jobs", type=int, metavar="N", help="Runs at once.  [default: as there are cores]")
@click.option("--plan", is_flag=True, help="Only say what it will take.")
@click.option("--no-plan", is_flag=True, help="Do not time an epoch of every arm beforehand.")
@processes_option
@drawing_options
def study(
    source: str,
    out: Path | None,
    seeds: int | None,
    jobs: int | None,
    plan: bool,
    no_plan: bool,
    **options: Any,
) -> None:
    """Read, plan, run and show; the help text is that of the command."""
    asked, drawing = read_study(source), take_drawing(options)
    drawing.check()
    if seeds is not None:
        from dataclasses import replace

        from flatkit.checks import check_count

        asked = replace(asked, seeds=tuple(range(check_count("seeds", seeds))))
    if is_launched() and jobs is not None:
        raise InvalidArgumentError(
            "jobs must be left out where several processes share a study, one run each"
        )
    # A trainer of the user's own has no epoch that could be timed here.
    if not no_plan and not asked.trainer:
        jobs = _planned(asked, jobs)
    elif plan:
        raise click.UsageError("--plan needs a study that flatkit trains, and no --no-plan")
    if plan:
        return

    carry_out(asked, out or Path("studies") / Path(source).stem, jobs, drawing)


def carry_out(asked: "Study", folder: Path, jobs: int | None, drawing: Drawing) -> None:
    """Run a study, or what is left of it; print its tables, write them, its figures and pages."""
    from flatkit.render.studies import StudyLines, watcher_here
    from flatkit.render.tables.study import study_tables
    from flatkit.studies.study import study as run_study

    begun = time.monotonic()
    found = run_study(asked, folder, jobs=jobs, progress=watcher_here(StudyLines))
    if not speaks():
        return
    show(study_tables(found))
    _write(found, folder, drawing)
    click.echo(f"{folder}: done in {time.monotonic() - begun:.0f} s", err=True)


def _planned(asked: "Study", jobs: int | None) -> int | None:
    """Say what a study will take; return how many runs at once fit in memory.

    Of several processes the first says it, and each makes one run at a time.
    """
    from flatkit.devices.joining import apart, current
    from flatkit.studies.forecast import forecast, jobs_that_fit

    count = current().count
    if not speaks():
        return None
    with apart():
        found = forecast(asked, jobs=jobs if count == 1 else count)
    fit = jobs_that_fit(found) if count == 1 else count
    words = f"{found.runs} runs" + (f" and {found.tuning} to choose values" if found.tuning else "")
    click.echo(
        f"{words}, {fit} at once: about {duration(found.seconds * found.jobs / fit)} (trainings "
        f"{duration(found.training)}, analyses {duration(found.analysis)} of one core each); "
        f"an analysis holds {found.memory / 2**20:.0f} MiB",
        err=True,
    )
    # Each of several processes makes one run at a time, whatever would fit.
    return fit if count == 1 else None


def _write(found: "Outcome", folder: Path, drawing: Drawing) -> None:
    from flatkit.files import write_text_atomically
    from flatkit.render.tables.study import study_markdown

    pictures: list[Path] = []
    for condition, comparison in found.comparisons.items():
        pictures += draw(comparison, folder / condition / "figures", drawing)
        pictures += _draw_study(found, folder, condition, drawing)
        click.echo(f"page: {comparison.to_html(folder / condition / 'report.html')}", err=True)
    links = [
        f"![{path.stem}]({path.relative_to(folder).as_posix()})"
        for path in pictures
        if path.suffix == f".{drawing.formats[0]}"
    ]
    text = "\n\n".join([study_markdown(found).rstrip(), *links]) + "\n"
    click.echo(f"table: {write_text_atomically(folder / 'report.md', text)}", err=True)


def _draw_study(found: "Outcome", folder: Path, condition: str, drawing: Drawing) -> list[Path]:
    """Write the figure of the claims, and the histories of the first seed."""
    from flatkit.errors import NothingToDrawError
    from flatkit.render.figures.claims import claims_figure
    from flatkit.render.figures.history import history_figure
    from flatkit.render.figures.save import save_figure
    from flatkit.training.history import read_history

    # Of one seed: the histories of all in one panel would hide each other.
    first = f"seed-{found.study.seeds[0]}"
    files = {
        arm.name: folder / condition / arm.name / first / "history.json" for arm in found.study.arms
    }
    histories = {arm: read_history(file) for arm, file in files.items() if file.is_file()}
    make = {"claims": lambda: claims_figure(found, condition=condition)}
    if any(histories.values()):
        make["history"] = lambda: history_figure(histories)
    target, written = folder / condition / "figures", list[Path]()
    with drawing.style():
        for name, drawn in make.items():
            with suppress(NothingToDrawError):
                written += save_figure(drawn(), target, name, drawing.formats, dpi=drawing.dpi)
    return written
