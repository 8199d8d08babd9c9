"""The command `flatkit landscape`."""

import re
import sys
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.checks import check_choice
from flatkit.errors import FlatkitError
from flatkit.files import check_writable
from flatkit.landscape.directions import DIRECTIONS, kind_named
from flatkit.landscape.settings import LandscapeSettings
from flatkit_cli.drawing import names_in, take_drawing
from flatkit_cli.launched import speaks
from flatkit_cli.options import option, setting_options, take_settings
from flatkit_cli.pictures import (
    check_pictures,
    draw_surfaces,
    picture_options,
    show_numbers,
)
from flatkit_cli.processes import SharedCommand, processes_option
from flatkit_cli.subject import subject_options, take_subjects

if TYPE_CHECKING:
    from flatkit.landscape import LandscapeJob, Surface

_LINES = 10
_SECONDS = 20.0
"""Between two early pictures."""


def _kinds() -> str:
    """Return a line of help for every kind of directions."""
    own = [kind_named(name) for name in DIRECTIONS.homes]
    lines = {"FILE.npy" if kind.takes_vectors else kind.name: kind.help for kind in own}
    others = [name for name in DIRECTIONS.names if name not in DIRECTIONS.homes]
    lines |= dict.fromkeys(others, "of another package")  # which is not imported for its help
    width = max(map(len, lines))
    return "\n".join(f"  {name:{width}}  {words}" for name, words in lines.items())


@click.command(
    cls=SharedCommand,
    short_help="draw the loss around, between and along checkpoints",
    help=f"""Measure and draw the loss, accuracy and gradient norm around CHECKPOINT..., between
them, or along the trajectory that they are.

Model and data are rebuilt from what a checkpoint of flatkit names; those of other programs name
none, so that --task, or --model and --data, must.

Every surface is one .npz file in OUT, beside its pictures. A run that was killed goes on where it
was when the same command is given again. `flatkit plot` draws the files again, without the model.

\b
flatkit landscape runs/gam/ckpt.pt --out plane
flatkit landscape runs/sgd/ckpt.pt runs/gam/ckpt.pt --line --out lines
flatkit landscape runs/gam/ckpt.pt --directions eigenvectors --out sharpest
flatkit landscape runs/gam/epoch-*.pt --directions pca --out trajectory
flatkit landscape a/ckpt.pt b/ckpt.pt c/ckpt.pt --directions checkpoints --out between
flatkit landscape a.pth b.pth --task my_task.py:build --directions checkpoints --out own

\b
Directions:
{_kinds()}
""",
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@subject_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the files.")
@option(
    "--directions",
    default="random",
    show_default=True,
    metavar="KIND",
    help="See above.",
    group="Directions",
)
@option("--line", is_flag=True, help="One direction instead of two.", group="Directions")
@setting_options(LandscapeSettings, omit=("directions", "dimensions", "vectors"))
@click.option("--export", "exports", metavar="KIND[,KIND]", help="Also csv, h5 or vtk.")
@option("--figures/--no-figures", default=True, help="Whether to draw, in OUT.", group="Pictures")
@picture_options
@processes_option
@click.option("--overwrite", is_flag=True, help="Replace what was measured otherwise.")
def landscape(
    checkpoints: Sequence[Path],
    out: Path,
    directions: str,
    line: bool,
    exports: str | None,
    figures: bool,
    overwrite: bool,
    style: str,
    interactive: bool,
    level: float,
    **options: Any,
) -> None:
    """Measure, keep and draw; the help text is that of the command."""
    make_source, drawing = take_subjects(options), take_drawing(options)
    settings = _settings(directions, line, options)
    kinds = names_in(exports)
    check_pictures(drawing, level, interactive=interactive)
    from flatkit.landscape import EXPORTS

    for kind in kinds:
        check_choice("export", kind, EXPORTS)
    if speaks():
        check_writable(out / "surface.npz")

    from flatkit.landscape import export_surface, measure_into, plan_landscapes

    def draw(surfaces: "Sequence[Surface]") -> None:
        if figures and speaks():
            draw_surfaces(surfaces, out, style=style, drawing=drawing, interactive=interactive)

    surfaces: list[Surface] = []
    stems: list[str] = []
    for job in plan_landscapes([make_source(path) for path in checkpoints], settings):
        stems.append(_stem(job, stems))
        path = out / f"{stems[-1]}.npz"
        # Once, at the first surface; of one that is there already nothing is to come.
        if speaks() and not surfaces and not path.exists():
            _say_plan(job, len(checkpoints))
        with _progress(job.name) as progress:
            surface = measure_into(
                path,
                job,
                overwrite=overwrite,
                progress=progress,
                preview=_not_too_often(lambda early: draw([*surfaces, early])),
                note=lambda text: click.echo(f"note: {text}", err=True),
            )
        surfaces.append(surface)
        click.echo(f"surface: {path}", err=True)
        # All ranks measure, and the first writes.
        for kind in kinds if speaks() else ():
            exported = export_surface(surface, path.with_suffix(f".{kind}"), kind)
            click.echo(f"export: {exported}", err=True)
    # All of them on one scale, in the place of the early pictures.
    try:
        draw(surfaces)
    finally:
        show_numbers(surfaces, level=level)


def _say_plan(job: "LandscapeJob", checkpoints: int) -> None:
    """Say what a surface will take, and all of them where each checkpoint has its own."""
    from flatkit.landscape.directions.kind import ThroughKind
    from flatkit.measures.forecast import landscape_forecast
    from flatkit.render.live import say_plan

    one = isinstance(kind_named(job.kind), ThroughKind)
    say_plan(landscape_forecast(job), times=1 if one else checkpoints)


def _not_too_often(show: "Callable[[Surface], None]") -> "Callable[[Surface], None]":
    """Return a preview that is drawn only where measuring takes much longer than drawing."""
    last = time.monotonic()

    def preview(surface: "Surface") -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS:
            try:
                show(surface)
            # A full disk, or a coarse level without a finite value, must not end the measuring.
            except FlatkitError as error:
                click.echo(f"note: no early picture: {error}", err=True)
            last = time.monotonic()

    return preview


def _settings(directions: str, line: bool, options: dict[str, Any]) -> LandscapeSettings:
    given = take_settings(LandscapeSettings, options)
    if directions.endswith(".npy"):
        given |= {"directions": "given", "vectors": directions}
    else:
        given["directions"] = directions
    return LandscapeSettings(dimensions=1 if line else 2, **given)


def _stem(job: "LandscapeJob", taken: Collection[str]) -> str:
    """Return a file name without what shells and file systems dislike, and that is not taken."""
    name = re.sub(r"[^\w.+-]+", "-", job.name).strip("-.") or "surface"
    kind = f"{job.kind}-{'line' if job.dimensions == 1 else 'plane'}"
    # `a/b` and `a-b` become one name, and the second surface would be refused for the first.
    tried = (f"{name}{'' if n == 1 else f'-{n}'}-{kind}" for n in count(1))
    return next(stem for stem in tried if stem not in taken)


@contextmanager
def _progress(name: str) -> Generator[Callable[[int, int], None], None, None]:
    """Yield a callback that shows on stderr how far a surface is and how long it will take."""
    if not sys.stderr.isatty():
        started: list[float] = []  # when the first pass was done, and how many points then were
        shown = 0

        def log(done: int, total: int) -> None:
            nonlocal shown
            if not started:
                started[:] = time.monotonic(), done
            # Judged without the first pass, which reads and allocates what the others find.
            elif done * _LINES // total > shown:
                shown = done * _LINES // total
                left = (time.monotonic() - started[0]) / (done - started[1]) * (total - done)
                click.echo(f"{name}: {done} of {total} points, {left:.0f} s left", err=True)

        yield log
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # As a description: in a format of rich, braces and brackets of a name would be its own words.
    title = TextColumn("{task.description}", markup=False)
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
