"""The ways to multiply with a Hessian: one chunk of samples, K vectors, one interface."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor
from torch.func import jvp

from flatkit.errors import InvalidArgumentError
from flatkit.hessian.layers.tape import Tape
from flatkit.hessian.layers.trace import Network, UntraceableError, trace
from flatkit.objective.function import Chunk, Objective, differentiate

EngineName: TypeAlias = Literal[
    "layers",
    "double_backward",
    "forward_over_reverse",
    "reverse_over_forward",
    "central_difference",
]

ENGINES: Mapping[EngineName, str] = {
    "layers": "Pearlmutter's R-operator, layer by layer",
    "double_backward": "backward through the graph of the gradient",
    "forward_over_reverse": "forward-mode derivative of the gradient",
    "reverse_over_forward": "gradient of the forward-mode derivative",
    "central_difference": "differences of gradients; no second derivative is needed",
}
"""The engines by name."""


class Prepared(ABC):
    """One chunk at one point, ready to be multiplied with.

    Attributes:
        gradient: of the chunk's part of L, [P]; None if it is not known without work.
    """

    gradient: Tensor | None = None

    @abstractmethod
    def products(self, vectors: Tensor) -> Tensor:
        """Return the products [K, P] with the rows of [K, P]."""


class Engine(ABC):
    """A way to multiply.

    Attributes:
        keeps: whether a prepared chunk holds memory that makes the next product cheaper.
    """

    keeps = False

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        self.objective, self.theta = objective, theta

    @abstractmethod
    def prepare(self, chunk: Chunk) -> Prepared:
        """Do for a chunk what all its products share."""


@final
class LayersEngine(Engine):
    """Layer by layer; needs a model that `torch.fx` can follow, and one tensor of outputs."""

    keeps = True

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        super().__init__(objective, theta)
        self.network: Network = trace(objective.model)

    def prepare(self, chunk: Chunk) -> Prepared:
        """Record the layers."""
        return _Recorded(self.tape(chunk))

    def tape(self, chunk: Chunk) -> Tape:
        """Return the recorded layers."""
        own = self.objective
        if not isinstance(chunk.inputs, Tensor):
            raise UntraceableError("the model takes more than one tensor")
        return Tape(
            self.network, own.space, self.theta, chunk.inputs, lambda out: own.share(out, chunk)
        )


@final
class _Recorded(Prepared):
    def __init__(self, tape: Tape) -> None:
        self._tape, self.gradient = tape, tape.gradient

    def products(self, vectors: Tensor) -> Tensor:
        if self._tape.takes_blocks or len(vectors) == 1:
            return self._tape.product(vectors)
        return torch.cat([self._tape.product(vector[None]) for vector in vectors])


@final
class DoubleBackwardEngine(Engine):
    """H v = ∇(∇L·v) through the kept graph of the gradient (Pearlmutter, 1994)."""

    keeps = True

    def prepare(self, chunk: Chunk) -> Prepared:
        """Build the graph of the gradient."""
        return _Graph(self.objective, self.theta, chunk)


@final
class _Graph(Prepared):
    def __init__(self, objective: Objective, theta: Tensor, chunk: Chunk) -> None:
        self._point = theta.clone().requires_grad_()
        loss = objective.chunk_loss(self._point, chunk)
        self._slope = differentiate(loss, self._point, create_graph=True)
        self.gradient = self._slope.detach()

    def products(self, vectors: Tensor) -> Tensor:
        if not self._slope.requires_grad:  # a loss that is linear in θ has no curvature
            return torch.zeros_like(vectors)
        return torch.stack(
            [
                torch.autograd.grad(
                    self._slope, self._point, vector, retain_graph=True, materialize_grads=True
                )[0]
                for vector in vectors
            ]
        )


@final
class ForwardOverReverseEngine(Engine):
    """H v = d/dt ∇L(θ + t v): the forward-mode derivative of the gradient."""

    def prepare(self, chunk: Chunk) -> Prepared:
        """Do nothing."""
        return _ForwardOverReverse(self.objective, self.theta, chunk)


@final
class _ForwardOverReverse(Prepared):
    def __init__(self, objective: Objective, theta: Tensor, chunk: Chunk) -> None:
        self._objective, self._theta, self._chunk = objective, theta, chunk

    def products(self, vectors: Tensor) -> Tensor:
        slope = torch.func.grad(lambda point: self._objective.chunk_loss(point, self._chunk))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # inside torch.func
            return torch.stack([jvp(slope, (self._theta,), (vector,))[1] for vector in vectors])


@final
class ReverseOverForwardEngine(Engine):
    """H v = ∇(d/dt L(θ + t v)): the gradient of the forward-mode derivative."""

    def prepare(self, chunk: Chunk) -> Prepared:
        """Do nothing."""
        return _ReverseOverForward(self.objective, self.theta, chunk)


@final
class _ReverseOverForward(Prepared):
    def __init__(self, objective: Objective, theta: Tensor, chunk: Chunk) -> None:
        self._objective, self._theta, self._chunk = objective, theta, chunk

    def products(self, vectors: Tensor) -> Tensor:
        def rate(point: Tensor, vector: Tensor) -> Tensor:
            loss = lambda p: self._objective.chunk_loss(p, self._chunk)  # noqa: E731
            return jvp(loss, (point,), (vector,))[1]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # inside torch.func
            return torch.stack([torch.func.grad(rate)(self._theta, vector) for vector in vectors])


@final
class CentralDifferenceEngine(Engine):
    """H v ≈ (∇L(θ + h u) - ∇L(θ - h u))·‖v‖/2h for the unit vector u of v.

    The step h = ε^(1/3)·max(1, ‖θ‖)·s balances rounding, which grows as ε‖∇L‖/h, against the
    third derivative, which grows as h². Kinks (ReLU) within the step are an error that no step
    removes; nothing here is promised, it is measured: see `Choice.error`, and where there is
    nothing to compare with, `Difference.relative_error`.
    """

    def prepare(self, chunk: Chunk) -> Prepared:
        """Do nothing."""
        return Difference(self.objective, self.theta, chunk)


@final
class Difference(Prepared):
    """A chunk whose gradient is taken at both sides of θ."""

    def __init__(self, objective: Objective, theta: Tensor, chunk: Chunk) -> None:
        self._objective, self._theta, self._chunk = objective, theta, chunk
        scale = max(1.0, float(theta.norm()))
        self.step = 0.1 * torch.finfo(theta.dtype).eps ** (1 / 3) * scale

    def products(self, vectors: Tensor) -> Tensor:
        """Return the products [K, P]."""
        return torch.stack([self._product(vector) for vector in vectors])

    def relative_error(self, vector: Tensor) -> float:
        """Return how far a product differs from that at twice the step, relative to it.

        Of the third derivative's part this is three times the error; of rounding's part, which a
        longer step halves, about the error; at a kink, an indication. Cost: 4 gradients.
        """
        near, far = self._product(vector), self._product(vector, steps=2)
        size = float(near.norm())
        return float((near - far).norm()) / size if size > 0 else float(far.norm())

    def _product(self, vector: Tensor, *, steps: int = 1) -> Tensor:
        length, size = float(vector.norm()), steps * self.step
        if length == 0:
            return torch.zeros_like(vector)
        step = vector * (size / length)
        ahead, behind = (self._gradient(self._theta + sign * step) for sign in (1, -1))
        return (ahead - behind) * (length / (2 * size))

    def _gradient(self, theta: Tensor) -> Tensor:
        point = theta.requires_grad_()
        return differentiate(self._objective.chunk_loss(point, self._chunk, smooth=False), point)


def build_engine(name: EngineName, objective: Objective, theta: Tensor) -> Engine:
    """Return an engine by name.

    Raises:
        InvalidArgumentError: no such engine.
        UntraceableError: `layers`, and the model is no graph of layers.
    """
    if name not in _CLASSES:
        raise InvalidArgumentError(f"engine must be auto or one of {', '.join(ENGINES)}")
    return _CLASSES[name](objective, theta)


_CLASSES: Mapping[EngineName, type[Engine]] = {
    "layers": LayersEngine,
    "double_backward": DoubleBackwardEngine,
    "forward_over_reverse": ForwardOverReverseEngine,
    "reverse_over_forward": ReverseOverForwardEngine,
    "central_difference": CentralDifferenceEngine,
}
