"""Interleaved timing: every contender runs once a round, so that noise hurts all alike."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from flatkit.files import write_text_atomically


def medians(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each contender after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = clock()
            run()
            if turn > 0:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""The environment in which glibc keeps freed memory."""


def keep_freed_memory(module: str) -> None:
    """Start the process again with a C library that keeps freed memory, unless it does so already.

    By default glibc gives memory back when the upper end of its heap is free, which the addresses
    of a few small tensors decide; the page faults of getting it anew cost a pass up to a tenth,
    and hit a contender throughout or not at all.

    Args:
        module: what `python -m` runs again, with the same arguments.
    """
    if any(os.environ.get(name) != value for name, value in KEEP.items()):
        sys.stdout.flush()
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **KEEP})


def machine(*packages: str) -> str:
    """Return one line that names the machine, the threads and the versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    kept = all(os.environ.get(name) == value for name, value in KEEP.items())
    return (
        f"{_processor()}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, {versions}"
        f"{'; freed memory kept by the C library' if kept else ''}"
    )


def save(name: str, title: str, command: str, lines: list[str], *packages: str) -> None:
    """Write benchmarks/results/NAME.md and print it."""
    text = "\n".join([f"# {title}", "", f"`{command}`, {machine(*packages)}.", "", *lines, ""])
    write_text_atomically(Path(__file__).parent / "results" / f"{name}.md", text)
    print(text)


def save_section(name: str, title: str, heading: str, command: str, lines: list[str]) -> None:
    """Write one section of benchmarks/results/NAME.md, the others stay; each names its run."""
    path = Path(__file__).parent / "results" / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    first, *rest = text.split("\n## ")
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in rest}
    sections[heading] = "\n".join(["", f"`{command}`, {machine()}.", "", *lines]).rstrip()
    body = "".join(f"\n\n## {key}\n\n{part.strip()}" for key, part in sections.items())
    write_text_atomically(path, f"{first.rstrip()}{body}\n")
    print(sections[heading], flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
