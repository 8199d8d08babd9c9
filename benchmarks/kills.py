"""A study killed at a random time ends, when it goes on, with the same table bit for bit.

`python -m benchmarks.kills` runs a small study whole, then kills it by -9 in each of 20 trials at
a time drawn from a seeded generator, uniformly over what the whole one took; in every second trial
its processes with it, else these find that it is gone. Then the same call goes on. Its table,
claims and values are held against those of the whole study, byte by byte. About half an hour.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

import flatkit
from benchmarks.studies import digest
from benchmarks.timing import save

SMALL = flatkit.Study(
    title="A small study",
    arms=[
        flatkit.Arm("sgd"),
        flatkit.Arm("sam", {"optimizer": "sam"}, {"rho": [0.1, 0.2]}),
        flatkit.Arm("gam", {"optimizer": "gam"}),
    ],
    seeds=(0, 1),
    tuning_seeds=1,
    train={
        "data": "digits",
        "train_samples": 300,
        "validation_samples": 60,
        "model_kwargs": {"hidden": [16]},
        "epochs": 12,
        "save_every": 4,
    },
    analyze={
        "measures": ["loss", "accuracy", "top_eigenvalues", "trace", "first_order_flatness"],
        "samples": 120,
        "rho": [0.05],
        "search_budget": 20,
    },
)
"""Tuned, measured along the training, and with a search in a ball: 8 runs."""


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """Begin the study in a process group of its own, or go on with it."""
    command = [sys.executable, "-m", "benchmarks.kills", "--only", str(folder)]
    return subprocess.Popen(command, start_new_session=True)


def whole(folder: Path) -> str:
    """Run the study to its end; return the SHA-256 of all that it says."""
    if begin(folder).wait() != 0:
        raise SystemExit(f"the study in {folder} failed")
    return (folder / "sha256").read_text("utf-8")


def only(folder: Path) -> None:
    """Run the study in this process, and write down the SHA-256 of all that it says."""
    outcome = flatkit.study(SMALL, folder, jobs=2, progress=False)
    (folder / "sha256").write_text(digest(outcome), "utf-8")


def trial(number: int, seconds: float, folder: Path) -> tuple[float, int, str]:
    """Kill the study once and go on; return when, how many runs were done, and the SHA-256."""
    after = random.Random(number).uniform(0.02, 0.98) * seconds
    process = begin(folder)
    time.sleep(after)
    if number % 2:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    done = len(list(folder.rglob("outcome.json")))
    return after, done, whole(folder)


@click.command()
@click.option("--trials", default=20, show_default=True)
@click.option("--only", "alone", type=click.Path(path_type=Path), help="Run the study there.")
def main(trials: int, alone: Path | None) -> None:
    """Kill and go on, and put the table into benchmarks/results/kills.md."""
    if alone is not None:
        only(alone)
        return
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.monotonic()
        expected = whole(Path(scratch) / "whole")
        seconds, same = time.monotonic() - begun, 0
        lines = ["| trial | killed after, s | runs done then | same bits |", "|--:|--:|--:|---|"]
        for number in range(trials):
            after, done, found = trial(number, seconds, Path(scratch) / f"trial-{number}")
            same += found == expected
            words = "yes" if found == expected else "**no**"
            lines.append(f"| {number} | {after:.1f} | {done} of 8 | {words} |")
            print(lines[-1], flush=True)
    head = (
        f"{same} of {trials} ended with the table, claims and values of the study that nobody "
        f"killed, byte for byte; that one took {seconds:.0f} s on a machine that had other work. "
        "In odd trials the processes that work for it were killed with it."
    )
    save("kills", "A study killed and gone on", f"python -m benchmarks.kills --trials {trials}",
         [head, "", *lines])  # fmt: skip


if __name__ == "__main__":
    main()
