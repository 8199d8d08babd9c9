"""A whole analysis by its defaults: when the first numbers are there, what it holds and takes.

`python -m benchmarks.anytime resnet18` analyzes a ResNet-18 with 500 images of 32x32; `plans` holds
forecasts of six jobs against what then happens; `killed` kills such an analysis at half time and
lets the same command go on (`--network resnet20` takes a minute). Each ends within ten minutes.
"""

import json
import os
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
from flatkit.render.live import Lines, live_table

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


def train(network: str, out: Path) -> None:
    """Train a network for 16 steps and save its weights."""
    torch.manual_seed(0)
    model = MODELS.build(network, in_shape=(3, 32, 32), classes=10)
    torch.save(trained(model, images(KILLED[network][0]), 16).state_dict(), out)


def trained_task(network: str, weights: Path) -> flatkit.Task:
    """Return the task of a network whose weights were saved."""
    model = MODELS.build(network, in_shape=(3, 32, 32), classes=10)
    model.load_state_dict(torch.load(weights))
    return flatkit.Task(model.eval(), "cross_entropy", images(KILLED[network][0]), name=network)


def peak_memory() -> float:
    """Return the most that this process held so far, in GB of 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


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


def whole(threads: int) -> list[str]:
    """Analyze a ResNet-18 by the defaults; another process trains it, whose memory is not ours."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        command = [sys.executable, "-m", "benchmarks.anytime", "train", "--out", str(weights)]
        subprocess.run([*command, "--threads", str(threads)], check=True)
        task = trained_task("resnet18", weights)
    before, recorder = peak_memory(), Recorder()
    report = flatkit.analyze(task, progress=recorder)
    peak = peak_memory()
    top, rows = report.result("top_eigenvalues"), report.analysis
    lines = [
        f"{rows['gradients']:.0f} gradients in {rows['seconds']:.0f} s, ended by "
        f"{rows['ended']}; peak memory of the process {peak:.2f} GB (of 10⁹ bytes), of which "
        f"torch, the model and the images took {before:.2f} before the analysis.",
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

    def gpt2() -> flatkit.Task:
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(n_embd=320, n_layer=8, n_head=8, vocab_size=512)
        config.bos_token_id = config.eos_token_id = 0
        words = torch.randint(512, (16, 64))
        model = transformers.GPT2LMHeadModel(config).eval()
        return flatkit.Task(model, "model", {"input_ids": words, "labels": words})

    return {
        "MLP, 1,000 samples, budget 200": (lambda: network("mlp", 1000, 8), {"budget": 200.0}),
        "CNN, 500, budget 100": (lambda: network("cnn", 500, 16), {"budget": 100.0}),
        "ResNet-20, 128, budget 20": (lambda: network("resnet20", 128, 32), {"budget": 20.0}),
        "ResNet-20, 128, 30 s": (lambda: network("resnet20", 128, 32), {"time": "30s"}),
        "GPT-2 of 10 M, 16 x 64 tokens, budget 12": (gpt2, {"budget": 12.0}),
        "ResNet-18, 32, budget 12": (lambda: network("resnet18", 32, 32), {"budget": 12.0}),
    }


def plans(most: float = 540.0) -> list[str]:
    """Hold forecasts against what then happens; no further job begins after so many seconds."""
    begun = time.monotonic()
    lines = ["| job | forecast, s | took, s | ratio |", "|---|--:|--:|--:|"]
    for name, (make, given) in jobs().items():
        if time.monotonic() - begun > most:
            lines.append(f"| {name} | | not run: {most:.0f} s were over | |")
            continue
        task = make()
        schedule = plan(task, **given)
        forecast, limit = schedule.forecast, schedule.limit
        seconds = limit.until - schedule.started
        expected = forecast.seconds(forecast.within(limit.gradients, seconds))
        took = flatkit.analyze(task, progress=False, **given).analysis["seconds"]
        lines.append(f"| {name} | {expected:.1f} | {took:.1f} | {expected / took:.2f} |")
        print(lines[-1], flush=True)
    return lines


KILLED: Mapping[str, tuple[int, float]] = {"resnet18": (_IMAGES, 18.0), "resnet20": (64, 18.0)}
"""Networks that are killed: images, and gradients of the budget."""


def killed(network: str, threads: int) -> list[str]:
    """Kill an analysis at half time, let the same command go on, and show what both printed."""
    count, budget = KILLED[network]
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights.pt", Path(folder) / "report.json"
        train(network, weights)
        forecast = plan(trained_task(network, weights), budget=budget).forecast
        half = forecast.seconds(budget) / 2
        command = [sys.executable, "-m", "benchmarks.anytime", "journal", "--network", network]
        command += ["--threads", str(threads), "--out", str(out)]
        first = _Run(command, folder)
        journal = Path(f"{out}.journal")
        while not journal.exists() and first.process.poll() is None:
            time.sleep(0.05)  # until torch is imported and the function is examined
        time.sleep(half)
        first.kill()
        again = _Run(command, folder)
        again.process.wait()
        report = json.loads(out.read_text("utf-8"))
        seconds, told = (first.seconds, again.seconds), (first.told, again.told)
    found, top = report["analysis"], _value(report, "top_eigenvalues")
    return [
        f"{network}, {count} images, {budget:.0f} gradients; about {2 * half:.0f} s by the plan.",
        "",
        "| run | ended | gradients | top eigenvalue | seconds in all |",
        "|---|---|--:|--:|--:|",
        f"| killed by -9 after {half:.0f} s of it | | | | {seconds[0]:.0f} |",
        f"| the same command | {found['ended']} | {found['gradients']:.0f} | {top} "
        f"| {seconds[1]:.0f} |",
        *("", "What the first run had told:", "", "```", told[0], "```"),
        *("", "What the second one told:", "", "```", told[1], "```"),
    ]


class _Run:
    """A process whose lines on stderr are kept.

    Attributes:
        process: that runs.
    """

    def __init__(self, command: list[str], folder: str) -> None:
        self._begun, self._file = time.monotonic(), Path(folder) / f"told-{time.monotonic_ns()}"
        self._seconds = 0.0
        with self._file.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file)

    def kill(self) -> None:
        """Kill it by -9."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._seconds = self.seconds

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self._seconds or time.monotonic() - self._begun

    @property
    def told(self) -> str:
        """What it wrote to stderr."""
        return self._file.read_text("utf-8").rstrip()


def _value(report: Any, measure: str) -> str:
    values = [each["value"] for each in report["results"] if each["measure"] == measure]
    return f"{values[0][0]:.6g}" if values else "-"


def journal(network: str, out: str) -> None:
    """Analyze the network whose weights lie beside the report, with a journal and lines."""
    given: dict[str, Any] = {"journal": f"{out}.journal", "progress": Lines()}
    task = trained_task(network, Path(out).with_name("weights.pt"))
    flatkit.analyze(task, budget=KILLED[network][1], **given).save(out)


TITLES: Mapping[str, str] = {
    "resnet18": "A default analysis of a ResNet-18",
    "plans": "Forecasts",
    "killed": "Killed and gone on",
}


@click.command()
@click.argument("part", type=click.Choice([*TITLES, "train", "journal"]))
@click.option("--threads", default=2, show_default=True)
@click.option("--network", type=click.Choice(list(KILLED)), default="resnet18", show_default=True)
@click.option("--out", default="", help="What `train` and `journal` write, for other parts.")
def main(part: str, threads: int, network: str, out: str) -> None:
    """Run one part and put it into benchmarks/results/anytime-PART.md."""
    torch.set_num_threads(threads)
    command = f"python -m benchmarks.anytime {part} --threads {threads}"
    match part:
        case "train":
            train(network, Path(out))
            return
        case "journal":
            journal(network, out)
            return
        case "killed":
            found = killed(network, threads)
            command += f" --network {network}"
        case "resnet18":
            found = whole(threads)
        case _:
            found = plans()
    save(f"anytime-{part}", TITLES[part], command, found)


if __name__ == "__main__":
    main()
