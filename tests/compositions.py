"""Tasks put together from parts: an architecture, a loss, data, a wrapper, a dtype, a chunk size.

Each has a dense reference in float64 that shares no code with flatkit, and a digest of all that
belongs to the user. `judge` says whether every number lies within its stated error.
"""

import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import flatkit
from flatkit.errors import FlatkitError
from tests.cases import Tied

SAMPLES, CLASSES, WORDS = 14, 3, 7
MEASURES = ("loss", "gradient_norm", "top_eigenvalues", "bottom_eigenvalues", "trace")


class Fold(nn.Module):
    """Any function of a layer's outputs."""

    def __init__(self, layer: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(self.layer(inputs))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.into(inputs))
        return self.head(hidden + F.silu(self.inner(hidden)))


class Recomputed(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.into(inputs))
        again: Any = checkpoint(lambda h: h + F.silu(self.inner(h)), hidden, use_reentrant=False)
        return self.head(again)


class Closure(nn.Module):
    """Its head is a function that holds the module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.head = lambda hidden: self.second(torch.tanh(hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.first(inputs))


class Slope(nn.Module):
    """Takes a derivative inside its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            place = inputs.detach().requires_grad_()
            total = self.potential(place).sum()
            (force,) = torch.autograd.grad(total, place, create_graph=True)
        return self.head(force)


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, CLASSES), nn.Linear(4, 2)
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(2, 3, batch_first=True)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs.reshape(len(inputs), 2, 2))[0][:, -1])


class Words(nn.Module):
    """Embedded words, attention over them, a pooled head."""

    def __init__(self, *, attend: bool = False, **table: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4, **table)
        if table.get("max_norm"):
            nn.init.normal_(self.table.weight, 0, 0.1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True) if attend else None
        self.head = nn.Linear(4, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        found = self.table(words)
        if self.attention is not None:
            found = self.attention(found, found, found, need_weights=False)[0]
        return self.head(found.mean(1))


class Branches(nn.Module):
    """Samples of a kind go another way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.where(inputs[:, :1] > 0.8, self.other(inputs).square(), self.one(inputs))


class Rounded(nn.Module):
    """A straight-through estimator: its gradient is no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.into(inputs))
        return self.head(hidden + (torch.round(4 * hidden) / 4 - hidden).detach())


class Standing(nn.Module):
    """Standardises over whatever batch it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.into(inputs)
        return self.head(torch.tanh((hidden - hidden.mean(0)) / (hidden.std(0) + 0.1)))


class Waves(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(inputs) * self.filter
        return self.head(torch.tanh(torch.fft.irfft(spectrum, n=4)))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, CLASSES))


def images(*middle: nn.Module) -> nn.Module:
    """Return a network of images 1 x 2 x 2, enlarged, that come as four numbers."""
    body = nn.Sequential(nn.Conv2d(1, 2, 3), *middle, nn.Flatten(), nn.Linear(8, CLASSES))
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Upsample((4, 4)), body)


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(4, 5))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(5, CLASSES))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: mlp(nn.Tanh()),
    "relu": lambda: mlp(nn.ReLU()),
    "relu in place": lambda: mlp(nn.ReLU(inplace=True)),
    "gelu": lambda: mlp(nn.GELU()),
    "prelu": lambda: mlp(nn.PReLU()),
    "softplus": lambda: mlp(nn.Softplus()),
    "hardtanh": lambda: mlp(nn.Hardtanh(inplace=True)),
    "layernorm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ELU(), nn.Linear(5, 3)),
    "batchnorm": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    ),
    "batchnorm without statistics": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)),
    "convolution": lambda: images(nn.Tanh()),
    "convolution, pooled": lambda: images(nn.AdaptiveAvgPool2d(2), nn.SiLU()),
    "convolution, batchnorm": lambda: images(nn.BatchNorm2d(2), nn.ReLU()),
    "convolution, groups": lambda: images(
        nn.Conv2d(2, 2, 1, groups=2), nn.GroupNorm(2, 2), nn.GELU()
    ),
    "residual": Residual,
    "recomputed": Recomputed,
    "closure": Closure,
    "derivative inside": Slope,
    "unused layer": Spare,
    "tied": Tied,
    "lstm": lambda: Recurrent("LSTM"),
    "gru": lambda: Recurrent("GRU"),
    "branches": Branches,
    "rounded": Rounded,
    "standing": Standing,
    "complex": Waves,
    "old weight norm": old_weight_norm,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)
    ),
    "frozen": lambda: nn.Sequential(
        nn.Linear(4, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, 3)
    ),
    "dictionary": lambda: Fold(mlp(nn.Tanh()), lambda out: {"logits": out, "aux": out.sum()}),  # pyright: ignore
    "words": Words,
    "words, sparse": lambda: Words(sparse=True),
    "words, padding": lambda: Words(padding_idx=0),
    "words, short": lambda: Words(max_norm=1.0),
    "words, attention": lambda: Words(attend=True),
}


def logits(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def dice(outputs: Any, targets: Tensor) -> Tensor:
    shares, wanted = logits(outputs).softmax(1), F.one_hot(targets.long(), CLASSES)
    return 1 - 2 * (shares * wanted).sum() / (shares + wanted).sum()


def brier(outputs: Any, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets.long(), CLASSES)
    return (logits(outputs).softmax(1) - wanted).square().sum(1)


def binary(outputs: Any, targets: Tensor) -> Tensor:
    found = logits(outputs)[:, 0]
    return F.binary_cross_entropy_with_logits(found, (targets > 0).to(found.dtype))


def editing(outputs: Any, targets: Tensor) -> Tensor:
    targets[targets == 2] = 1
    return F.cross_entropy(logits(outputs), targets)


class Scaled(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(outputs) * self.scale, targets)


def weighted() -> Any:
    module = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.3, 2.0]), label_smoothing=0.1)
    return lambda outputs, targets: module.to(logits(outputs).dtype)(logits(outputs), targets)


LOSSES: dict[str, Callable[[], tuple[Any, Callable[[Any, Tensor], Tensor]]]] = {
    # What flatkit is given, and the mean over one batch of everything.
    "cross_entropy": lambda: ("cross_entropy", lambda o, t: F.cross_entropy(logits(o), t)),
    "mse": lambda: ("mse", lambda o, t: (logits(o) - F.one_hot(t, CLASSES)).square().mean()),
    "function": lambda: 2 * (lambda o, t: F.cross_entropy(logits(o), t),),  # pyright: ignore
    "module": lambda: (nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(logits(o), t)),
    "ignored class": lambda: (
        nn.CrossEntropyLoss(ignore_index=1),
        lambda o, t: F.cross_entropy(logits(o), t, ignore_index=1),
    ),
    "weighted": lambda: (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.3, 2.0])),
        lambda o, t: F.cross_entropy(logits(o), t, torch.tensor([1.0, 0.3, 2.0]).to(logits(o))),
    ),
    "weighted function": lambda: 2 * (weighted(),),
    "a value a sample": lambda: (brier, lambda o, t: brier(o, t).mean()),
    "binary": lambda: (binary, binary),
    "dice": lambda: (dice, dice),
    "edits its targets": lambda: (editing, editing),
    "sum": lambda: (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda o, t: F.cross_entropy(logits(o), t),
    ),
    "with a weight": lambda: (Scaled(), Scaled()),
}


class Rows(Dataset[Any]):
    """Samples as dictionaries."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


DATA: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "pairs": lambda x, y: list(zip(x, y, strict=True)),
    "data set": Rows,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
    "shuffled": lambda x, y: DataLoader(
        TensorDataset(x, y), 5, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "subset": lambda x, y: Subset(
        TensorDataset(torch.cat([x, x]), torch.cat([y, y])), range(len(x))
    ),
    "sorted": lambda x, y: (x[y.argsort()], y.sort().values),
    "batches chosen": lambda x, y: DataLoader(
        TensorDataset(torch.cat([x, x + 1 if x.is_floating_point() else x]), torch.cat([y, y])),
        batch_sampler=[list(range(7)), list(range(7, len(x)))],
    ),
    "int32 targets": lambda x, y: (x, y.int()),
}

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "training": lambda model: model.train(),
    "sequential": lambda model: nn.Sequential(model),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "hooked": lambda model: _hooked(model),
}
AMBIENT: dict[str, Callable[[], Any]] = {
    "nothing": lambda: torch.enable_grad(),
    "no_grad": torch.no_grad,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}


def _hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, given, out: out)
    return model


@dataclass(frozen=True)
class Composition:
    """Names of its parts."""

    architecture: str
    loss: str
    data: str
    wrapper: str
    ambient: str
    dtype: str
    chunk_size: int | None
    seed: int

    def __str__(self) -> str:
        return ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))


CHOICES: dict[str, Sequence[Any]] = {
    "architecture": list(ARCHITECTURES),
    "loss": list(LOSSES),
    "data": list(DATA),
    "wrapper": list(WRAPPERS),
    "ambient": list(AMBIENT),
    "dtype": ["float32", "float64"],
    "chunk_size": [None, 3, 5],
    "seed": range(1000),
}


def drawn(number: int, seed: int = 0) -> Composition:
    """Return the composition of a number."""
    chance = random.Random(f"{seed}:{number}")
    return Composition(**{name: chance.choice(among) for name, among in CHOICES.items()})


def make(composition: Composition) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """Return the model, the loss as flatkit is given it, inputs and targets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(composition.seed)
        model = ARCHITECTURES[composition.architecture]()
        for module in model.modules():
            if (
                isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
                and module.running_mean is not None
            ):
                module.running_mean.normal_(0, 0.3)
        if composition.architecture.startswith("words"):
            inputs = torch.randint(0, WORDS, (SAMPLES, 5))
        else:
            inputs = torch.randn(SAMPLES, 4)
        targets = torch.randint(0, CLASSES, (SAMPLES,))
    dtype = getattr(torch, composition.dtype)
    if dtype is torch.float64 and composition.architecture != "complex":
        model = model.double()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
    wrapper = composition.wrapper
    if wrapper == "averaged" and composition.architecture == "old weight norm":
        wrapper = "none"  # torch itself cannot average what its hooks compute
    return WRAPPERS[wrapper](model), LOSSES[composition.loss]()[0], inputs, targets


def truth(composition: Composition) -> dict[str, Any]:
    """Return what is true of a composition, in float64 by nested differentiation of torch."""
    model, _, inputs, targets = make(composition)
    mean_loss = LOSSES[composition.loss]()[1]
    model = _widened(model) if composition.architecture == "complex" else model.double()
    model = (model.module if isinstance(model, _CARRIERS) else model).eval()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # sparse gradients have no second derivative
            module.max_norm = None  # it shortens in place; the vectors here are short
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def value(theta: Tensor) -> Tensor:
        parts = theta.split([_reals(p).numel() for p in free.values()])
        given = {n: _as(v, p) for (n, p), v in zip(free.items(), parts, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return mean_loss(functional_call(model, given, (inputs.clone(),)), targets.clone())

    theta = torch.cat([_reals(p.detach()).reshape(-1) for p in free.values()])
    gradient = torch.autograd.functional.jacobian(value, theta)
    values = torch.linalg.eigvalsh(_hessian(value, theta))
    return {
        "loss": float(value(theta)),
        "gradient_norm": float(gradient.norm()),  # type: ignore[union-attr]
        "top_eigenvalues": values.flip(0)[:2].tolist(),
        "bottom_eigenvalues": values[:1].tolist(),
        "trace": float(values.sum()),
    }


def _hessian(value: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Return the Hessian; by differences where torch's own second derivative is not symmetric.

    Such is that of its weight norm, which a difference of its right gradients contradicts.
    """
    found: Any = torch.autograd.functional.hessian(value, theta)
    if torch.allclose(found, found.T, rtol=1e-9, atol=1e-9):
        return found
    slope: Any = partial(torch.autograd.functional.jacobian, value)
    steps = 1e-5 * torch.eye(len(theta), dtype=theta.dtype)
    rows = torch.stack([(slope(theta + step) - slope(theta - step)) / 2e-5 for step in steps])
    return (rows + rows.T) / 2


_CARRIERS = (nn.DataParallel, torch.optim.swa_utils.AveragedModel)


def _widened(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            wide = torch.complex128 if p.is_complex() else torch.float64
            setattr(module, name, nn.Parameter(p.detach().to(wide)))
    return model


def _reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _as(part: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(part.reshape(*like.shape, 2).contiguous())
    return part.view_as(like)


@dataclass(frozen=True)
class Verdict:
    """How a composition ended: right, refused, or a fault, and in what words."""

    kind: str
    words: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether flatkit broke what it promises."""
        return self.kind not in ("right", "refused")


def judge(composition: Composition, measures: Sequence[str] = MEASURES) -> Verdict:
    """Measure a composition, and say whether flatkit kept its promises."""
    model, loss, inputs, targets = make(composition)
    data = DATA[composition.data](inputs, targets)
    before = _digest(model, loss, inputs, targets, data)
    with warnings.catch_warnings(), AMBIENT[composition.ambient]():
        warnings.simplefilter("ignore")
        try:
            report = flatkit.analyze(
                model,
                loss,
                data,
                measures=measures,
                num_eigenvalues=2,
                chunk_size=composition.chunk_size,
                dtype=composition.dtype,
            )
        except FlatkitError as error:
            verdict = Verdict("refused", " ".join(str(error).split()))
        except Exception as error:
            return Verdict("traceback", f"{type(error).__name__}: {error}"[:300])
        else:
            verdict = _compare(report, composition)
    if _digest(model, loss, inputs, targets, data) != before:
        return Verdict("changed", "something of the user's is another than before")
    return verdict


def _compare(report: Any, composition: Composition) -> Verdict:
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        true = truth(composition)
    scale = max(map(abs, true["top_eigenvalues"] + true["bottom_eigenvalues"]))
    slack = {"float32": 2e-4, "float64": 1e-8}[composition.dtype]
    for measure, expected in true.items():
        results = [result for result in report if result.measure == measure]
        if not results:
            continue
        (result,) = results
        found = np.atleast_1d(np.asarray(result.value, dtype=float))
        errors = np.broadcast_to(np.asarray(result.error or 0.0, dtype=float), found.shape)
        factor = 6.0 if result.error_kind == "standard_error" else 1.0
        unit = scale * (len(found) if measure != "trace" else 20)
        size = unit if "eigen" in measure or measure == "trace" else max(abs(expected), 1e-3)
        for value, error, right in zip(found, errors, np.atleast_1d(expected), strict=False):
            if result.status not in (None, "converged") and "eigen" in measure:
                continue
            if not abs(value - right) <= factor * error + slack * size:
                words = f"{measure} {value:.6g} ± {error:.2g}, true {right:.6g}"
                return Verdict("wrong", words)
    return Verdict("right")


def _digest(model: nn.Module, loss: Any, inputs: Tensor, targets: Tensor, data: Any) -> str:
    digest = hashlib.sha256()
    for tensor in _tensors(model, loss, inputs, targets):
        digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    for module in model.modules():
        digest.update(f"{module.training}".encode())
    if isinstance(data, DataLoader) and data.generator is not None:
        digest.update(data.generator.get_state().numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr(random.getstate()).encode() + repr(np.random.get_state()).encode())  # noqa: NPY002
    return digest.hexdigest()


def _tensors(model: nn.Module, loss: Any, *rest: Tensor) -> Iterator[Tensor]:
    for module in (model, loss):
        if isinstance(module, nn.Module):
            for p in module.parameters():
                yield from (p, p.grad) if p.grad is not None else (p,)
            yield from module.buffers()
    yield from rest
