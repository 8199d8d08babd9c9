"""One step's visits to perturbed points: leave θ, take gradients there, come back bit for bit.

The visits are generators: each yields a `GradientPass` to whoever computes the loss there (a
closure, or the loop of a user) and goes on when that is done.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, final

import torch
from torch import Tensor

from flatkit.errors import NonFiniteError
from flatkit.optim.autograd import differentiate, hessian_product
from flatkit.optim.blockwise import Blockwise, Vector, Weights, copy
from flatkit.optim.passes import GradientPass

T = TypeVar("T")
R = TypeVar("R")
Walk: TypeAlias = Generator[GradientPass, None, R]
"""Yields a visit at each point where a loss is wanted, and returns what was made of them."""


@final
class Excursion:
    """A walk around θ that always comes home; used as a context, under `torch.no_grad`.

    Args:
        param_groups: the groups of an optimizer; parameters with `requires_grad=False` take no
            part. The gradients must be `None` at the start, and are `None` after each pass.
        eps: added to each norm that is divided by.
        eta: η > 0 for steps in the scaled space of T = |θ| + η, where a radius is one of ‖T⁻¹δ‖;
            None for the plain space.
        foreach: see `Blockwise`.
        scaler: its scale is divided out of each gradient.
        average: replaces a vector by its mean over replicas that `backward` does not average.
        patient: go on after a gradient that is not finite, without moving, until `check`; then
            replicas that must pass in step stay in step.

    Attributes:
        groups: the param group of each block of a vector, see `flatkit.optim.blockwise`.
        algebra: of the vectors here.
        pass_number: the number of the pass under way or last made; −1 before the first.
        loss: the loss of the first pass, detached.

    >>> theta = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], eps=1e-12)
    >>> def steps():
    ...     with walk:
    ...         walk.move((yield from walk.gradient()), [5.0])
    ...         print(theta.tolist(), (yield from walk.gradient()))
    >>> for visit in without_grad(steps()):
    ...     visit.backward(theta.square().sum() / 2)
    [6.0, 8.0] [[tensor([6., 8.])]]
    >>> theta.tolist()
    [3.0, 4.0]
    """

    def __init__(
        self,
        param_groups: Iterable[Mapping[str, Any]],
        *,
        eps: float,
        eta: float | None = None,
        foreach: bool = True,
        scaler: torch.amp.GradScaler | None = None,
        average: Callable[[Vector], object] | None = None,
        patient: bool = False,
    ) -> None:
        self.groups, self._theta = _blocks(param_groups)
        self._parameters = [parameter for block in self._theta for parameter in block]
        self.algebra = Blockwise(foreach)
        self.pass_number = -1
        self.loss: Any = None
        self._eps, self._eta = eps, eta
        self._scaler = scaler
        self._average, self._patient = average, patient
        self._home: Vector = []
        self._used: set[int] = set()  # ids: tensors are slow to hash
        self._rows: dict[int, list[Tensor]] = {}
        self._failure: str | None = None

    def __enter__(self) -> "Excursion":
        return self

    def __exit__(self, *exception: object) -> None:
        self.return_home()
        self._home = []
        self.clear_gradients()  # after an error, nothing is left that might be stepped with

    def gradient(self, *, kept: bool = True) -> Walk[Vector]:
        """Return g = ∇L at the parameters as they are; one pass.

        A missing gradient counts as zero.

        Args:
            kept: it is wanted beyond the next pass. Otherwise it may be what autograd left, which
                data-parallel buckets and CUDA graphs overwrite in their next pass.
        """
        yield from self._visit(twice=False)
        return self._own(map(_taken, self._parameters), kept=kept)

    def gradient_and_growth(self) -> Walk[tuple[Vector, Vector]]:
        """Return g = ∇L and f = H·g/(‖g‖+eps), the gradient of ‖∇L‖; one pass.

        In the scaled space f = H·T²g/(‖Tg‖+eps), the gradient of ‖T∇L‖ with T held. One gradient
        and one Hessian-vector product by double backward through the same forward pass.

        Raises:
            InvalidArgumentError: the loss cannot be differentiated, or not twice.
            NonFiniteError: ‖g‖ is NaN or infinite.
        """
        visit = yield from self._visit(twice=True)
        parameters = self._parameters
        with torch.enable_grad():  # a scaled loss is a product, whose graph must be recorded
            loss = visit.total if self._scaler is None else self._scaler.scale(visit.total)
            gradients = differentiate(loss, parameters)
        visit.release()
        gradient = self._own(gradients)
        self._mean(gradient)
        ahead, length = self._ahead(gradient, "gradient")
        weight = 0.0 if length == float("inf") else 1 / (length + self._eps)
        direction = [tensor for block in ahead for tensor in block]
        growth = self._own(hessian_product(gradients, parameters, direction))
        self._mean(growth)
        self.algebra.scale_(growth, [weight] * len(growth))
        return gradient, growth

    def gradient_and_difference(self) -> Walk[tuple[Vector, Vector]]:
        """Return g and f as `gradient_and_growth`, f by central differences; three passes.

        f ≈ (∇L(θ + s·u) − ∇L(θ − s·u))/2s along u = g/‖g‖ with s = 0.1·ε^(1/3)·max(1, ‖θ‖), which
        balances rounding (dtype's ε) against the third derivative; kinks within the step are an
        error that no step removes. The parameters end at θ − s·u.

        Raises:
            NonFiniteError: a norm is NaN or infinite.
        """
        gradient = yield from self.gradient()
        ahead, length = self._ahead(gradient, "gradient")
        size = self.norm(ahead, "gradient")
        rounding = max(torch.finfo(tensor.dtype).eps for block in self._theta for tensor in block)
        reach = 0.1 * rounding ** (1 / 3) * max(1.0, self.algebra.norm(self._home or self._theta))
        blocks, moves = len(ahead), 0 < size < float("inf")
        step = reach / size if moves else 0.0
        self._shift(ahead, [step] * blocks)
        growth = yield from self.gradient()
        self.norm(growth, "gradient")
        self._shift(ahead, [-2 * step] * blocks)
        del ahead
        behind = yield from self.gradient(kept=False)
        self.norm(behind, "gradient")
        self.algebra.add_(growth, behind, [-1.0] * blocks)
        weight = 1 / (2 * step * (length + self._eps)) if moves else 0.0
        self.algebra.scale_(growth, [weight] * blocks)
        return gradient, growth

    def move(self, direction: Vector, radii: Weights, *, what: str = "gradient") -> None:
        """Move the parameters by radius·d/(‖d‖+eps), the norm over all blocks together.

        In the scaled space by radius·T²d/(‖Td‖+eps). There this takes two more vectors for a
        moment.

        Raises:
            NonFiniteError: the norm is NaN or infinite.
        """
        ahead, length = self._ahead(direction, what)
        length += self._eps
        if length != float("inf"):
            self._shift(ahead, [radius / length for radius in radii])

    def return_home(self) -> None:
        """Put the parameters back, bit for bit."""
        if self._home:
            self.algebra.assign_(self._theta, self._home)
            torch.clear_autocast_cache()

    def norm(self, vector: Vector, what: str) -> float:
        """Return the norm of a vector; infinite after a failure that is kept until `check`.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        length = self.algebra.norm(vector)
        if length < float("inf"):  # false for NaN too
            return length
        failure = f"the norm of the {what} is {length} in pass {self.pass_number}"
        self._failure = self._failure or failure
        if not self._patient:
            self.check(failed=True)
        return float("inf")

    def check(self, *, failed: bool | None = None) -> None:
        """Raise the failure that was kept, or one of another replica.

        Raises:
            NonFiniteError: there was one.
        """
        if self._failure is not None or failed:
            failure = self._failure or "a gradient of another replica is not finite"
            raise NonFiniteError(f"{failure} (weights put back, no step taken)")

    @property
    def failed(self) -> bool:
        """Whether a gradient was not finite."""
        return self._failure is not None

    def write_gradient(self, gradient: Vector) -> None:
        """Set `.grad` of each parameter that had a gradient in any pass; the others keep `None`.

        Where every gradient was sparse, it is sparse, with all rows that occurred.
        """
        for block, tensors in zip(self._theta, gradient, strict=True):
            for parameter, tensor in zip(block, tensors, strict=True):
                rows = self._rows.get(id(parameter))
                used = tensor if id(parameter) in self._used else None
                parameter.grad = _sparse(tensor, rows) if used is None and rows else used

    def clear_gradients(self) -> None:
        """Set `.grad` of each parameter to `None`."""
        for parameter in self._parameters:
            parameter.grad = None

    def parameters(self) -> Iterator[Tensor]:
        """Return the parameters that take part, in the order of the blocks."""
        return iter(self._parameters)

    def _visit(self, *, twice: bool) -> Walk[GradientPass]:
        self.pass_number += 1
        visit = GradientPass(self.pass_number, self._parameters, twice=twice, scaler=self._scaler)
        yield visit
        visit.check_done()
        if self.pass_number == 0:
            self.loss = visit.loss
        return visit

    def _ahead(self, vector: Vector, what: str) -> tuple[Vector, float]:
        """Return d and ‖d‖, or in the scaled space T²d and ‖Td‖."""
        if self._eta is None:
            return vector, self.norm(vector, what)
        ahead, home = copy(vector), self._home or self._theta
        self.algebra.stretch_(ahead, home, self._eta)
        length = self.norm(ahead, what)
        self.algebra.stretch_(ahead, home, self._eta)
        return ahead, length

    def _shift(self, direction: Vector, weights: Weights) -> None:
        self._home = self._home or copy(self._theta)
        self.algebra.add_(self._theta, direction, weights)
        # Autocast keeps casts of weights by identity and would serve those of the last point.
        torch.clear_autocast_cache()

    def _mean(self, vector: Vector) -> None:
        if self._average is not None:
            self._average(vector)

    def _own(self, gradients: Iterable[Tensor | None], *, kept: bool = True) -> Vector:
        """Return copies in the layout of the parameters, zeros where there is no gradient.

        Copies, because autograd and data-parallel buckets may keep, share or overwrite theirs;
        the gradients themselves only where they are not to be kept, and share no memory.
        Gradients are drawn one by one, so that each may be freed before the next is copied.
        """
        remaining, taken = iter(gradients), None if kept else set()
        vector = [[self._own_one(p, next(remaining), taken) for p in b] for b in self._theta]
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if scale != 1:
            self.algebra.scale_(vector, [1 / scale] * len(vector))
        return vector

    def _own_one(
        self, parameter: Tensor, gradient: Tensor | None, taken: set[int] | None
    ) -> Tensor:
        if gradient is None:
            return torch.zeros_like(parameter)
        if gradient.layout is torch.sparse_coo:
            gradient = gradient.coalesce()
            self._rows.setdefault(id(parameter), []).append(gradient.indices())
            return torch.empty_like(parameter).copy_(gradient.to_dense())
        self._used.add(id(parameter))
        if taken is not None and _is_alike(gradient, parameter):
            memory = gradient.untyped_storage().data_ptr()
            if memory not in taken:  # of a sum of views, autograd leaves one gradient to both
                taken.add(memory)
                return gradient
        return torch.empty_like(parameter).copy_(gradient)


def without_grad(inner: Generator[T, None, R]) -> Generator[T, None, R]:
    """Resume a generator with gradients disabled, and leave the mode alone while it waits.

    >>> def modes():
    ...     print("inside", torch.is_grad_enabled())
    ...     yield
    >>> for _ in without_grad(modes()):
    ...     print("outside", torch.is_grad_enabled())
    inside False
    outside True
    """
    without = torch.no_grad()  # entered again and again: to make one costs as much
    try:
        while True:
            with without:
                try:
                    item = next(inner)
                except StopIteration as stop:
                    return stop.value
            yield item
    except BaseException:
        with without:
            inner.close()
        raise


def _sparse(tensor: Tensor, rows: list[Tensor]) -> Tensor:
    indices = torch.cat(rows, dim=1).unique(dim=1)  # [sparse dimensions, entries]
    values = tensor[tuple(indices)]
    return torch.sparse_coo_tensor(
        indices, values, tensor.shape, is_coalesced=True, check_invariants=False
    )


def _blocks(
    param_groups: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], Vector]:
    """Return the group and the tensors of each block: one group, one device, one dtype."""
    groups: list[Mapping[str, Any]] = []
    theta: Vector = []
    for group in param_groups:
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in group["params"]:
            # Norms of lists with empty tensors are wrong on CUDA before torch 2.6 (pytorch#140066).
            if parameter.requires_grad and parameter.numel() > 0:
                kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        groups += [group] * len(kinds)
        theta += kinds.values()
    return groups, theta


def _is_alike(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether a gradient can stand for a copy in the layout of its parameter."""
    return (
        type(gradient) is Tensor
        and not gradient.requires_grad
        and gradient.dtype == parameter.dtype
        and gradient.stride() == parameter.stride()
    )


def _taken(parameter: Tensor) -> Tensor | None:
    gradient, parameter.grad = parameter.grad, None
    return gradient
