"""Products, eigenvalues and traces against PyHessian and curvlinops, on CIFAR-10 images.

`python -m benchmarks.curvature [FOLDER]`; FOLDER holds cifar10_train_first10k.npz, by default
../shared/data or $FLATKIT_DATA. Needs the extra `bench`. Writes benchmarks/results/curvature.md.
"""

import copy
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pyhessian import hessian as pyhessian_hessian
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import medians, save
from flatkit import HessianOperator, Objective
from flatkit.hessian.memory import measure_bytes
from flatkit.models import MODELS
from flatkit.spectrum import lanczos, trace

Network = tuple[nn.Module, Tensor, Tensor]


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return normalised CIFAR-10 images and classes."""
    folder = Path(
        sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLATKIT_DATA", "../shared/data")
    )
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


def networks() -> dict[str, Network]:
    """Return a trained ResNet-20 and a trained MLP with their data."""
    torch.manual_seed(0)
    x, y = images(2000)
    resnet = MODELS.build("resnet20", in_shape=(3, 32, 32), classes=10)
    found = {"ResNet-20, 512 images": trained(resnet, x[:512], y[:512], 40)}
    grey = x.mean(1)[:, 2:30, 2:30].flatten(1)  # 28×28
    mlp = MODELS.build("mlp", in_shape=(784,), classes=10, hidden=(512, 512), activation="relu")
    found["MLP 784-512-512-10, 2,000 images"] = trained(mlp, grey, y, 200)
    return found


def product_lines(found: dict[str, Network]) -> list[str]:
    """Measure products in gradients."""
    lines = ["", "## One product, in bare gradients", ""]
    lines += [
        "| network | engine | error vs float64 | product | 8 vectors, each | double backward |",
        "|---|---|---|---|---|---|",
    ]
    cases = {
        name: (model, x[:size], y[:size])
        for (name, (model, x, y)), size in zip(found.items(), (128, 1024), strict=True)
    }
    x, y = images(64)
    torch.manual_seed(0)
    cases["4-layer transformer, SDPA, 64 images"] = (Transformer().eval(), x, y)
    for name, (model, x, y) in cases.items():
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
            rounds=7,
        )
        one, block, other = (seconds[k] / seconds["gradient"] for k in ("one", "block", "double"))
        lines.append(
            f"| {name.split(',')[0]}, batch {len(x)} | {hessian.choice.engine} | "
            f"{hessian.choice.error:.1e} | {one:.2f} | {block / 8:.2f} | {other:.2f} |"
        )
    return lines


def eigenvalue_lines(found: dict[str, Network]) -> list[str]:
    """Compare top-1 and top-5: seconds and true relative error."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    lines = ["", "## Eigenvalues", ""]
    lines += [
        "| network | what | flatkit s (true error) | PyHessian s (true error) | ratio "
        "| curvlinops + eigsh s (true error) | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (model, x, y) in found.items():
        precise = Objective(model, "cross_entropy", (x, y), dtype=torch.float64)
        truth = lanczos(
            HessianOperator(precise), k=5, tolerance=1e-7, stop="value", generator=seeded()
        ).value.numpy()
        for k in (1, 5):
            values: dict[str, np.ndarray] = {}

            def ours(model=model, x=x, y=y, k=k, values=values) -> None:
                hessian = HessianOperator(Objective(model, "cross_entropy", (x, y)))
                values["ours"] = lanczos(
                    hessian, k=k, tolerance=3e-5, stop="value", generator=seeded()
                ).value.numpy()

            def pyhessian(model=model, x=x, y=y, k=k, values=values) -> None:
                torch.manual_seed(0)
                second = pyhessian_hessian(
                    copy.deepcopy(model), nn.CrossEntropyLoss(), data=(x, y), cuda=False
                )
                values["pyhessian"] = np.array(second.eigenvalues(top_n=k)[0])

            def curvlinops(model=model, x=x, y=y, k=k, values=values) -> None:
                parameters = dict(model.named_parameters())
                operator = HessianLinearOperator(
                    model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
                )
                found = eigsh(operator.to_scipy(), k=k, which="LA", tol=1e-4)[0]
                values["curvlinops"] = found[::-1]

            contenders: dict[str, Callable[[], object]] = {"ours": ours, "pyhessian": pyhessian}
            try:
                curvlinops()
                contenders["curvlinops"] = curvlinops
            except Exception as error:
                print("curvlinops:", type(error).__name__, error)
            seconds = medians(contenders, rounds=1)
            cells = []
            for who in ("ours", "pyhessian", "curvlinops"):
                if who not in seconds:
                    cells += ["failed", "-"]
                    continue
                error = float(np.max(np.abs(values[who] / truth[:k] - 1)))
                cells.append(f"{seconds[who]:.2f} ({error:.0e})")
                if who != "ours":
                    cells.append(f"{seconds[who] / seconds['ours']:.1f}")
            lines.append(f"| {name} | top {k} | " + " | ".join(cells) + " |")
    return lines


def trace_lines(found: dict[str, Network]) -> list[str]:
    """Compare products to a trace of 1 % standard error."""
    lines = ["", "## Trace to a standard error of 1 %, in products", ""]
    lines += ["| network | auto (XTrace, Hutch++) | Hutchinson |", "|---|---|---|"]
    name, (model, x, y) = list(found.items())[1]
    torch.manual_seed(0)
    fresh = MODELS.build("mlp", in_shape=(784,), classes=10, hidden=(512, 512), activation="relu")
    small = MODELS.build("mlp", in_shape=(784,), classes=10, hidden=32)
    cases = {
        name: model,
        "the same, untrained": fresh,
        "MLP 784-32-10, trained": trained(small, x, y, 200)[0],
    }
    for title, network in cases.items():
        hessian = HessianOperator(Objective(network, "cross_entropy", (x[:256], y[:256])))
        cells = [
            trace(hessian, method=m, tolerance=0.01, max_matvecs=1500, generator=seeded())
            for m in ("auto", "hutchinson")
        ]
        lines.append(
            f"| {title} | " + " | ".join(f"{c.matvecs} ({c.status})" for c in cells) + " |"
        )
    return lines


def memory_lines(found: dict[str, Network]) -> list[str]:
    """Compare the peak of a product with its budget."""
    lines = ["", "## Memory budget", "", "| network | budget MB | peak MB | ratio | chunk, kept |"]
    lines.append("|---|---|---|---|---|")
    for (name, (model, x, y)), budget in zip(found.items(), (80e6, 20e6), strict=True):
        objective = Objective(model, "cross_entropy", (x, y))
        hessian = HessianOperator(objective, memory=int(budget))
        plan = hessian.settings
        vector = torch.randn(hessian.size)

        def twice(hessian=hessian, vector=vector) -> None:
            hessian.matvec(vector)
            hessian.matvec(vector)

        peak = measure_bytes(twice)[0]
        lines.append(
            f"| {name} | {budget / 1e6:.0f} | {peak / 1e6:.1f} | {peak / budget:.2f} "
            f"| {plan['product_chunk_size']}, {plan['chunks_kept']} |"
        )
    return lines


def seeded() -> torch.Generator:
    """Return the random stream of every run."""
    return torch.Generator().manual_seed(0)


def main() -> None:
    """Measure everything and write the results."""
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")  # the peers' own
    found = networks()
    lines = product_lines(found)
    print("\n".join(lines), flush=True)
    for part in (memory_lines, trace_lines, eigenvalue_lines):
        more = part(found)
        print("\n".join(more), flush=True)
        lines += more
        packages = ("pyhessian", "curvlinops-for-pytorch")
        save("curvature", "Curvature", "python -m benchmarks.curvature", lines, *packages)


if __name__ == "__main__":
    main()
