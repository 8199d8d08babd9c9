"""Thousands of tasks put together from parts, each held against a dense float64 reference.

`make fuzz-models` goes on where the last run stopped. A fault is a number beyond its stated error,
an exception that is no `FlatkitError`, or something of the user's that is another than before.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.timing import save
from tests.compositions import CHOICES, Verdict, drawn, judge

OUTCOMES = Path(__file__).parent.parent / ".fuzz" / "models.jsonl"


def known(seed: int) -> dict[int, dict[str, Any]]:
    """Return the outcomes of before, by number."""
    if not OUTCOMES.exists():
        return {}
    rows = map(json.loads, OUTCOMES.read_text("utf-8").splitlines())
    return {row["number"]: row for row in rows if row["seed"] == seed}


def tried(number: int, seed: int) -> dict[str, Any]:
    """Return how a composition ended, as a row."""
    composition = drawn(number, seed)
    started = time.perf_counter()
    try:
        verdict = judge(composition)
    except Exception as error:
        verdict = Verdict("reference failed", f"{type(error).__name__}: {error}"[:300])
    return {
        "seed": seed,
        "number": number,
        **vars(composition),
        "kind": verdict.kind,
        "words": verdict.words,
        "seconds": round(time.perf_counter() - started, 2),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the results in Markdown: by architecture and by loss, refusals, faults."""
    kinds = ["right", "refused", *sorted({r["kind"] for r in rows} - {"right", "refused"})]
    lines = []
    for part in ("architecture", "loss", "data", "wrapper", "ambient", "dtype"):
        lines += ["", f"| {part} | {' | '.join(kinds)} |", f"|---|{'--:|' * len(kinds)}"]
        for choice in map(str, CHOICES[part]):
            counts = Counter(r["kind"] for r in rows if str(r[part]) == choice)
            lines.append(f"| {choice} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    refusals = Counter(r["words"][:60] for r in rows if r["kind"] == "refused")
    lines += ["", "Refused in these words:", ""]
    lines += [f"- {count} x {words} ..." for words, count in refusals.most_common(30)]
    faults = [r for r in rows if r["kind"] not in ("right", "refused")]
    if faults:
        lines += ["", "Faults:", ""]
        lines += [f"- {r['number']}: {r['kind']}: {r['words']}"[:400] for r in faults[:50]]
    return lines


@click.command()
@click.option("--count", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Try, go on, and save benchmarks/results/models.md."""
    torch.set_num_threads(1)
    OUTCOMES.parent.mkdir(exist_ok=True)
    rows = known(seed)
    with (
        click.progressbar(range(count), label="tasks", file=sys.stderr) as numbers,
        OUTCOMES.open("a", encoding="utf-8") as file,
    ):
        for number in numbers:
            if number not in rows:
                rows[number] = tried(number, seed)
                file.write(json.dumps(rows[number]) + "\n")
                file.flush()
    chosen = [rows[number] for number in range(count)]
    counts = Counter(row["kind"] for row in chosen)
    said = ", ".join(f"{number:,} {kind}" for kind, number in counts.most_common())
    minutes = sum(row["seconds"] for row in chosen) / 60
    save(
        "models",
        "Tasks put together from parts",
        f"make fuzz-models, {count} tasks, seed {seed}",
        [
            f"{said}, in {minutes:.0f} minutes. Loss, norm of the gradient, two top and one bottom "
            "eigenvalue and the trace of each are held against a dense float64 reference; what is "
            "the user's against a digest of before.",
            *table(chosen),
        ],
    )
    sys.exit(any(kind not in ("right", "refused") for kind in counts))


if __name__ == "__main__":
    main()
