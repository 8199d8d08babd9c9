"""Known faults of the peers, run again, beside flatkit and the dense truth.

`make faults` installs the peers into an environment of their own (`.venv-peers`) and writes
benchmarks/results/faults.md. Each fault is a function that returns what is true, what the peer says
and what flatkit says; the truth comes from NumPy, a closed form or torch.autograd.functional.
"""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flatkit
from benchmarks.timing import save
from flatkit.errors import FlatkitError
from flatkit.spectrum import (
    hutchinson_trace,
    lanczos,
    power_iteration,
    spectral_density,
    trace,
)
from flatkit.spectrum.operators import DenseOperator


class Outcome(NamedTuple):
    """What is true, and what the two say."""

    truth: str
    peer: str
    flatkit: str


class Fault(NamedTuple):
    """A fault of a peer."""

    peer: str
    what: str
    run: Callable[[], Outcome]


FAULTS: list[Fault] = []
PEERS = ("pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "loss-landscapes")


def fault(peer: str, what: str) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Add a function to the table."""

    def add(function: Callable[[], Outcome]) -> Callable[[], Outcome]:
        FAULTS.append(Fault(peer, what, function))
        return function

    return add


def said(run: Callable[[], str]) -> str:
    """Return what something says, also where that is an error."""
    try:
        return run()
    except Exception as error:  # a peer may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"


class Quadratic(nn.Module):
    """½θᵀAθ, whatever the inputs."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", matrix)
        generator = torch.Generator().manual_seed(3)
        self.theta = nn.Parameter(torch.randn(len(matrix), generator=generator).to(matrix))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return it once a sample."""
        return (0.5 * self.theta @ self.matrix @ self.theta).expand(len(inputs))


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the outputs."""
    return outputs.mean()


def rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return data for a quadratic."""
    return torch.zeros(2, 1, dtype=matrix.dtype), torch.zeros(2, dtype=matrix.dtype)


def rotated(values: Any, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a symmetric matrix with these eigenvalues."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((len(values), len(values))))
    return torch.tensor((basis * np.asarray(values)) @ basis.T, dtype=dtype)


def pyhessian_of(matrix: Tensor) -> Any:
    """Return PyHessian's object for a quadratic."""
    from pyhessian import hessian

    return hessian(Quadratic(matrix), mean, data=rows(matrix), cuda=False)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def numbers(values: Any) -> str:
    """Return some numbers as text."""
    return ", ".join(f"{float(value):.4g}" for value in np.atleast_1d(values))


def estimate_text(found: Any) -> str:
    """Return a value of flatkit, its error and its status."""
    error = found.error if np.ndim(found.error) == 0 else max(np.ravel(found.error))
    return f"{numbers(found.value)} ± {float(error):.1g} ({found.status.value})"


@fault("PyHessian", "top eigenvalue of 20 Wishart matrices at a tolerance of 0.001: largest error")
def wishart() -> Outcome:
    """Stop where successive values agree; flatkit stops on the residual."""
    theirs, ours = [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        factor = generator.standard_normal((200, 200))
        matrix = torch.tensor(factor @ factor.T / 200, dtype=torch.float32)
        true = np.linalg.eigvalsh(matrix.double().numpy())[-1]
        torch.manual_seed(seed)
        theirs.append(abs(pyhessian_of(matrix).eigenvalues()[0][0] / true - 1))
        found = lanczos(DenseOperator(matrix), k=1, tolerance=1e-3, generator=seeded())
        ours.append(abs(float(found.value[0]) / true - 1))
    return Outcome("≤ 0.1 %", f"{100 * max(theirs):.2g} %", f"{100 * max(ours):.1g} %")


@fault("PyHessian", "largest of the eigenvalues 1, 0.5 and -1.02")
def both_signs() -> Outcome:
    """Iterate near a ± pair, which the quotient mixes."""
    matrix = rotated([1.0, 0.5, -1.02], 0)
    torch.manual_seed(0)
    peer = said(lambda: numbers(pyhessian_of(matrix).eigenvalues()[0]))
    found = power_iteration(DenseOperator(matrix), k=1, generator=seeded())
    return Outcome("1; of largest size -1.02", peer, estimate_text(found))


@fault("PyHessian", "three eigenvalues 4, 2 and 1 in units of 1e-6")
def tiny() -> Outcome:
    """Divide by the norm + 1e-6, as it does."""
    matrix = rotated([4e-6, 2e-6, 1e-6], 1)
    torch.manual_seed(0)
    peer = said(lambda: numbers(pyhessian_of(matrix).eigenvalues(top_n=3)[0]))
    found = lanczos(DenseOperator(matrix), k=3, generator=seeded())
    return Outcome("4e-06, 2e-06, 1e-06", peer, estimate_text(found))


@fault("PyHessian", "trace of a negative definite Hessian")
def negative_trace() -> Outcome:
    """Stop after two samples: the wheel on PyPI lacks an absolute value."""
    matrix = rotated(-np.linspace(0.1, 30, 50), 2)
    torch.manual_seed(0)

    def peer() -> str:
        samples = pyhessian_of(matrix).trace()
        return f"{np.mean(samples):.5g} from {len(samples)} samples"

    found = trace(DenseOperator(matrix), tolerance=0.01, generator=seeded())
    return Outcome(f"{float(matrix.double().trace()):.5g}", said(peer), estimate_text(found))


@fault("PyHessian", "spectral density on this version of torch")
def density() -> Outcome:
    """Ask for an interface that torch has removed."""
    matrix = rotated(np.linspace(0.1, 3, 20), 3)

    def peer() -> str:
        values, weights = pyhessian_of(matrix).density()
        return numbers(np.sum(np.real(values) * np.real(weights)))

    def ours() -> str:
        found = spectral_density(DenseOperator(matrix), generator=seeded())
        return f"a density whose mean is {found.mean:.4g} ± {found.mean_error:.1g}"

    return Outcome(f"mean {float(matrix.trace() / 20):.4g}", said(peer), said(ours))


@fault("PyHessian", "the user's model after it: mode and gradients")
def left_behind() -> Outcome:
    """Look at the mode of the model and at its gradients."""
    from pyhessian import hessian

    def state(model: nn.Module) -> str:
        filled = any(p.grad is not None for p in model.parameters())
        return (
            f"{'train' if model.training else 'eval'}, gradients {'filled' if filled else 'none'}"
        )

    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)) for _ in range(2)]
    data = torch.randn(8, 4), torch.randint(3, (8,))
    hessian(models[0], nn.CrossEntropyLoss(), data=data, cuda=False).eigenvalues()
    flatkit.analyze(models[1], "cross_entropy", data, measures=["top_eigenvalues"])
    return Outcome("train, gradients none", state(models[0]), state(models[1]))


class Unused(nn.Module):
    """A network with a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the one layer."""
        return self.used(inputs)


def dense_hessian(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: Any) -> Tensor:
    """Return the dense Hessian [P, P] in float64."""
    model = copy.deepcopy(model).double().eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]

    def value(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        weights = {n: v.view_as(p) for n, v, p in zip(names, parts, parameters, strict=True)}
        return loss(torch.func.functional_call(model, weights, (data[0].double(),)), data[1])

    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    found: Any = torch.autograd.functional.hessian(value, theta)
    return found


def dense_top(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: Any) -> float:
    """Return the top eigenvalue of the dense Hessian."""
    return float(torch.linalg.eigvalsh(dense_hessian(model, loss, data))[-1])


@fault("PyHessian", "a layer that the forward pass does not use")
def unused_layer() -> Outcome:
    """Multiply where a gradient is missing, which is the number 0. to it."""
    from pyhessian import hessian

    torch.manual_seed(0)
    model, data = Unused(), (torch.randn(16, 4), torch.randint(3, (16,)))
    peer = said(
        lambda: numbers(
            hessian(copy.deepcopy(model), F.cross_entropy, data=data, cuda=False).eigenvalues()[0]
        )
    )
    return Outcome(
        numbers(dense_top(model, F.cross_entropy, data)), peer, top_of(model, "cross_entropy", data)
    )


def top_of(model: nn.Module, loss: Any, data: Any) -> str:
    """Return the top eigenvalue that flatkit reports, or how it refuses."""

    def run() -> str:
        report = flatkit.analyze(model, loss, data, measures=["top_eigenvalues"], num_eigenvalues=1)
        found = report.result("top_eigenvalues")
        return f"{numbers(found.value)} ± {found.error[0]:.1g}"

    try:
        return run()
    except FlatkitError as error:
        return f"refused: {' '.join(str(error).split())[:160]}"


def eigenthings_of(matrix: Tensor) -> Any:
    """Return hessian-eigenthings' operator of a matrix."""
    from hessian_eigenthings import LambdaOperator  # pyright: ignore

    return LambdaOperator(lambda v: matrix @ v, size=len(matrix), dtype=matrix.dtype, device="cpu")


@fault("hessian-eigenthings", "ten largest eigenvalues, of which five are 100 to 60, 120 steps")
def ghosts() -> Outcome:
    """Take more than 50 steps, beyond which it does not reorthogonalise."""
    from hessian_eigenthings import lanczos as theirs  # pyright: ignore

    values = np.concatenate([[100, 90, 80, 70, 60], np.linspace(0.1, 1, 495)])
    matrix = torch.diag(torch.tensor(values, dtype=torch.float32))

    def peer() -> str:
        found = theirs(eigenthings_of(matrix), k=10, max_iter=120, seed=0)
        counted = sum(bool(x) for x in np.atleast_1d(found.converged))
        return f"{numbers(found.eigenvalues)} ({counted} converged)"

    found = lanczos(DenseOperator(matrix), k=10, generator=seeded())
    return Outcome(numbers(np.sort(values)[::-1][:10]), said(peer), estimate_text(found))


@fault("hessian-eigenthings", "power iteration with a momentum of 20, largest eigenvalue 100")
def momentum() -> Outcome:
    """Take the quotient after the momentum was subtracted; flatkit has no such setting."""
    from hessian_eigenthings.algorithms.power_iteration import power_iteration_one  # pyright: ignore

    matrix = torch.diag(torch.tensor([100.0, *np.linspace(0, 10, 99)], dtype=torch.float32))

    def peer() -> str:
        value, _, _, _, converged = power_iteration_one(
            eigenthings_of(matrix), momentum=20.0, seed=0, max_iter=1000
        )
        return f"{value:.4g} ({'converged' if converged else 'not converged'})"

    found = power_iteration(DenseOperator(matrix), k=1, generator=seeded())
    return Outcome("100", said(peer), estimate_text(found))


@fault("hessian-eigenthings", "Hessian times vector over 70 samples in batches of 64 and 6")
def ragged() -> Outcome:
    """Take the mean of the means of the batches."""
    from hessian_eigenthings import HessianOperator as Theirs  # pyright: ignore
    from hessian_eigenthings import supervised_loss  # pyright: ignore

    torch.manual_seed(0)
    inputs = torch.randn(70, 5)
    inputs[64:] *= 4
    targets = torch.randint(3, (70,))
    model = nn.Linear(5, 3)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=64)
    vector = torch.randn(18)

    truth = dense_hessian(model, F.cross_entropy, (inputs, targets)) @ vector.double()

    def error(product: Tensor) -> str:
        return f"off by {100 * float((product.double() - truth).norm() / truth.norm()):.2g} %"

    peer = said(
        lambda: error(Theirs(model, loader, supervised_loss(F.cross_entropy)).matvec(vector))
    )
    objective = flatkit.Objective(model, "cross_entropy", loader)
    return Outcome("0 %", peer, error(flatkit.HessianOperator(objective) @ vector))


class FunctionalDropout(nn.Module):
    """Dropout that no mode switches off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs with noise in them."""
        return self.layer(F.dropout(inputs, 0.5, training=True))


@fault("hessian-eigenthings", "a model with functional dropout: two products with one vector")
def dropout() -> Outcome:
    """Multiply where the loss is no function."""
    from hessian_eigenthings import HessianOperator as Theirs  # pyright: ignore
    from hessian_eigenthings import supervised_loss  # pyright: ignore

    torch.manual_seed(0)
    model, data = FunctionalDropout(), (torch.randn(32, 6), torch.randint(3, (32,)))
    loader = DataLoader(TensorDataset(*data), batch_size=32)

    def peer() -> str:
        operator = Theirs(model, loader, supervised_loss(F.cross_entropy))
        first, second = (operator.matvec(torch.ones(21)) for _ in range(2))
        return f"differ by {100 * float((first - second).norm() / first.norm()):.2g} %, not told"

    return Outcome("no function", said(peer), top_of(model, "cross_entropy", data))


@fault("hessian-eigenthings", "spread of traces that are repeated without a seed")
def unseeded() -> Outcome:
    """Repeat with an unseeded generator of torch, which always has one seed."""
    from hessian_eigenthings import hutchinson  # pyright: ignore

    matrix = rotated(np.concatenate([[30, 10, 3], np.linspace(0, 0.3, 197)]), 5)

    def peer() -> str:
        values = [float(hutchinson(eigenthings_of(matrix), num_samples=10).estimate) for _ in "abc"]
        return f"{np.std(values):.2g} over three repeats"

    ours = [
        hutchinson_trace(DenseOperator(matrix), tolerance=0.05, generator=seeded(seed))
        for seed in range(3)
    ]
    spread = np.std([found.value for found in ours], ddof=1)
    stated = np.mean([found.error for found in ours])
    return Outcome("> 0", said(peer), f"{spread:.2g} over three seeds, {stated:.2g} stated")


@fault("curvlinops", "cross-entropy that ignores padding, batches with unequally much of it")
def padding() -> Outcome:
    """Weight a mean over tokens by the number of sequences."""
    from curvlinops import HessianLinearOperator  # pyright: ignore

    torch.manual_seed(0)
    inputs, targets = torch.randn(24, 6), torch.randint(3, (24,))
    targets[2:12] = -100
    inputs[:2] *= 4
    model, loss = nn.Linear(6, 3), nn.CrossEntropyLoss(ignore_index=-100)
    batches = [(inputs[:12], targets[:12]), (inputs[12:], targets[12:])]

    def peer() -> str:
        operator = HessianLinearOperator(
            model, loss, list(model.parameters()), batches, check_deterministic=False
        )
        product: Any = operator @ torch.eye(21)
        return numbers(torch.linalg.eigvalsh(product)[-1].item())

    true = numbers(dense_top(model, loss, (inputs, targets)))
    return Outcome(true, said(peer), top_of(model, loss, (inputs, targets)))


@fault("curvlinops", "trace by 20 random vectors: what is said of its error")
def no_error_bar() -> Outcome:
    """Return a number alone."""
    from curvlinops import hutchinson_trace  # pyright: ignore

    matrix = rotated(np.concatenate([[30, 10, 3], np.linspace(0, 0.3, 197)]), 5)
    torch.manual_seed(0)
    peer = said(lambda: f"{float(hutchinson_trace(matrix, 20)):.4g}, no error")
    found = trace(DenseOperator(matrix), tolerance=0.02, generator=seeded())
    return Outcome(f"{float(matrix.double().trace()):.4g}", peer, estimate_text(found))


def landscape_model() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network of two layers and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.randn(40, 4), torch.randint(3, (40,))


def plane_of_peer(model: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    """Return the plane that loss-landscapes measures."""
    import loss_landscapes  # pyright: ignore
    from loss_landscapes.metrics import Loss  # pyright: ignore

    return loss_landscapes.random_plane(
        model, Loss(F.cross_entropy, inputs, targets), distance=1, steps=8
    )


@fault("loss-landscapes", "jump between neighbouring rows of a smooth plane, in units of a step")
def zigzag() -> Outcome:
    """Walk to and fro, every other row a cell off."""
    model, inputs, targets = landscape_model()

    def roughness(plane: Any) -> float:
        """Second differences across the rows against those along them."""
        across = np.abs(np.diff(plane, 2, axis=0)).mean()
        return across / np.abs(np.diff(plane, 2, axis=1)).mean()

    peer = said(lambda: f"{roughness(plane_of_peer(copy.deepcopy(model), inputs, targets)):.3g}")
    report = flatkit.analyze(
        model, "cross_entropy", (inputs, targets), measures=["loss_plane"], slice_points=9
    )
    ours = np.array(report.result("loss_plane").value["loss"])
    return Outcome("about 1", peer, f"{roughness(ours):.3g}")


@fault("loss-landscapes", "cosine of two random directions before they are made orthogonal")
def directions() -> Outcome:
    """Draw entries in [0, 1), so that all directions lie in one corner."""
    from loss_landscapes.model_interface.model_parameters import rand_u_like  # pyright: ignore
    from loss_landscapes.model_interface.model_wrapper import wrap_model  # pyright: ignore

    model, inputs, targets = landscape_model()

    def peer() -> str:
        start = wrap_model(copy.deepcopy(model)).get_module_parameters()
        torch.manual_seed(0)
        first, second = rand_u_like(start), rand_u_like(start)
        return f"{float(first.dot(second) / (first.model_norm() * second.model_norm())):.2g}"

    report = flatkit.analyze(
        model, "cross_entropy", (inputs, targets), measures=["loss_plane"], slice_points=5
    )
    cosine = report.result("loss_plane").settings["cosine"]
    return Outcome("about 0", said(peer), f"{cosine:.2g}")


@fault("loss-landscapes", "the user's weights after a plane: how far they moved")
def moved() -> Outcome:
    """Walk with the user's own model, unless told not to."""
    model, inputs, targets = landscape_model()

    def distance(run: Callable[[nn.Module], object]) -> str:
        walked = copy.deepcopy(model)
        before = torch.cat([p.detach().reshape(-1) for p in walked.parameters()])
        run(walked)
        after = torch.cat([p.detach().reshape(-1) for p in walked.parameters()])
        return f"{float((after - before).norm()):.3g}"

    peer = said(lambda: distance(lambda each: plane_of_peer(each, inputs, targets)))
    ours = distance(
        lambda each: flatkit.analyze(
            each, "cross_entropy", (inputs, targets), measures=["loss_plane"], slice_points=5
        )
    )
    return Outcome("0", peer, ours)


@fault("loss-landscapes", "gradient along a line")
def gradient_metric() -> Outcome:
    """Hand names to autograd."""
    import loss_landscapes  # pyright: ignore
    from loss_landscapes.metrics import LossGradient  # pyright: ignore

    model, inputs, targets = landscape_model()

    def peer() -> str:
        metric = LossGradient(F.cross_entropy, inputs, targets)
        return numbers(loss_landscapes.random_line(copy.deepcopy(model), metric, steps=3)[0])

    report = flatkit.analyze(
        model, "cross_entropy", (inputs, targets), measures=["loss_slice"], slice_points=5
    )
    middle = np.array(report.result("loss_slice").value["gradient_norm"])[:, 2].mean()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(inputs), targets).backward()
    true = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None]).norm()
    return Outcome(f"{float(true):.4g} at the centre", said(peer), f"{middle:.4g}")


@click.command()
def main() -> None:
    """Run every fault and save benchmarks/results/faults.md."""
    torch.set_num_threads(1)
    lines = [
        "Each line is a small case with a known answer: what is true, what the peer says, and what "
        "flatkit says with its own statement of error.",
        "",
        "| peer | case | true | the peer says | flatkit says |",
        "|---|---|---|---|---|",
    ]
    for each in FAULTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = each.run()
        gc.collect()  # graphs that a peer keeps
        cells = (text.replace("|", "\\|") for text in (each.peer, each.what, *outcome))
        lines.append(f"| {' | '.join(cells)} |")
    title, peers = "Known faults of the peers, run again", (*PEERS, "numpy")
    save("faults", title, "make faults", lines, *peers)


if __name__ == "__main__":
    main()
