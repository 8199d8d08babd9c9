"""What a step of SAM, GAM and their relatives costs, in steps of SGD, on ResNet-20 with batch 128.

Run with `python -m benchmarks.optim [steps] [exact] [overhead] [outside] [memory]`; writes these
sections of benchmarks/results/optim.md, all by default. Needs the extra `bench`. Times do not
depend on the images, so that these are noise. One thread, so that the time of the processor, which
sees less of what else the machine does, can stand beside that of the clock.
"""

import copy
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from benchmarks.timing import keep_freed_memory, save_section
from flatkit.hessian.memory import measure_bytes
from flatkit.models import MODELS
from flatkit.optim import ASAM, GAM, GSAM, SAM

Stepper = Callable[[], object]
OPTIONS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


class Setting:
    """A network with one batch."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y

    def own(self) -> tuple[nn.Module, Callable[[], Tensor]]:
        """Return a copy of the network, and its loss."""
        model = copy.deepcopy(self.model)
        return model, lambda: cross_entropy(model(self.x), self.y)

    def sgd(self) -> Stepper:
        model, loss = self.own()
        optimizer = SGD(model.parameters(), **OPTIONS)

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    def ours(self, kind: type, **options: Any) -> Stepper:
        model, loss = self.own()
        optimizer = kind(SGD(model.parameters(), **OPTIONS), model=model, **options)
        return lambda: optimizer.step(loss)

    def theirs(self) -> Stepper:
        """Return a step of pytorch_optimizer's SAM, as its documentation has it."""
        model, loss = self.own()
        optimizer = pytorch_optimizer.SAM(model.parameters(), SGD, rho=0.05, **OPTIONS)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        def step() -> None:
            closure()
            optimizer.step(closure)

        return step

    def floor(self) -> Stepper:
        """Return two gradients and two products by double backward through the same graphs."""
        model, loss = self.own()
        parameters = list(model.parameters())

        def step() -> None:
            for _ in range(2):
                gradient = torch.autograd.grad(loss(), parameters, create_graph=True)
                vector = [part.detach() for part in gradient]
                torch.autograd.grad(gradient, parameters, vector)

        return step


def resnet20() -> Setting:
    torch.manual_seed(0)
    model = MODELS.build("resnet20", in_shape=(3, 32, 32), classes=10)
    return Setting(model, torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,)))


def perceptron() -> Setting:
    """Return a network so small that the optimizer is what costs."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.ReLU()] * 2
    model = nn.Sequential(*copy.deepcopy(nn.Sequential(*layers)), nn.Linear(64, 10))
    return Setting(model, torch.randn(64, 64), torch.randint(0, 10, (64,)))


def table(contenders: Mapping[str, tuple[int, Stepper]], *, rounds: int) -> list[str]:
    """Run the contenders in turn, in a new order each round; return medians for one step.

    A fixed place after SGD, whose step is another, has cost some percent.

    Args:
        contenders: name -> how many steps make one sample, and a step. Samples should have about
            the same number of gradients: noise only ever adds, so that the median of one long
            sample lies higher than that of its short parts.
        rounds: samples of each.
    """
    clock: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            count, run = contenders[name]
            start, used = time.perf_counter(), time.process_time()
            for _ in range(count):
                run()
            if turn > 0:
                processor[name].append((time.process_time() - used) / count)
                clock[name].append((time.perf_counter() - start) / count)
    first = next(iter(contenders))
    lines = [
        f"Medians of {rounds} interleaved rounds.",
        "",
        f"| step | milliseconds | in steps of {first} | milliseconds of the processor "
        f"| in steps of {first} |",
        "|---|---|---|---|---|",
    ]
    for name in contenders:
        cells = []
        for times in (clock, processor):
            middle = statistics.median(times[name])
            cells += [f"{1e3 * middle:.4g}", f"{middle / statistics.median(times[first]):.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


PEER = f"SAM of pytorch_optimizer {version('pytorch_optimizer')}"


def measure_steps() -> list[str]:
    setting = resnet20()
    return table(
        {
            "SGD": (4, setting.sgd()),
            "SAM": (2, setting.ours(SAM)),
            PEER: (2, setting.theirs()),
            "GAM, accelerated": (1, setting.ours(GAM)),
        },
        rounds=15,
    )


def measure_exact() -> list[str]:
    setting = resnet20()
    return table(
        {
            "SGD": (6, setting.sgd()),
            "two gradients and two products, bare": (1, setting.floor()),
            "GAM, exact, double backward": (1, setting.ours(GAM, mode="exact")),
            "GAM, exact, central differences": (
                1,
                setting.ours(GAM, mode="exact", engine="central_difference"),
            ),
        },
        rounds=3,
    )


def measure_overhead() -> list[str]:
    setting = perceptron()
    return table(
        {
            "SGD": (20, setting.sgd()),
            "SAM": (10, setting.ours(SAM)),
            PEER: (10, setting.theirs()),
            "SAM, tensor by tensor": (10, setting.ours(SAM, foreach=False)),
            "ASAM": (10, setting.ours(ASAM)),
            "GSAM": (10, setting.ours(GSAM)),
            "GAM, accelerated": (5, setting.ours(GAM)),
            "GAM, accelerated, every 5th step": (10, setting.ours(GAM, every=5)),
            "GAM, accelerated, over SAM": (5, setting.ours(GAM, oracle="sam")),
        },
        rounds=101,
    )


class Stopwatch:
    """A closure that calls `backward`, and the processor's time in it."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.model, self.loss = model, loss
        self.inside, self.calls = 0.0, 0

    def __call__(self) -> Tensor:
        start = time.process_time()
        self.model.zero_grad()
        value = self.loss()
        value.backward()
        self.inside += time.process_time() - start
        self.calls += 1
        return value


def measure_outside() -> list[str]:
    """Divide the time of a step by the mean time of its own passes: noise hits both alike."""
    setting = resnet20()
    steppers: dict[str, tuple[Stopwatch, Stepper]] = {}
    for name in ("SGD", "SAM", PEER, "GAM, accelerated"):
        model, loss = setting.own()
        watch = Stopwatch(model, loss)
        steppers[name] = watch, _stepper(name, model, watch)
    ratios: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(16):
        for name, (watch, run) in steppers.items():
            watch.inside, watch.calls, start = 0.0, 0, time.process_time()
            run()
            if turn > 0:
                used = time.process_time() - start
                ratios[name].append(used / (watch.inside / watch.calls))
    middle = {name: statistics.median(values) for name, values in ratios.items()}
    return [
        "The processor's time of a step over the mean time of the passes in that same step; "
        "medians of 15 interleaved rounds.",
        "",
        "| step | in its passes | in steps of SGD |",
        "|---|---|---|",
        *(f"| {name} | {m:.3f} | {m / middle['SGD']:.3f} |" for name, m in middle.items()),
    ]


def _stepper(name: str, model: nn.Module, watch: Stopwatch) -> Stepper:
    if name == PEER:
        optimizer = pytorch_optimizer.SAM(model.parameters(), SGD, rho=0.05, **OPTIONS)

        def step() -> None:
            watch()
            optimizer.step(watch)

        return step
    base = SGD(model.parameters(), **OPTIONS)
    if name == "SGD":
        return lambda: (watch(), base.step())
    ours = (SAM if name == "SAM" else GAM)(base, model=model)
    return lambda: ours.step(watch)


def measure_memory() -> list[str]:
    setting = resnet20()
    parameters = sum(p.numel() * p.element_size() for p in setting.model.parameters())
    contenders = {
        "SGD": setting.sgd(),
        "SAM": setting.ours(SAM),
        PEER: setting.theirs(),
        "ASAM": setting.ours(ASAM),
        "GSAM": setting.ours(GSAM),
        "GAM, accelerated": setting.ours(GAM),
        "GAM, accelerated, over SAM": setting.ours(GAM, oracle="sam"),
        "GAM, exact, central differences": setting.ours(
            GAM, mode="exact", engine="central_difference"
        ),
        "GAM, exact, double backward": setting.ours(GAM, mode="exact"),
    }
    peaks = {}
    for name, step in contenders.items():
        step()  # the base makes its state
        peaks[name] = measure_bytes(step)[0]
    return [
        "The most bytes alive at once in a step, activations and gradients included.",
        "",
        "| step | MiB | beyond SGD, in vectors of all parameters |",
        "|---|---|---|",
        *(
            f"| {name} | {peak / 2**20:.1f} | {(peak - peaks['SGD']) / parameters:.2f} |"
            for name, peak in peaks.items()
        ),
    ]


SECTIONS: Mapping[str, tuple[str, Callable[[], list[str]]]] = {
    "steps": ("Steps, ResNet-20, batch 128", measure_steps),
    "exact": ("The exact mode, ResNet-20, batch 128", measure_exact),
    "overhead": ("Steps of a network of 13 thousand parameters, batch 64", measure_overhead),
    "outside": ("What a step adds to its passes, ResNet-20, batch 128", measure_outside),
    "memory": ("Memory, ResNet-20, batch 128", measure_memory),
}


def main() -> None:
    """Measure the sections that are named, or all."""
    keep_freed_memory("benchmarks.optim")
    torch.set_num_threads(1)
    for name in sys.argv[1:] or SECTIONS:
        heading, measure = SECTIONS[name]
        command = f"python -m benchmarks.optim {name}"
        save_section("optim", "Steps of the optimizers", heading, command, measure())


if __name__ == "__main__":
    main()
