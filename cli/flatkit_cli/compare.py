"""The command `flatkit compare`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit_cli.options import Command
from flatkit_cli.output import format_option, output_options, take_output

if TYPE_CHECKING:
    from flatkit.results.comparison import Comparison, Entry

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    cls=Command,
    short_help="put saved reports side by side",
    help="""Put the reports and comparisons in RESULTS.json... side by side in one table.

A run is called flattest only where it is so beyond the spread. Reports of different functions
(other data, loss, dtype) are shown with a warning that names what differs.

\b
flatkit compare sgd.json gam.json
flatkit compare runs/*/report.json --figures figures --markdown report.md
""",
)
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="RESULTS.json...")
@output_options
@format_option
@click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there."
)
@click.option(
    "--repeats",
    is_flag=True,
    help="Reports of one name are repetitions of one method: show mean and spread.",
)
def compare(files: Sequence[Path], markdown: Path | None, repeats: bool, **options: Any) -> None:
    """Merge and show; the help text is that of the command."""
    from flatkit.files import check_writable
    from flatkit.render import comparison_table

    output, comparison = take_output(options), merge(files, repeats=repeats)
    if markdown is not None:
        check_writable(markdown)
    output.check()
    output.write(comparison, lambda: output.show(comparison, lambda: comparison_table(comparison)))
    if output.json_file == "-":
        warn(comparison)
    if markdown is not None:
        _write_markdown(comparison, markdown)
    output.draw(comparison)


def merge(files: Sequence[Path], *, repeats: bool = False) -> "Comparison":
    """Return the runs of several files as one comparison, each under a name of its own.

    Args:
        files: saved reports and comparisons.
        repeats: groups of one name in several files are one group; else they are kept apart.

    Raises:
        InvalidArgumentError: a file is given twice.
        ResultError: a file holds neither a report nor a comparison.

    >>> import tempfile
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> folder = Path(tempfile.mkdtemp())
    >>> report = Report([Result("loss", 0.5, 0.0)], checkpoint={"name": "gam"})
    >>> files = [report.save(folder / str(seed) / "gam.json") for seed in (0, 1)]
    >>> [entry.name for entry in merge(files).entries]
    ['gam (0/gam.json)', 'gam (1/gam.json)']
    >>> merge(files, repeats=True).groups
    ['gam']
    """
    from flatkit.errors import InvalidArgumentError
    from flatkit.results.comparison import Comparison, Entry, load_results

    places = [path.resolve() for path in files]
    for path, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise InvalidArgumentError(f"{path} is given twice; name every file once")
    loaded = [list(load_results(path).entries) for path in files]
    labels = _short(places)
    names, groups = _homes(loaded, "name"), _homes(loaded, "group")
    entries = []
    for number, found in enumerate(loaded):
        for entry in found:
            # Two files that use one name must not become one run, nor silently one method.
            suffix = f" ({labels[number]})"
            name = entry.name + (suffix if len(names[entry.name]) > 1 else "")
            apart = len(groups[entry.group]) > 1 and not repeats
            entries.append(Entry(name, entry.group + (suffix if apart else ""), entry.report))
    return Comparison(entries)


def warn(comparison: "Comparison") -> None:
    """Say on stderr if the runs measured different functions."""
    from flatkit.render import objective_differences

    for line in objective_differences(comparison):
        click.echo(f"warning: different functions were measured: {line}", err=True)


def _write_markdown(comparison: "Comparison", path: Path) -> None:
    from flatkit.files import write_text_atomically
    from flatkit.render import comparison_markdown

    write_text_atomically(path, comparison_markdown(comparison) + "\n")
    click.echo(f"table: {path}", err=True)


def _homes(loaded: "Sequence[Sequence[Entry]]", attribute: str) -> dict[str, set[int]]:
    """Return for every name the numbers of the files that use it."""
    homes: dict[str, set[int]] = {}
    for number, entries in enumerate(loaded):
        for entry in entries:
            homes.setdefault(getattr(entry, attribute), set()).add(number)
    return homes


def _short(places: Sequence[Path]) -> list[str]:
    """Return the paths without the folders that all of them share."""
    common = os.path.commonpath([place.parent for place in places])
    return [place.relative_to(common).as_posix() for place in places]
