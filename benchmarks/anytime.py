"""A whole analysis by its defaults: when the first numbers are there, what it holds and takes.

`python -m benchmarks.anytime resnet18` analyzes a ResNet-18 with 500 images of 32x32; `plans` holds
forecasts of six jobs against what then happens; `killed` kills such an analysis and lets the same
command go on.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import nn

import flatkit
from benchmarks.timing import save
from flatkit.measures.report import plan
from flatkit.measures.watching import Silent
from flatkit.models import MODELS
from flatkit.render.live import live_table

_IMAGES = 500


def images(count: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images with a structure that a network can learn, and their classes."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=draws)
    pictures = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    pictures += 0.3 * torch.randn(count, 3, size, size, generator=draws)
    weights = torch.randn(coarse[0].numel(), 10, generator=draws)
    return pictures, (coarse.flatten(1) @ weights).argmax(1)


def trained(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], steps: int) -> nn.Module:
    """Train for a few steps, so that the curvature is that of no random network."""
    inputs, targets = data
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * (step + 1)) % len(inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return model.eval()


def resnet18() -> flatkit.Task:
    """Return the task of a ResNet-18 after 16 steps."""
    torch.manual_seed(0)
    data = images(_IMAGES)
    model = MODELS.build("resnet18", in_shape=(3, 32, 32), classes=10)
    return flatkit.Task(trained(model, data, 16), "cross_entropy", data, name="ResNet-18")


class Recorder(Silent):
    """Notes when numbers were first there, and a table now and then."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.tables: list[tuple[float, str]] = []

    def look(self, schedule: Any) -> None:
        """Note what is new."""
        elapsed = time.monotonic() - schedule.started
        for process in schedule.processes:
            if process.results:
                self.first.setdefault(process.name, elapsed)
        if not self.tables or elapsed > 1.5 * self.tables[-1][0] + 10:
            text = StringIO()
            Console(file=text, width=100).print(live_table(schedule))
            self.tables.append((elapsed, text.getvalue()))


def whole() -> list[str]:
    """Analyze a ResNet-18 by the defaults, in this process."""
    begun = time.monotonic()
    task = resnet18()
    made = time.monotonic() - begun
    recorder = Recorder()
    report = flatkit.analyze(task, progress=recorder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    top, rows = report.result("top_eigenvalues"), report.analysis
    lines = [
        f"After {made:.0f} s of training: {rows['gradients']:.0f} gradients in "
        f"{rows['seconds']:.0f} s, ended by {rows['ended']}; peak memory of the process "
        f"{peak:.2f} GiB.",
        "",
        "| number | first there after, s |",
        "|---|--:|",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in recorder.first.items()),
        "",
        f"Top eigenvalue {top.value[0]:.4g}, error {top.error[0]:.2g}, {top.status}, "
        f"{top.cost.matvecs} products.",
    ]
    wanted = [recorder.tables[0], recorder.tables[min(2, len(recorder.tables) - 1)]]
    for elapsed, table in [*wanted, recorder.tables[-1]]:
        lines += ["", f"After {elapsed:.0f} s:", "", "```", table.rstrip(), "```"]
    return lines


def jobs() -> Mapping[str, tuple[Callable[[], flatkit.Task], dict[str, Any]]]:
    """Return six jobs, and what is asked of each."""

    def network(name: str, count: int, size: int, **more: Any) -> flatkit.Task:
        torch.manual_seed(0)
        data = images(count, size)
        model = MODELS.build(name, in_shape=(3, size, size), classes=10, **more)
        return flatkit.Task(trained(model, data, 4), "cross_entropy", data)

    return {
        "MLP, 1,000 samples, budget 200": (lambda: network("mlp", 1000, 8), {"budget": 200.0}),
        "CNN, 500, budget 100": (lambda: network("cnn", 500, 16), {"budget": 100.0}),
        "ResNet-20, 128, budget 20": (lambda: network("resnet20", 128, 32), {"budget": 20.0}),
        "ResNet-20, 128, 30 s": (lambda: network("resnet20", 128, 32), {"time": "30s"}),
        "ViT, 64, budget 20": (lambda: network("vit", 64, 32), {"budget": 20.0}),
        "ResNet-18, 32, budget 12": (lambda: network("resnet18", 32, 32), {"budget": 12.0}),
    }


def plans() -> list[str]:
    """Hold forecasts against what then happens."""
    lines = ["| job | forecast, s | took, s | ratio |", "|---|--:|--:|--:|"]
    for name, (make, given) in jobs().items():
        task = make()
        schedule = plan(task, **given)
        forecast, limit = schedule.forecast, schedule.limit
        seconds = limit.until - schedule.started
        expected = forecast.seconds(forecast.within(limit.gradients, seconds))
        took = flatkit.analyze(task, progress=False, **given).analysis["seconds"]
        lines.append(f"| {name} | {expected:.1f} | {took:.1f} | {expected / took:.2f} |")
    return lines


def killed() -> list[str]:
    """Kill an analysis at half time, and let the same command go on."""
    lines = ["| run | ended | gradients | seconds |", "|---|---|--:|--:|"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks.anytime", "journal", "--out", str(out)]
        first = subprocess.Popen(command)
        time.sleep(150)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        lines.append("| killed by -9 | | | 150 |")
        subprocess.run(command, check=True)
        rows = json.loads(out.read_text("utf-8"))["analysis"]
        lines.append(
            f"| the same command | {rows['ended']} | {rows['gradients']:.0f} "
            f"| {rows['seconds']:.0f} |"
        )
    return lines


PARTS: Mapping[str, tuple[str, Callable[[], list[str]]]] = {
    "resnet18": ("A default analysis of a ResNet-18", whole),
    "plans": ("Forecasts", plans),
    "killed": ("Killed and gone on", killed),
}


@click.command()
@click.argument("part", type=click.Choice([*PARTS, "journal"]))
@click.option("--threads", default=2, show_default=True)
@click.option("--out", default="")
def main(part: str, threads: int, out: str) -> None:
    """Run one part and put it into benchmarks/results/anytime-PART.md."""
    torch.set_num_threads(threads)
    if part == "journal":
        report = flatkit.analyze(resnet18(), budget=24.0, journal=f"{out}.journal", progress=False)
        report.save(out)
        return
    title, run = PARTS[part]
    found = run()
    command = re.sub(r"\s+", " ", f"python -m benchmarks.anytime {part} --threads {threads}")
    save(f"anytime-{part}", title, command, found)


if __name__ == "__main__":
    main()
