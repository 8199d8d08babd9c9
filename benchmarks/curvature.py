"""Products, eigenvalues, traces and memory against PyHessian and curvlinops, on CIFAR-10 images.

Run with `python -m benchmarks.curvature [SECTION ...]`, the sections being products, memory, trace,
mlp, resnet20-128 and resnet20; writes these of benchmarks/results/curvature.md. Times are those of
the processor, on one thread, so that a machine may be shared. Needs the extra `bench`, and
cifar10_train_first10k.npz in $FLATKIT_DATA or ../shared/data.
"""

import copy
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from pyhessian import hessian as pyhessian_hessian
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import KEEP, keep_freed_memory, medians, save_section
from flatkit import HessianOperator, Objective
from flatkit.models import MODELS
from flatkit.spectrum import lanczos, trace
from flatkit.spectrum.krylov import KrylovBasis

Network = tuple[nn.Module, Tensor, Tensor]


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return normalised CIFAR-10 images and classes."""
    folder = Path(os.environ.get("FLATKIT_DATA", "../shared/data"))
    with np.load(folder / "cifar10_train_first10k.npz") as data:
        x, y = data["x"][:count], data["y"][:count]
    return (torch.from_numpy(x).float() / 255 - 0.47) / 0.25, torch.from_numpy(y).long()


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Network:
    """Return the model after some steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval(), x, y


class Transformer(nn.Module):
    """Four layers with scaled dot-product attention over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(48, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.head(self.layers(self.patches(x)).mean(1))


def resnet20(count: int = 512) -> Network:
    """Return ResNet-20 after 40 steps on 512 images, with the first of these."""
    torch.manual_seed(0)
    x, y = images(512)
    model = MODELS.build("resnet20", in_shape=(3, 32, 32), classes=10)
    model, x, y = trained(model, x, y, 40)
    return model, x[:count], y[:count]


def mlp(hidden: tuple[int, ...] = (512, 512), steps: int = 200) -> Network:
    """Return an MLP after some steps, with 2,000 grey images of 28×28."""
    torch.manual_seed(0)
    x, y = images(2000)
    model = MODELS.build("mlp", in_shape=(784,), classes=10, hidden=hidden, activation="relu")
    return trained(model, x.mean(1)[:, 2:30, 2:30].flatten(1), y, steps)


def products() -> list[str]:
    """Measure products in gradients."""
    lines = [
        "| network | engine | error vs float64 | product | 8 vectors, each | double backward "
        "| bar: product, 8 vectors | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    torch.manual_seed(0)
    transformer = Transformer().eval()
    cases = {
        "ResNet-20": (*resnet20(), 128, 2.2, None),
        "MLP 784-512-512-10": (*mlp(), 1024, 1.5, 1.2),
        "4-layer transformer, SDPA": (transformer, *images(64), 64, 3.0, None),
    }
    for name, (model, x, y, size, bar, block_bar) in cases.items():
        x, y = x[:size], y[:size]
        objective = Objective(model, "cross_entropy", (x, y), chunk_size=len(x))
        hessian = HessianOperator(objective)
        double = HessianOperator(objective, engine="double_backward")
        vectors = torch.randn(8, hessian.size)
        parameters = list(model.parameters())

        def gradient(model=model, x=x, y=y, parameters=parameters) -> None:
            torch.autograd.grad(cross_entropy(model(x), y), parameters)

        seconds = medians(
            {
                "gradient": gradient,
                "one": lambda h=hessian, v=vectors: h.matvec(v[0]),
                "block": lambda h=hessian, v=vectors: h.matmat(v),
                "double": lambda h=double, v=vectors: h.matvec(v[0]),
            },
            rounds=5,
            clock=time.process_time,
        )
        one, block, other = (seconds[k] / seconds["gradient"] for k in ("one", "block", "double"))
        met = [one <= bar] + ([block / 8 <= block_bar] if block_bar else [])
        lines.append(
            f"| {name}, batch {len(x)} | {hessian.choice.engine} | "
            f"{hessian.choice.error:.1e} | {one:.2f} | {block / 8:.2f} | {other:.2f} "
            f"| {bar}{f', {block_bar}' if block_bar else ''} | {', '.join(map(_met, met))} |"
        )
        print(lines[-1], flush=True)
    return [*lines, "", *arithmetic()]


def arithmetic() -> list[str]:
    """Count the multiplications of the MLP, and time matrix products of blocks by themselves."""
    sizes = [(784, 512), (512, 512), (512, 10)]
    work = [a * b for a, b in sizes]
    gradient = 3 * sum(work) - work[0]  # x W, gᵀ x, and g W but in the first layer
    # x Ẇ and ġᵀ x in every layer; ẋ W, gᵀ ẋ, ġ W, g Ẇ but in the first.
    product = 2 * sum(work) + 4 * sum(work[1:])
    x, w = torch.randn(1024, 512), torch.randn(512, 512)
    wide, tall = torch.randn(8 * 512, 512), torch.randn(8 * 1024, 512)
    seconds = medians(
        {
            "one": lambda: x @ w.T,
            "K weights": lambda: x @ wide.T,
            "K inputs": lambda: tall @ w.T,
        },
        rounds=15,
        clock=time.process_time,
    )
    gains = ", ".join(
        f"{8 * seconds['one'] / seconds[name]:.2f} ({name})" for name in ("K weights", "K inputs")
    )
    return [
        f"The MLP, in multiplications: a gradient takes {gradient:,} a sample, a product whose "
        f"first pass is kept {product:,}, each of K as many: {product / gradient:.2f} gradients. "
        "A block shares no multiplication, as every one has a direction as a factor; it only makes "
        "wide ones of narrow ones. These are faster than 8 narrow ones, at 1024×512×512, by "
        f"{gains}. 1.2 gradients a vector would need 1.25 or more throughout, element-wise work "
        "left aside.",
    ]


def plain_product(model: nn.Module, x: Tensor, y: Tensor, vector: np.ndarray) -> np.ndarray:
    """Return H v in float64 by two backward passes, in parts; shares no code with flatkit."""
    precise = copy.deepcopy(model).double()
    parameters = list(precise.parameters())
    sizes = [p.numel() for p in parameters]
    parts = torch.from_numpy(vector).double().split(sizes)
    total = np.zeros(len(vector))
    for begin in range(0, len(x), 128):
        part = slice(begin, begin + 128)
        loss = cross_entropy(precise(x[part].double()), y[part], reduction="sum") / len(x)
        slope = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((s.flatten() * v).sum() for s, v in zip(slope, parts, strict=True))
        bent = torch.autograd.grad(along, parameters)
        total += torch.cat([b.flatten() for b in bent]).numpy()
    return total


def reference(network: Network, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return Rayleigh quotients in float64, largest first, and the largest relative error of them.

    The vectors are ARPACK's through curvlinops. Of a vector with the residual r, the quotient is
    off by r²/gap at most (Kato, 1949), the gap to the other eigenvalues being that to the quotients
    next to it; here half of that.
    """
    values, residuals = [], []
    for vector in vectors:
        vector = vector / np.linalg.norm(vector)
        image = plain_product(*network, vector)
        values.append(vector @ image)
        residuals.append(np.linalg.norm(image - values[-1] * vector))
    order = np.argsort(values)[::-1]
    found, rest = np.array(values)[order], np.array(residuals)[order]
    gaps = np.abs(np.diff(found, append=0)).clip(1e-12)
    nearest = np.minimum(gaps, np.r_[np.inf, gaps[:-1]])
    return found, float((rest**2 / (nearest / 2) / found).max())


def eigenvalues(
    name: str, network: Network, *, rounds: int, bars: tuple[tuple[int, int], ...]
) -> list[str]:
    """Compare top-k for (k, bar) in `bars`: seconds and true relative error."""
    model, x, y = network
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)],
        check_deterministic=False,
    )  # fmt: skip
    values: dict[str, np.ndarray] = {}
    products: dict[str, int] = {}

    def operator_of_ours() -> HessianOperator:
        objective = Objective(model, "cross_entropy", (x, y), chunk_size=512)
        return HessianOperator(objective, retain_graph=True)

    def ours(k: int, *, copies: bool = True) -> None:
        found = lanczos(
            operator_of_ours(),
            k=k,
            tolerance=3e-5,
            stop="value",
            check_multiplicity=copies,
            generator=seeded(),
        )
        who = "ours" if copies else "without"
        values[who], products[who] = found.value.numpy(), found.matvecs

    def theirs(k: int) -> None:
        torch.manual_seed(0)
        second = pyhessian_hessian(
            copy.deepcopy(model), nn.CrossEntropyLoss(), data=(x, y), cuda=False
        )
        with counted_products(products):
            values["pyhessian"] = np.array(second.eigenvalues(top_n=k)[0])

    def arpack(k: int, tolerance: float) -> np.ndarray:
        start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype("float32")
        found, vectors = eigsh(operator.to_scipy(), k=k, which="LA", tol=tolerance, v0=start)
        values["curvlinops"] = found[::-1]
        return vectors.T

    truth, doubt = reference(network, arpack(bars[-1][0] + 1, 1e-4))
    lines = [
        f"Reference: float64 Rayleigh quotients by plain double backward, of ARPACK's vectors; "
        f"relative error at most {doubt:.0e}. Medians of interleaved rounds, without warm-up, in "
        "seconds of the processor, on one thread; eigsh with the loosest of the tolerances 1e-1, "
        "1e-2, ... whose values are good to 1e-4. For k > 1 the last of flatkit's products look "
        "for missing copies of multiple eigenvalues, as no other does: the second line is without "
        "these. PyHessian stops when its estimate changes by less than 1e-3, however far off it "
        "is by then (an error of 2 is a wrong sign). `At most`: the ratio if flatkit made only as "
        "many products as a Krylov space needs at least to hold the k values to 1e-4, the start "
        "being random, and neither checked nor chose an engine.",
        "",
        "| what | rounds | flatkit s (true error; products) | PyHessian s (true error; products) "
        "| ratio | bar | met | at most (products) | curvlinops + eigsh s (true error) | ratio "
        "| bar | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for k, bar in bars:
        tolerance, times = 1e-1, {"ours": [], "without": [], "pyhessian": [], "curvlinops": []}
        while True:  # the loosest that is good enough; that run is the first round's
            started = time.process_time()
            arpack(k, tolerance)
            times["curvlinops"] = [time.process_time() - started]
            if _error(values["curvlinops"], truth) <= 1e-4 or tolerance < 1e-4:
                break
            tolerance /= 10
        for turn in range(1, rounds + 1):
            contenders: dict[str, Callable[[], object]] = {
                "ours": lambda k=k: ours(k),
                "without": lambda k=k: ours(k, copies=False),
                "pyhessian": lambda k=k: theirs(k),
                "curvlinops": lambda k=k, tolerance=tolerance: arpack(k, tolerance),
            }
            if k == 1:  # of which there is nothing to look for
                del contenders["without"]
            for who, run in contenders.items():
                if len(times[who]) < turn:
                    started = time.process_time()
                    run()
                    times[who].append(time.process_time() - started)
        hessian = operator_of_ours()
        fewest = fewest_products(hessian, truth[:k])
        floor = fewest * product_seconds(hessian)
        middle = {who: statistics.median(found) for who, found in times.items() if found}
        errors = {who: _error(values[who], truth) for who in middle}
        for who, what in (("ours", f"top {k}"), ("without", f"top {k}, no look for copies")):
            if who not in middle:
                continue
            ratios = [middle[peer] / middle[who] for peer in ("pyhessian", "curvlinops")]
            good = errors[who] <= 1e-4
            lines.append(
                f"| {what} | {rounds} | {middle[who]:.1f} ({errors[who]:.0e}; {products[who]}) "
                f"| {middle['pyhessian']:.1f} ({errors['pyhessian']:.0e}; "
                f"{products['pyhessian']}) | {ratios[0]:.1f} | {bar} "
                f"| {_met(good and ratios[0] >= bar)} "
                f"| {middle['pyhessian'] / floor:.1f} ({fewest}) | {middle['curvlinops']:.1f} "
                f"({errors['curvlinops']:.0e}) | {ratios[1]:.1f} | 2 "
                f"| {_met(good and ratios[1] >= 2)} |"
            )
            print(name, lines[-1], flush=True)
    return lines


@contextmanager
def counted_products(products: dict[str, int]) -> Iterator[None]:
    """Count PyHessian's products."""
    own = sys.modules["pyhessian.hessian"]
    plain: Any = own.hessian_vector_product  # type: ignore[attr-defined]
    products["pyhessian"] = 0

    def counted(*arguments: Any) -> Any:
        products["pyhessian"] += 1
        return plain(*arguments)

    own.hessian_vector_product = counted  # type: ignore[attr-defined]
    try:
        yield
    finally:
        own.hessian_vector_product = plain  # type: ignore[attr-defined]


def fewest_products(hessian: HessianOperator, truth: np.ndarray) -> int:
    """Return the smallest Krylov space from a random vector whose top values are right to 1e-4."""
    basis = KrylovBasis(hessian, 100, seeded())
    while basis.matvecs < 100:
        basis.expand()
        top = basis.ritz()[0][::-1][: len(truth)]
        if len(top) == len(truth) and _error(top, truth) <= 1e-4:
            break
    return basis.matvecs


def product_seconds(hessian: HessianOperator) -> float:
    """Return the least of several products, all prepared."""
    vector, found = torch.randn(hessian.size, generator=seeded()), []
    for _ in range(8):
        started = time.process_time()
        hessian.matvec(vector)
        found.append(time.process_time() - started)
    return min(found)


def traces() -> list[str]:
    """Compare products to a trace of 1 % standard error."""
    lines = [
        "256 images. Products until the standard error of the mean is 1 % of it; PyHessian itself "
        "stops when the mean changes by less than 1e-3, and gives no error.",
        "",
        "| network | flatkit, auto: products (trace ± error) | Hutchinson in PyHessian: products "
        "(trace ± error) | fewer |",
        "|---|---|---|---|",
    ]
    cases = {
        "MLP 784-512-512-10, trained": mlp(),
        "the same, untrained": mlp(steps=0),
        "MLP 784-32-10, trained": mlp((32,)),
    }
    for title, (model, x, y) in cases.items():
        data = x[:256], y[:256]
        hessian = HessianOperator(Objective(model, "cross_entropy", data))
        found = trace(hessian, tolerance=0.01, max_matvecs=3000, generator=seeded())
        torch.manual_seed(0)
        second = pyhessian_hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
        draws = np.empty(0)
        while len(draws) < 3000:
            draws = np.append(draws, second.trace(maxIter=20, tol=-1.0))
            error = draws.std(ddof=1) / np.sqrt(len(draws))
            if error <= 0.01 * abs(draws.mean()):
                break
        lines.append(
            f"| {title} | {found.matvecs} ({float(found.value):.4g} ± {float(found.error):.1g}, "
            f"{found.status}) | {len(draws)} ({draws.mean():.4g} ± {error:.1g}) "
            f"| {_met(found.converged and found.matvecs < len(draws))} |"
        )
        print(lines[-1], flush=True)
    return lines


def memory() -> list[str]:
    """Compare the peak of a process with its budget, and the eigenvalues with those without one."""
    lines = [
        "Growth of the resident memory of a process while it plans and makes three products, "
        "beyond what it had with model, data, vectors, a warmed-up library and the engine chosen; "
        "budget given to `HessianOperator(memory=)`. Each in a process of its own: with "
        "MALLOC_MMAP_THRESHOLD_=65536 the C library gives freed blocks back, and the growth is "
        "that of what lives, with what oneDNN keeps of chunks of new sizes (about 1 MB each); by "
        "default it keeps them for itself, which no budget covers. Nor does it cover the choice of "
        "the engine, once an objective: "
        "its growth stands beside. MLP 784-512-512-10 with 2,000 images, ResNet-20 with 128, a "
        "transformer of four layers, untrained, with 64.",
        "",
        "| network | budget MB | growth MB | ratio | within 10 % | growth with the C library's "
        "default | ratio | chunk, kept | top eigenvalue, with and without | choosing the engine MB "
        "|",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = (("mlp", 20), ("mlp", 40), ("resnet20", 60), ("resnet20", 120), ("transformer", 60))
    for name, budget in cases:
        command = [sys.executable, "-m", "benchmarks.curvature", "--peak", name, str(budget)]
        runs = []
        for setting in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {}):
            own = {name: value for name, value in os.environ.items() if name not in KEEP}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**own, **setting}
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        found = runs[0]
        lean, plain = (run["growth"] for run in runs)
        tight, free = found["eigenvalues"]
        lines.append(
            f"| {name} | {budget} | {lean:.0f} | {lean / budget:.2f} "
            f"| {_met(lean <= 1.1 * budget and math.isclose(tight, free, rel_tol=1e-4))} "
            f"| {plain:.0f} | {plain / budget:.2f} "
            f"| {found['chunk']}, {found['kept']} | {tight:.5g}, {free:.5g} "
            f"| {found['choice']:.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


def peak(name: str, budget: int) -> None:
    """Print the growths of this process in MB, the plan and the eigenvalues."""
    networks: dict[str, Callable[[], Network]] = {
        "mlp": mlp,
        "resnet20": lambda: resnet20(128),
        "transformer": lambda: (Transformer().eval(), *images(64)),
    }
    torch.manual_seed(0)
    model, x, y = networks[name]()
    objective = Objective(model, "cross_entropy", (x, y))
    vector = torch.randn(objective.num_parameters)
    few = Objective(model, "cross_entropy", (x[:8], y[:8]))
    HessianOperator(few).matvec(vector)  # libraries, threads, kernels
    hessian = HessianOperator(objective, memory=budget * 10**6)
    with _growth() as choice:
        assert hessian.choice  # once, on a few samples: some vectors in float64
    with _growth() as growth:
        plan = hessian.settings
        for _ in range(3):
            hessian.matvec(vector)
    eigenvalues = [
        float(lanczos(h, tolerance=1e-5, stop="value", generator=seeded()).value[0])
        for h in (hessian, HessianOperator(objective))
    ]
    found = {
        "growth": growth[0],
        "choice": choice[0],
        "chunk": plan["product_chunk_size"],
        "kept": plan["chunks_kept"],
        "eigenvalues": eigenvalues,
    }
    print(json.dumps(found))


@contextmanager
def _growth() -> Iterator[list[float]]:
    """Yield a list that holds the growth of the resident memory at its peak, in MB."""
    gc.collect()  # or what is collected later makes room
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, growth = _resident("VmRSS"), [math.nan]
    yield growth
    growth[0] = (_resident("VmHWM") - before) / 1e6


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found / truth[: len(found)] - 1).max())


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def seeded() -> torch.Generator:
    """Return the random stream of every run."""
    return torch.Generator().manual_seed(0)


SECTIONS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "products": ("One product, in bare gradients", products),
    "memory": ("Memory budget", memory),
    "trace": ("Trace to a standard error of 1 %", traces),
    "mlp": (
        "Eigenvalues, MLP 784-512-512-10, 2,000 images",
        lambda: eigenvalues("mlp", mlp(), rounds=3, bars=((1, 2), (5, 8))),
    ),
    "resnet20-128": (
        "Top eigenvalue, ResNet-20, 128 images",
        lambda: eigenvalues("resnet20", resnet20(128), rounds=1, bars=((1, 2),)),
    ),
    "resnet20": (
        "Eigenvalues, ResNet-20, 512 images",
        lambda: eigenvalues("resnet20", resnet20(), rounds=1, bars=((1, 2), (5, 8))),
    ),
}


def main() -> None:
    """Measure the sections that were named and write each into the results."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peers' own
    if sys.argv[1:2] == ["--peak"]:
        peak(sys.argv[2], int(sys.argv[3]))
        return
    keep_freed_memory("benchmarks.curvature")
    for name in sys.argv[1:] or SECTIONS:
        heading, measure = SECTIONS[name]
        command = f"python -m benchmarks.curvature {name}"
        save_section("curvature", "Curvature", heading, command, measure())


if __name__ == "__main__":
    main()
