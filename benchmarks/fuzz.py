"""Thousands of damaged checkpoints of every format, each to be read or refused in order.

Every file is tried in a process whose memory is limited, under a clock. What counts as stray is
any exception but `CheckpointError`, a crash, a file that takes more than `SECONDS`, and one that
needs more than `MEGABYTES` beyond what the process had before the first.
"""

import faulthandler
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import click

from benchmarks.timing import save
from tests.checkpoints.mutations import FORMATS, attempt, damaged, write_all

SECONDS, MEGABYTES = 20, 512


class _TooSlow(Exception):
    pass


def _alarm(*_: object) -> None:
    raise _TooSlow


@click.command()
@click.option("--files", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(files: int, seed: int) -> None:
    """Damage, try, count and save benchmarks/results/fuzzing.md."""
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _alarm)
    counts: dict[str, Counter[str]] = {name: Counter() for name in FORMATS}
    stray, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_all(Path(folder))
        for path in seeds.values():  # everything is imported and warm
            assert attempt(path) == "read"
        before = _peak()
        limit = int(_virtual() + MEGABYTES * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(files):
            name = FORMATS[number % len(FORMATS)]
            target = Path(folder) / f"damaged-{name}"
            damaged(seeds[name], target, Random(f"{seed}:{number}"))
            started = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                outcome = attempt(target)
            except BaseException as error:
                outcome = "stray"
                stray.append(f"{number} ({name}): {type(error).__name__}: {error}"[:300])
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - started)
            counts[name][outcome] += 1
            if number % 1000 == 999:
                print(number + 1, dict(sum(counts.values(), Counter())), file=sys.stderr)
        grown = _peak() - before
    total = sum(counts.values(), Counter())
    rows = [
        f"| {name} | {c['read']} | {c['refused']} | {c['stray']} |" for name, c in counts.items()
    ]
    save(
        "fuzzing",
        "Damaged checkpoints",
        f"python -m benchmarks.fuzz --files {files} --seed {seed}",
        [
            f"{files:,} damaged files: {total['read']:,} read (the damage hit values, or "
            f"nothing that matters), {total['refused']:,} refused with `CheckpointError`, "
            f"{total['stray']} stray. The slowest took {slowest:.2f} s; the peak of memory grew "
            f"by {grown:.0f} MB, under a limit of {MEGABYTES} MB.",
            "",
            "| format | read | refused | stray |",
            "|---|--:|--:|--:|",
            *rows,
            *(["", *stray] if stray else []),
        ],
        "safetensors",
    )
    sys.exit(1 if stray else 0)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _virtual() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
