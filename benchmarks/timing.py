"""Interleaved timing: every contender runs once a round, so that noise hurts all alike."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from flatkit.files import write_text_atomically


def medians(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine(*packages: str) -> str:
    """Return one line that names the machine, the threads and the versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    return (
        f"{_processor()}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, {versions}"
    )


def save(name: str, title: str, command: str, lines: list[str], *packages: str) -> None:
    """Write benchmarks/results/NAME.md and print it."""
    text = "\n".join([f"# {title}", "", f"`{command}`, {machine(*packages)}.", "", *lines, ""])
    write_text_atomically(Path(__file__).parent / "results" / f"{name}.md", text)
    print(text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
