"""The studies that come along, run and written down.

`python -m benchmarks.studies digits --twice` runs a study whole, or what is left of it, into
`studies/digits`, and writes benchmarks/results/study-digits.md. With `--twice` it is run in a
second folder, too, and must end with the same numbers bit for bit. `--seeds 1` takes the first seed
alone; more seeds may follow in the same folder. Runs of CIFAR-10 and Fashion-MNIST that are done
are kept as JSON: `python -m benchmarks.studies cifar10 --out benchmarks/results/study-cifar10` goes
on from them.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

import flatkit
from benchmarks.timing import save
from flatkit.render.studies import StudyLines
from flatkit.render.tables.study import study_markdown
from flatkit.studies.outcome import Outcome
from flatkit.studies.settings import Study, read_study

_WORDS = (
    "Low curvature need not be the reason of what generalises: SAM resists wrong labels by what it "
    "does to early gradients (Baek et al., ICLR 2024), and sharper networks can be the better ones."
)


def said(outcome: Outcome) -> str:
    """Return all that a study says, without times: its tables, its claims, every number."""
    comparisons = [*outcome.comparisons.values(), *outcome.along.values()]
    lines = [
        f"{entry.name} {result.measure} {result.value!r} {result.error!r}"
        for comparison in comparisons
        for entry in comparison.entries
        for result in entry.report
    ]
    return "\n".join([study_markdown(outcome), json.dumps(outcome.to_dict()), *lines])


def digest(outcome: Outcome) -> str:
    """Return the SHA-256 of all that a study says."""
    return hashlib.sha256(said(outcome).encode()).hexdigest()


class Told(StudyLines):
    """Says a line a run, and makes no early outcomes, which take minutes of many runs."""

    def early(self, seeds: int, outcome: Callable[[], Outcome]) -> None:
        """Say nothing."""


def run(asked: Study, folder: Path, jobs: int | None) -> tuple[Outcome, str]:
    """Run a study, or what is left of it; return what came out, and how long that took in words."""
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = flatkit.study(asked, folder, jobs=jobs, progress=Told())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = f"{(time.monotonic() - begun) / 60:.1f} min, {used / 60:.1f} min of the cores"
    return outcome, took


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="[default: studies/NAME]")
@click.option("--seeds", type=int, help="The first so many; by default those of the study.")
@click.option("--jobs", type=int, help="Runs at once; by default as there are cores.")
@click.option("--twice", is_flag=True, help="Run it in a second folder, and compare the bits.")
def main(name: str, out: Path | None, seeds: int | None, jobs: int | None, twice: bool) -> None:
    """Run a study and write down what it says."""
    asked, folder = read_study(name), out or Path("studies") / name
    if seeds is not None:
        asked = replace(asked, seeds=tuple(range(seeds)))
    outcome, took = run(asked, folder, jobs)
    lines = [f"{outcome!r} in {took} (of this call; what was done before is not made again)."]
    lines += [f"SHA-256 of all that it says: `{digest(outcome)}`."]
    if twice:
        other, again = run(asked, folder.with_name(f"{folder.name}-again"), jobs)
        same = said(other) == said(outcome)
        lines += [f"A second time, in {again}: {'the same bits' if same else '**other bits**'}."]
    _, _, tables = study_markdown(outcome).partition("\n\n")
    more = "".join([f" --seeds {seeds}" if seeds else "", " --twice" if twice else ""])
    command = f"python -m benchmarks.studies {name}{more}"
    save(f"study-{name}", asked.title, command, [*lines, "", _WORDS, "", tables.rstrip()])


if __name__ == "__main__":
    main()
