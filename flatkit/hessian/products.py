"""The ways to multiply with a Hessian: one chunk of samples, K vectors, a function a formula."""

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp

from flatkit.errors import InvalidArgumentError
from flatkit.hessian.layers.tape import Tape
from flatkit.hessian.layers.trace import names_of_inputs, trace
from flatkit.hessian.unsupported import UnsupportedError, torch_derivatives
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk, differentiate, gradients

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


class Prepared(Protocol):
    """One chunk at one point, ready to be multiplied with."""

    @property
    def gradient(self) -> Tensor | None:
        """∇ of the chunk's part of L, [P]; None if it is not known without work."""
        ...

    @property
    def products(self) -> Callable[[Tensor], Tensor]:
        """Vectors [K, P] -> their products [K, P]."""
        ...


@dataclass(frozen=True)
class Formula:
    """A prepared chunk that is two values: its products and, if it is known, its gradient."""

    products: Callable[[Tensor], Tensor]
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Engine:
    """A way to multiply at one point.

    Attributes:
        prepare: does for a chunk what all its products share.
        keeps: whether a prepared chunk holds memory that makes the next product cheaper.
        held: bytes that the engine itself holds.
    """

    prepare: Callable[[Chunk], Prepared]
    keeps: bool = False
    held: int = 0


def double_backward(objective: Objective, theta: Tensor, chunk: Chunk) -> Formula:
    """H v = ∇(∇L·v) through the kept graph of the gradient (Pearlmutter, 1994).

    Raises:
        UnsupportedError: of a model of `fully_shard`.
    """
    if objective.is_joint:
        raise UnsupportedError("fully_shard has no second derivative: its hooks gather gradients")
    with objective.placed(theta) as point:
        loss = objective.chunk_loss(point, chunk)
        with torch_derivatives():
            slope = differentiate(loss, point, create_graph=True)

    def products(vectors: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss that is linear in θ has no curvature
            return torch.zeros_like(vectors)
        found = torch.empty_like(vectors)
        # What the model recomputes needs the weights of the forward pass once more.
        with objective.placed_again(point), torch_derivatives():
            for row, vector in zip(found, vectors, strict=True):
                row.copy_(gradients(slope, point, vector, retain_graph=True)[0])
        return found

    return Formula(products, slope.detach())


def forward_over_reverse(objective: Objective, theta: Tensor, chunk: Chunk) -> Formula:
    """H v = d/dt ∇L(θ + t v): the forward-mode derivative of the gradient."""
    # Nothing is kept: a transform of torch.func runs the model anew for each vector.
    slope = torch.func.grad(partial(objective.chunk_loss, chunk=chunk))

    def products(vectors: Tensor) -> Tensor:
        with objective.placed(theta), _inside_torch_func():
            return torch.stack([jvp(slope, (theta,), (vector,))[1] for vector in vectors])

    return Formula(products)


def reverse_over_forward(objective: Objective, theta: Tensor, chunk: Chunk) -> Formula:
    """H v = ∇(d/dt L(θ + t v)): the gradient of the forward-mode derivative."""

    def rate(point: Tensor, vector: Tensor) -> Tensor:
        return jvp(partial(objective.chunk_loss, chunk=chunk), (point,), (vector,))[1]

    def products(vectors: Tensor) -> Tensor:
        with objective.placed(theta), _inside_torch_func():
            return torch.stack([torch.func.grad(rate)(theta, vector) for vector in vectors])

    return Formula(products)


def central_difference(
    objective: Objective, theta: Tensor, chunk: Chunk, *, steps: float = 1.0
) -> Formula:
    """H v ≈ (∇L(θ + h u) - ∇L(θ - h u))·‖v‖/2h for the unit vector u of v.

    The step h = 0.1 ε^(1/3)·max(1, ‖θ‖) balances rounding, which grows as ε‖∇L‖/h, against the
    third derivative, which grows as h². Kinks (ReLU) within the step are an error that no step
    removes; nothing here is promised, it is measured: `Choice.error`, and where there is nothing to
    compare with, `difference_error`.

    Args:
        objective: L.
        theta: θ [P].
        chunk: the samples.
        steps: multiplies h.
    """
    size = steps * 0.1 * torch.finfo(theta.dtype).eps ** (1 / 3) * max(1.0, float(theta.norm()))

    def products(vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        for row, vector in zip(found, vectors, strict=True):
            length = float(vector.norm())
            for sign in (1, -1) if length > 0 else ():
                moved = theta + vector * (sign * size / length)
                with objective.placed(moved, smooth=False) as point:
                    loss = objective.chunk_loss(point, chunk)
                    with torch_derivatives():
                        row.add_(differentiate(loss, point), alpha=sign)
            row *= length / (2 * size)
        return found

    return Formula(products)


def difference_error(objective: Objective, theta: Tensor, chunk: Chunk, vector: Tensor) -> float:
    """Return how far a central difference differs from that at twice the step, relative to it.

    This is three times the error that the third derivative causes, and about the error of rounding,
    which a longer step halves. At a kink it is only an indication. Cost: 4 gradients.
    """
    near, far = (
        central_difference(objective, theta, chunk, steps=steps).products(vector[None])[0]
        for steps in (1, 2)
    )
    size = float(near.norm())
    return float((near - far).norm()) / size if size > 0 else float(far.norm())


def build_engine(name: EngineName, objective: Objective, theta: Tensor) -> Engine:
    """Return an engine by name.

    Raises:
        InvalidArgumentError: no such engine.
        UnsupportedError: `layers`, and the model is no graph of layers with one input.
    """
    if objective.sharded is not None and name not in ("double_backward", "central_difference"):
        raise UnsupportedError("the weights lie in parts on several ranks")
    if name == "layers":
        elsewhere = objective.elsewhere
        if elsewhere is not None and (elsewhere.in_model or elsewhere.beyond_outputs):
            raise UnsupportedError("weights enter beside the outputs of the model's layers")
        if objective.reads_kept:
            raise UnsupportedError("the loss may read what the forward pass keeps in the model")
        network = trace(objective.model, names_of_inputs(objective.samples.inputs))
        return Engine(partial(Tape, network, objective, theta), keeps=True, held=network.nbytes)
    if name not in FORMULAS:
        raise InvalidArgumentError(f"engine must be auto or one of {', '.join(ENGINES)}")
    prepare = partial(FORMULAS[name], objective, theta)
    return Engine(prepare, keeps=name == "double_backward")


FORMULAS: Mapping[EngineName, Callable[[Objective, Tensor, Chunk], Formula]] = {
    "double_backward": double_backward,
    "forward_over_reverse": forward_over_reverse,
    "reverse_over_forward": reverse_over_forward,
    "central_difference": central_difference,
}


@contextmanager
def _inside_torch_func() -> Generator[None, None, None]:
    # In a block the parameters that are held fixed require gradients: without no_grad the product
    # would keep a graph to them. The transforms of torch.func take derivatives all the same.
    with warnings.catch_warnings(), torch_derivatives(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        yield
