"""The perturbed point θ + δ of one step: move there, take gradients, restore θ bit for bit.

Methods that need a loss are generators: each yields a `GradientPass` and goes on when the loss
there was differentiated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.amp import GradScaler

from flatkit.errors import NonFiniteError
from flatkit.optim.autograd import GradientPass, Passes, differentiate, hessian_product
from flatkit.optim.blockwise import Blocks, Blockwise, Weights, copy


@final
class PerturbedPoint:
    """The parameters, moved away from θ for some passes; a context, under `torch.no_grad`.

    The end of the context restores θ, whatever happened.

    Args:
        param_groups: the groups of an optimizer; parameters with `requires_grad=False` take no
            part. The gradients must be `None` at the start, and are `None` after each pass.
        eps: added to each norm that is divided by.
        eta: η > 0 for steps in the scaled space of T = |θ| + η, where a radius is one of ‖T⁻¹δ‖;
            None for the plain space.
        foreach: one call for a block of tensors; False for tensor by tensor.
        scaler: its scale is divided out of each gradient.
        average: replaces a vector by its mean over processes that `backward` does not average.
        defer_failures: after a gradient that is not finite go on without moving, and raise in
            `check_finite` only.

    Attributes:
        groups: the param group of each block of a vector.
        blockwise: the operations on vectors here.
        pass_number: the number of the pass under way or last made; −1 before the first.
        loss: the loss of the first pass, detached.

    >>> from flatkit.optim.autograd import without_grad
    >>> theta = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> point = PerturbedPoint([{"params": [theta]}], eps=1e-12)
    >>> def passes():
    ...     with point:
    ...         point.ascend((yield from point.gradient()), [5.0])
    ...         print(theta.tolist(), (yield from point.gradient()))
    >>> for gradient_pass in without_grad(passes()):
    ...     gradient_pass.backward(theta.square().sum() / 2)
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
        scaler: GradScaler | None = None,
        average: Callable[[Blocks], object] | None = None,
        defer_failures: bool = False,
    ) -> None:
        self.groups, self._theta = _blocks(param_groups)
        self._parameters = [parameter for block in self._theta for parameter in block]
        self.blockwise = Blockwise(foreach)
        self.pass_number = -1
        self.loss: Any = None
        self._eps, self._eta = eps, eta
        self._scaler = scaler
        self._average, self._defer_failures = average, defer_failures
        self._original: Blocks = []  # θ, once the parameters have left it
        self._used: set[int] = set()  # ids: tensors are slow to hash
        self._rows: dict[int, list[Tensor]] = {}
        self._failure: str | None = None

    def __enter__(self) -> "PerturbedPoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()
        self._original = []
        self.clear_gradients()  # after an error, nothing is left that might be stepped with

    def gradient(self, *, kept: bool = True) -> Passes[Blocks]:
        """Return g = ∇L at the parameters as they are; one pass.

        A missing gradient counts as zero.

        Args:
            kept: it is wanted beyond the next pass. Otherwise it may be what autograd left, which
                data-parallel buckets and CUDA graphs overwrite in their next pass.
        """
        yield from self._pass(twice=False)
        return self._as_blocks(map(_taken, self._parameters), kept=kept)

    def gradient_and_norm_gradient(self) -> Passes[tuple[Blocks, Blocks]]:
        """Return g = ∇L and f = H·g/(‖g‖+eps), the gradient of ‖∇L‖; one pass.

        In the scaled space f = H·T²g/(‖Tg‖+eps), the gradient of ‖T∇L‖ with T held. One gradient
        and one Hessian-vector product by double backward through the same forward pass
        (Pearlmutter 1994).

        Raises:
            InvalidArgumentError: the loss cannot be differentiated, or not twice.
            NonFiniteError: ‖g‖ is NaN or infinite.
        """
        gradient_pass = yield from self._pass(twice=True)
        parameters = self._parameters
        with torch.enable_grad():  # a scaled loss is a product, whose graph must be recorded
            total = gradient_pass.total
            loss = total if self._scaler is None else self._scaler.scale(total)
            gradients = differentiate(loss, parameters)
        del total, loss  # or their graph would outlive the product
        gradient_pass.release()
        gradient = self._as_blocks(gradients)
        self._average_(gradient)
        ascent, length = self._ascent(gradient, "gradient")
        # Infinite after a deferred failure: the vector is dropped later, and until then no NaN.
        weight = 0.0 if length == float("inf") else 1 / (length + self._eps)
        direction = [tensor for block in ascent for tensor in block]
        norm_gradient = self._as_blocks(hessian_product(gradients, parameters, direction))
        self._average_(norm_gradient)
        self.blockwise.scale_(norm_gradient, [weight] * len(norm_gradient))
        return gradient, norm_gradient

    def gradient_and_norm_gradient_by_differences(self) -> Passes[tuple[Blocks, Blocks]]:
        """Return g and f as `gradient_and_norm_gradient`, f by central differences; three passes.

        f ≈ (∇L(θ + s·u) − ∇L(θ − s·u))/2s along u = g/‖g‖ with s = 0.1·ε^(1/3)·max(1, ‖θ‖). Kinks
        within the step are an error that no step removes. The parameters end at θ − s·u.

        Raises:
            NonFiniteError: a norm is NaN or infinite.
        """
        gradient = yield from self.gradient()
        ascent, length = self._ascent(gradient, "gradient")
        size = self.norm(ascent, "gradient")
        rounding = max(torch.finfo(tensor.dtype).eps for block in self._theta for tensor in block)
        # ε^(1/3) balances rounding, ε/s, against the third derivative, s² (Nocedal and Wright
        # 2006, section 8.1).
        theta = self._original or self._theta
        step_length = 0.1 * rounding ** (1 / 3) * max(1.0, self.blockwise.norm(theta))
        count, moves = len(ascent), 0 < size < float("inf")
        step = step_length / size if moves else 0.0
        self._add(ascent, [step] * count)
        norm_gradient = yield from self.gradient()
        self.norm(norm_gradient, "gradient")
        # From θ + s·u to θ − s·u; the caller restores θ bit for bit.
        self._add(ascent, [-2 * step] * count)
        del ascent
        behind = yield from self.gradient(kept=False)
        self.norm(behind, "gradient")
        self.blockwise.add_(norm_gradient, behind, [-1.0] * count)
        weight = 1 / (2 * step * (length + self._eps)) if moves else 0.0
        self.blockwise.scale_(norm_gradient, [weight] * count)
        return gradient, norm_gradient

    def ascend(self, direction: Blocks, radii: Weights, *, what: str = "gradient") -> None:
        """Move the parameters by radius·d/(‖d‖+eps), the norm over all blocks together.

        In the scaled space by radius·T²d/(‖Td‖+eps). There this takes two more vectors for a
        moment.

        Raises:
            NonFiniteError: the norm is NaN or infinite.
        """
        ascent, length = self._ascent(direction, what)
        length += self._eps
        if length != float("inf"):
            self._add(ascent, [radius / length for radius in radii])

    def restore(self) -> None:
        """Set the parameters to θ again, bit for bit."""
        if self._original:
            self.blockwise.assign_(self._theta, self._original)
            torch.clear_autocast_cache()

    def norm(self, vector: Blocks, what: str) -> float:
        """Return the norm of a vector; infinite after a failure that was deferred.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        length = self.blockwise.norm(vector)
        if length < float("inf"):  # false for NaN too
            return length
        failure = f"the norm of the {what} is {length} in pass {self.pass_number}"
        self._failure = self._failure or failure
        if not self._defer_failures:
            self.check_finite(failed=True)
        return float("inf")

    def check_finite(self, *, failed: bool | None = None) -> None:
        """Raise the failure that was deferred.

        Args:
            failed: there was one, here or in another process.

        Raises:
            NonFiniteError: there was one.
        """
        if self._failure is not None or failed:
            failure = self._failure or "a gradient of another process is not finite"
            raise NonFiniteError(f"{failure} (weights put back, no step taken)")

    @property
    def failed(self) -> bool:
        """Whether a gradient was not finite."""
        return self._failure is not None

    def write_gradient(self, gradient: Blocks) -> None:
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

    def _pass(self, *, twice: bool) -> Passes[GradientPass]:
        self.pass_number += 1
        gradient_pass = GradientPass(
            self.pass_number, self._parameters, twice=twice, scaler=self._scaler
        )
        yield gradient_pass
        gradient_pass.check_done()
        if self.pass_number == 0:
            self.loss = gradient_pass.loss
        return gradient_pass

    def _ascent(self, vector: Blocks, what: str) -> tuple[Blocks, float]:
        """Return d and ‖d‖, or in the scaled space T²d and ‖Td‖ (Kwon et al. 2021, algorithm 1)."""
        if self._eta is None:
            return vector, self.norm(vector, what)
        ascent, theta = copy(vector), self._original or self._theta
        self.blockwise.stretch_(ascent, theta, self._eta)
        length = self.norm(ascent, what)
        self.blockwise.stretch_(ascent, theta, self._eta)
        return ascent, length

    def _add(self, direction: Blocks, weights: Weights) -> None:
        self._original = self._original or copy(self._theta)
        self.blockwise.add_(self._theta, direction, weights)
        # Autocast keeps casts of weights by identity and would serve those of the last point.
        torch.clear_autocast_cache()

    def _average_(self, vector: Blocks) -> None:
        if self._average is not None:
            self._average(vector)

    def _as_blocks(self, gradients: Iterable[Tensor | None], *, kept: bool = True) -> Blocks:
        """Return copies in the layout of the parameters, zeros where there is no gradient.

        Copies, because autograd and data-parallel buckets may keep, share or overwrite theirs;
        the gradients themselves only where they are not to be kept, and share no memory.
        Gradients are drawn one by one, so that each may be freed before the next is copied.
        """
        remaining, memory = iter(gradients), None if kept else set[int]()
        vector = [[self._as_entry(p, next(remaining), memory) for p in b] for b in self._theta]
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if scale != 1:
            self.blockwise.scale_(vector, [1 / scale] * len(vector))
        return vector

    def _as_entry(
        self, parameter: Tensor, gradient: Tensor | None, memory: set[int] | None
    ) -> Tensor:
        """Return the entry of one parameter; `memory` holds where uncopied gradients lie."""
        if gradient is None:
            return torch.zeros_like(parameter)
        if gradient.layout is torch.sparse_coo:
            # Rows may occur several times in a sparse gradient; only coalesced indices are unique.
            gradient = gradient.coalesce()
            self._rows.setdefault(id(parameter), []).append(gradient.indices())
            return torch.empty_like(parameter).copy_(gradient.to_dense())
        self._used.add(id(parameter))
        if memory is not None and _is_alike(gradient, parameter):
            address = gradient.untyped_storage().data_ptr()
            if address not in memory:  # of a sum of views, autograd leaves one gradient to both
                memory.add(address)
                return gradient
        return torch.empty_like(parameter).copy_(gradient)


def _sparse(tensor: Tensor, rows: list[Tensor]) -> Tensor:
    indices = torch.cat(rows, dim=1).unique(dim=1)  # [sparse dimensions, entries]
    values = tensor[tuple(indices)]
    return torch.sparse_coo_tensor(
        indices, values, tensor.shape, is_coalesced=True, check_invariants=False
    )


def _blocks(
    param_groups: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], Blocks]:
    """Return the group and the tensors of each block: one group, one device, one dtype."""
    groups: list[Mapping[str, Any]] = []
    theta: Blocks = []
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
