"""What a plane costs, against bare loops of passes and the package loss-landscapes.

Run with `python -m benchmarks.landscape [SECTION...]`; writes those sections (small, resnet,
killed, memory, refined; all by default) of benchmarks/results/landscape.md. The ResNet-20 is
untrained and its images are random: only the arithmetic matters for the cost.
"""

import copy
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.refinement import refined_lines
from benchmarks.resnet20 import resnet20
from benchmarks.timing import medians, save_section
from flatkit import Objective
from flatkit.landscape import (
    LandscapeJob,
    Subspace,
    axis_steps,
    load_surface,
    random_direction,
    random_subspace,
)
from flatkit.landscape.evaluate import evaluator
from flatkit.training import TrainingConfig, train

POINTS = 21


class Setting:
    """A network with data, a plane through it, and the bare loops that it is measured against."""

    def __init__(self, model: nn.Module, inputs: Tensor, classes: int) -> None:
        self.model = model.eval()
        self.data = inputs, torch.arange(len(inputs)) % classes
        self.objective = Objective(model, "cross_entropy", self.data)
        generator = torch.Generator().manual_seed(0)
        space, theta = self.objective.space, self.objective.theta
        self.first, self.second = (
            random_direction(space, theta, generator=generator) for _ in range(2)
        )
        self.steps = axis_steps(-0.5, 0.5, POINTS).tolist()
        self.found: dict[str, np.ndarray] = {}

    def bare(
        self, *, gradient: bool = False, points: int = POINTS, chunk: int = 10**9
    ) -> Callable[[], None]:
        """Return a loop that writes weights in place and makes passes, nothing else."""
        own = copy.deepcopy(self.model)
        parameters = list(own.parameters())
        shapes = [p.numel() for p in parameters]
        x, y = self.data

        def run() -> None:
            losses = []
            for up in self.steps[:points]:
                for right in self.steps:
                    point = self.objective.theta + (right * self.first + up * self.second)
                    with torch.no_grad():
                        for p, part in zip(parameters, point.split(shapes), strict=True):
                            p.copy_(part.view_as(p))
                    loss, total = 0.0, [torch.zeros_like(p) for p in parameters if gradient]
                    for a, b in zip(x.split(chunk), y.split(chunk), strict=True):
                        with torch.set_grad_enabled(gradient):
                            part = cross_entropy(own(a), b) * (len(b) / len(y))
                        if gradient:
                            torch._foreach_add_(total, torch.autograd.grad(part, parameters))
                        loss += float(part.detach())
                    norms = [float(g.norm()) for g in total]
                    losses.append(float(np.linalg.norm(norms)) if gradient else loss)
            self.found["bare"] = np.array(losses)

        return run

    def plane(self, points: int = POINTS, *, with_accuracy: bool = True) -> None:
        """Measure the loss, and the accuracy unless told otherwise, on some rows of the plane."""
        plane = LandscapeJob(
            {"train": self.objective},
            Subspace("random", self.objective.theta, torch.stack([self.first, self.second])),
            {"x": np.array(self.steps), "y": np.array(self.steps[:points])},
            quantities=("loss", "accuracy") if with_accuracy else ("loss",),
        ).measure()
        self.found["flatkit"] = plane.quantities["loss"].ravel()

    def gradient_rows(self, points: int) -> None:
        """Measure the gradient norm on some rows of the plane."""
        directions = torch.stack([self.first, self.second])
        rows = evaluator(
            self.objective, self.objective.theta, directions, quantities=("loss", "gradient_norm")
        )
        steps = [[right, up] for up in self.steps[:points] for right in self.steps]
        self.found["gradients"] = np.array([v["gradient_norm"] for v in rows.values(steps)])

    def peer(self, points: int) -> None:
        """Measure the plane with loss-landscapes: its walk, our directions, our corner."""
        from loss_landscapes.metrics import Loss
        from loss_landscapes.model_interface.model_wrapper import wrap_model

        start = copy.deepcopy(self.model)
        corner = self.objective.theta + self.steps[0] * (self.first + self.second)
        nn.utils.vector_to_parameters(corner, start.parameters())
        wrapped, metric = wrap_model(start), Loss(nn.CrossEntropyLoss(), *self.data)
        one, two = (
            self._peer_vector(d * 2 * 0.5 / (POINTS - 1)) for d in (self.first, self.second)
        )
        point, rows = wrapped.get_module_parameters(), []
        for _ in range(points):  # as planar_interpolation does, but without its shifted rows
            row = []
            for column in range(POINTS):
                row.append(metric(wrapped))
                if column < POINTS - 1:
                    point.add_(one)
            for _ in range(POINTS - 1):
                point.sub_(one)
            point.add_(two)
            rows.append(row)
        self.found["loss-landscapes"] = np.array(rows).ravel()

    def _peer_vector(self, direction: Tensor) -> Any:
        from loss_landscapes.model_interface.model_parameters import ModelParameters

        shapes = [p.shape for p in self.model.parameters()]
        parts = direction.split([s.numel() for s in shapes])
        return ModelParameters([part.view(s) for part, s in zip(parts, shapes, strict=True)])


def mlp(*widths: int) -> nn.Module:
    """Return a ReLU network."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


SMALL = (
    ((2, 16, 16, 2), 200),
    ((64, 32, 10), 512),
    ((64, 64, 64, 10), 256),
    ((64, 64, 64, 10), 1437),
    ((784, 128, 10), 512),
)


def operators(widths: tuple[int, ...], samples: int, batch: int) -> dict[str, Callable[[], None]]:
    """Return what a pass of so many points through all layers but the first must compute.

    Written out with the fastest forms that we found, in memory that is there already: the products
    alone, and with everything that is done to their elements, the first layer as an affine
    function included. Weights are neither moved nor looked up.
    """
    rows = min(samples, 256)
    layers = [(torch.randn(batch, b, a), torch.randn(batch, b, 1)) for a, b in pairwise(widths[1:])]
    buffers = [torch.randn(batch, width, rows) for width in widths[1:]]
    first, steps = torch.randn(3, widths[1], rows), torch.randn(2, batch, 1, 1)
    targets = (torch.arange(rows) % widths[-1]).expand(batch, -1)

    def products() -> None:
        for number, (weights, bias) in enumerate(layers):
            torch.baddbmm(bias, weights, buffers[number], out=buffers[number + 1])

    def everything() -> None:
        torch.addcmul(first[0], steps[0], first[1], out=buffers[0])
        buffers[0].addcmul_(steps[1], first[2]).relu_()
        for number, (weights, bias) in enumerate(layers):
            torch.baddbmm(bias, weights, buffers[number], out=buffers[number + 1])
            if number + 1 < len(layers):
                buffers[number + 1].relu_()
        cross_entropy(buffers[-1], targets, reduction="none").sum(1)

    def passes(run: Callable[[], None]) -> Callable[[], None]:
        def all_points() -> None:  # the last part of the samples counts by its size
            for _ in range(round(POINTS**2 / batch * samples / rows)):
                run()

        return torch.no_grad()(all_points)

    return {"products": passes(products), "operators": passes(everything)}


def small_lines() -> list[str]:
    """Compare small networks with the bare loop, and with the operators by themselves."""
    lines = [
        "21x21 points; microseconds a point, of the processor's time; medians of 15 interleaved",
        "rounds. The bare loop measures the loss alone, and so does the plane that is held against",
        "the bar; beside it stands the plane of loss and accuracy, as `analyze` measures it",
        "Products: the products of matrices of all layers but the first,",
        "stacked, and nothing else. Operators: they and all that is done to elements (the first",
        "layer, an affine function of the steps, and the losses included), in memory that is there",
        "already. Bare loop over operators is the speed-up that no engine made of these operators",
        "can exceed: below 3, the bar is beyond the arithmetic.",
        "",
        "| network, samples | points in a pass | bare loop | products | operators | plane, loss "
        "| speed-up, bar >= 3 | bare loop over operators | plane, loss and accuracy | speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for widths, samples in SMALL:
        torch.manual_seed(0)
        setting = Setting(mlp(*widths), torch.randn(samples, widths[0]), widths[-1])
        directions = torch.stack([setting.first, setting.second])
        batch = evaluator(setting.objective, setting.objective.theta, directions).batch
        contenders = {
            "bare": setting.bare(),
            "loss": partial(setting.plane, with_accuracy=False),
            "both": setting.plane,
            **operators(widths, samples, batch),
        }
        seconds = medians(contenders, rounds=15, clock=time.process_time)
        cost = {name: 1e6 * value / POINTS**2 for name, value in seconds.items()}
        faster = {name: cost["bare"] / value for name, value in cost.items()}
        name = "-".join(map(str, widths))
        lines.append(
            f"| MLP {name}, {samples} | {batch} | {cost['bare']:.0f} | {cost['products']:.0f} "
            f"| {cost['operators']:.0f} | {cost['loss']:.0f} | {faster['loss']:.2f} "
            f"| {faster['operators']:.2f} | {cost['both']:.0f} | {faster['both']:.2f} |"
        )
    return lines


def resnet_lines(rounds: int, rows: int) -> list[str]:
    """Compare ResNet-20 on 512 images: the plane, and rows of gradient norms."""
    torch.manual_seed(0)
    setting = Setting(resnet20(), torch.randn(512, 3, 32, 32), 10)
    contenders = {
        "bare": setting.bare(points=rows),
        "same chunks": setting.bare(points=rows, chunk=setting.objective.chunk_size),
        "plane": lambda: setting.plane(rows),
        "peer": lambda: setting.peer(rows),
    }
    seconds = medians(contenders, rounds=rounds)
    ours, theirs = setting.found["flatkit"], setting.found["loss-landscapes"]
    gap = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    gradient = medians(
        {
            "bare": setting.bare(gradient=True, points=rows),
            "same chunks": setting.bare(
                gradient=True, points=rows, chunk=setting.objective.chunk_size
            ),
            "rows": lambda: setting.gradient_rows(rows),
        },
        rounds=rounds,
    )
    return [
        "| what | bar | measured |",
        "|---|---|---|",
        f"| {rows} row of the 21x21 plane (loss and accuracy) over the bare loop | <= 1.05 "
        f"| {seconds['plane'] / seconds['bare']:.3f} |",
        f"| the same over a bare loop in our chunks of {setting.objective.chunk_size} images "
        f"| <= 1.05 | {seconds['plane'] / seconds['same chunks']:.3f} |",
        f"| loss-landscapes over the plane | >= 1.3 | {seconds['peer'] / seconds['plane']:.3f} |",
        f"| largest difference from it, relative to the largest loss | 1e-5 | {gap:.1e} |",
        f"| gradient norms ({rows} row, with the loss) over a bare loop | <= 1.1 "
        f"| {gradient['rows'] / gradient['bare']:.3f} |",
        f"| the same over a bare loop in our chunks | <= 1.1 "
        f"| {gradient['rows'] / gradient['same chunks']:.3f} |",
        "",
        "The gain over one pass of 512 images comes from the chunks, not from the engine.",
    ]


def killed_lines() -> list[str]:
    """Kill the command at half of its points, start it again, and compare with one that ran."""
    folder = Path(tempfile.mkdtemp())
    config = TrainingConfig(
        data="digits", model="cnn", model_kwargs={"width": 4}, epochs=2, device="cpu"
    )
    checkpoint = train(config, folder / "run").checkpoint
    command = [sys.executable, "-m", "flatkit_cli.main", "landscape", str(checkpoint)]
    command += ["--points", "15", "--samples", "200", "--no-figures", "--out"]
    environment = {**os.environ, "PYTHONPATH": "cli", "OMP_NUM_THREADS": "1"}
    total = 15 * 15
    job = subprocess.Popen([*command, str(folder / "killed")], env=environment)
    journal = folder / "killed" / "run-random-plane.npz.journal"
    while job.poll() is None and _num_points(journal) < total // 2:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait()
    kept = _passes(journal)
    second = subprocess.Popen([*command, str(folder / "killed")], env=environment)
    seen = kept
    while second.poll() is None:  # the journal goes when the surface is saved
        seen = _passes(journal) or seen
        time.sleep(0.01)
    subprocess.run([*command, str(folder / "whole")], env=environment, check=True)
    one, other = (
        load_surface(folder / name / "run-random-plane.npz") for name in ("killed", "whole")
    )
    identical = all(
        np.array_equal(one.quantities[name], other.quantities[name]) for name in other.quantities
    )
    untouched = seen[: len(kept)] == kept
    # The first entry says what is measured; a pass that is kept again takes the next number.
    twice = max(number for number, _, _ in seen) - 1 - len(seen)
    finished = sum(len(json.loads(points)) for _, points, _ in kept)
    return [
        f"`flatkit landscape` of {total} points, killed with SIGKILL once half were finished.",
        "",
        "| what | bar | measured |",
        "|---|---|---|",
        f"| points finished before the kill, of {total} | half | {finished} |",
        f"| points measured twice (seen in the journal) | 0 | {twice} |",
        f"| finished points were left as they were | yes | {'yes' if untouched else 'NO'} |",
        f"| surface identical, bit for bit, to an uninterrupted one | yes "
        f"| {'yes' if identical else 'NO'} |",
    ]


def _passes(journal: Path) -> list[tuple[int, str, bytes]]:
    """Return number, points and values of the passes in a journal that another process writes."""
    with tempfile.TemporaryDirectory() as folder:
        for end in ("", "-wal"):  # the second is written over only after a thousand pages
            source = journal.with_name(journal.name + end)
            with suppress(FileNotFoundError):
                shutil.copy(source, f"{folder}/copy{end}")
        with closing(sqlite3.connect(f"{folder}/copy")) as connection, suppress(sqlite3.Error):
            select = "SELECT rowid, key, value FROM entries WHERE kind = 'points' ORDER BY rowid"
            return connection.execute(select).fetchall()
    return []


def _num_points(journal: Path) -> int:
    return sum(len(json.loads(points)) for _, points, _ in _passes(journal))


MEMORY = """
import resource, sys, tempfile
import torch
from benchmarks.landscape import job_of
torch.set_num_threads(1)
job_of(int(sys.argv[1])).measure(journal=tempfile.mkdtemp() + "/j")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def job_of(points: int) -> LandscapeJob:
    """Return a plane of so many steps along an axis, of a network with 0.5 million weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 600), nn.Tanh(), nn.LayerNorm(600), nn.Linear(600, 600))
    data = torch.randn(20, 100), torch.arange(20)
    objective = Objective(model, "cross_entropy", data)
    subspace = random_subspace(objective.space, objective.theta)
    steps = axis_steps(-1, 1, points)
    quantities = ("loss", "gradient_norm")
    return LandscapeJob(
        {"train": objective}, subspace, {"x": steps, "y": steps}, quantities=quantities
    )


def memory_lines() -> list[str]:
    """Compare the peak memory of planes with few and with many points."""
    lines = ["Loss and gradient norm, 420,000 weights, one process each; to be independent.", ""]
    lines += ["| points | peak memory, MiB |", "|---|---|"]
    for points in (11, 31, 91):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(points)], capture_output=True, text=True, check=True
        )
        lines.append(f"| {points}x{points} | {int(done.stdout) / 1024:.0f} |")
    return lines


SECTIONS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "small": ("Small networks", small_lines),
    "resnet": ("ResNet-20, 512 images of 32x32", lambda: resnet_lines(rounds=3, rows=1)),
    "killed": ("Killed at half time", killed_lines),
    "memory": ("Memory", memory_lines),
    "refined": ("Adaptive refinement", refined_lines),
}


def main() -> None:
    """Measure the named sections and write the results."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peer's own
    for name in sys.argv[1:] or SECTIONS:
        heading, measure = SECTIONS[name]
        command = f"python -m benchmarks.landscape {name}"
        save_section("landscape", "Landscapes", heading, command, measure())


if __name__ == "__main__":
    main()
