"""Sharpness-aware minimization: the gradient at the worst neighbour, the step from here."""

from typing import TYPE_CHECKING, final

from torch.optim import Optimizer

from flatkit.checks import check_fraction, check_non_negative
from flatkit.errors import InvalidArgumentError
from flatkit.optim.autograd import Passes
from flatkit.optim.blockwise import Blocks, Weights
from flatkit.optim.perturb import PerturbedPoint
from flatkit.optim.settings import Keywords
from flatkit.optim.wrapper import PerturbedOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


def sam_gradient(point: PerturbedPoint, *, rho: Weights) -> Passes[Blocks]:
    """Return ∇L(θ + ρ·g/(‖g‖+ξ)), g = ∇L(θ) (Foret et al. 2021, algorithm 1 with p = 2).

    Args:
        point: at θ.
        rho: the radius of each block.

    Raises:
        NonFiniteError: ‖g‖ is NaN or infinite.
    """
    point.ascend((yield from point.gradient(kept=False)), rho)
    return (yield from point.gradient(kept=False))


def gsam_gradient(point: PerturbedPoint, *, rho: Weights, alpha: Weights) -> Passes[Blocks]:
    """Return g₊ − α·g⊥ with g = ∇L(θ), g₊ = ∇L(θ + ρ·g/(‖g‖+ξ)), g⊥ ⟂ g₊.

    Source: Zhuang et al. 2022, algorithm 1.

    Args:
        point: at θ.
        rho: ρ of each block.
        alpha: α of each block.

    Raises:
        NonFiniteError: ‖g‖ is NaN or infinite.
    """
    # Kept: it is needed after the second pass, whose buckets may overwrite what autograd left.
    gradient = yield from point.gradient()
    point.ascend(gradient, rho)
    perturbed = yield from point.gradient(kept=False)  # g₊
    point.blockwise.project_out_(gradient, perturbed)  # g becomes g⊥
    point.blockwise.add_(perturbed, gradient, [-weight for weight in alpha])
    return perturbed


class SAM(PerturbedOptimizer):
    """SAM over any optimizer: seeks a small maximum of L in the ball ‖δ‖ ≤ ρ.

    With g = ∇L(θ), the base steps from θ with the gradient ∇L(θ + ρ·g/(‖g‖+ξ)). That point is the
    maximum of the linear model of L in the ball; it is NOT the maximum of L itself. ρ = 0 is the
    base alone, at twice its price.

    Cost: two gradients a step, and memory for one vector beyond the base and `.grad`.

    Source: Foret et al., Sharpness-Aware Minimization, 2021, algorithm 1 with p = 2.

    Args:
        base: the optimizer that steps, already built over the parameters.
        rho: the radius ρ ≥ 0; a param group may have its own.
        settings: further arguments of `PerturbedOptimizer`.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> import torch
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = SAM(torch.optim.SGD([theta], lr=0.1), rho=1.0)
    >>> optimizer.step(lambda: theta.square().sum() / 2)  # L = θ²/2, so the gradient is 3 + 1
    tensor(4.5000)
    >>> theta.item()
    2.5999...
    """

    def __init__(
        self, base: Optimizer, *, rho: float = 0.05, **settings: "Unpack[Keywords]"
    ) -> None:
        super().__init__(base, options={"rho": rho}, **settings)

    @property
    def passes(self) -> int:
        """Gradients a perturbed step: 2."""
        return 2

    def _combined_gradient(self, point: PerturbedPoint) -> Passes[Blocks]:
        return sam_gradient(point, rho=self._option("rho", point))

    def _check_option(self, name: str, value: float) -> None:
        check_non_negative(name, value)


@final
class ASAM(SAM):
    """Adaptive SAM over any optimizer: SAM in the ball ‖T⁻¹δ‖ ≤ ρ with T = |θ| + η.

    With g = ∇L(θ), the base steps from θ with the gradient ∇L(θ + ρ·T²g/(‖Tg‖+ξ)); scaling one
    layer up and the next one down, which leaves a ReLU network the same function, moves neither
    the ball nor (η aside) the loss in it. The same as `SAM(..., adaptive=True)`.

    Cost: two gradients a step, and memory for one vector beyond the base and `.grad`, for a moment
    for three.

    Source: Kwon et al., ASAM, 2021, algorithm 1 with p = 2, element-wise; T is |θ| + η for all
    parameters here, for biases too.

    Args:
        base: the optimizer that steps, already built over the parameters.
        rho: the radius ρ ≥ 0; about ten times SAM's is usual.
        settings: further arguments of `PerturbedOptimizer`; `adaptive` is True.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> import torch
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = ASAM(torch.optim.SGD([theta], lr=0.1), rho=0.5, eta=1e-6)
    >>> optimizer.step(lambda: theta.square().sum() / 2)  # T = 3: the gradient at 3 + 0.5·3
    tensor(4.5000)
    >>> theta.grad
    tensor([4.5000])
    """

    def __init__(
        self, base: Optimizer, *, rho: float = 0.5, **settings: "Unpack[Keywords]"
    ) -> None:
        if not settings.setdefault("adaptive", True):
            raise InvalidArgumentError("adaptive must be True for ASAM, got False; use SAM")
        super().__init__(base, rho=rho, **settings)


@final
class GSAM(PerturbedOptimizer):
    """Surrogate gap guided SAM over any optimizer: a small maximum of L and a small gap to it.

    With g = ∇L(θ) and g₊ = ∇L(θ + ρ·g/(‖g‖+ξ)), the base steps from θ with g₊ − α·g⊥, where g⊥ is
    the part of g that is orthogonal to g₊: up along it the gap L(θ + ...) − L(θ) shrinks while the
    perturbed loss stays, to first order. α = 0 is SAM.

    Cost: two gradients a step, and memory for two vectors beyond the base and `.grad`.

    Source: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, 2022,
    algorithm 1; its schedule of ρ in proportion to the learning rate is `ProportionalRho`.

    Args:
        base: the optimizer that steps, already built over the parameters.
        rho: the radius ρ ≥ 0; a param group may have its own.
        alpha: the weight α in [0, 1] of g⊥.
        settings: further arguments of `PerturbedOptimizer`.

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> import torch
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = GSAM(torch.optim.SGD([theta], lr=0.1), rho=1.0)
    >>> optimizer.step(lambda: theta.square().sum() / 2)  # in one dimension g⊥ = 0
    tensor(4.5000)
    >>> theta.grad
    tensor([4.])
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float = 0.05,
        alpha: float = 0.4,
        **settings: "Unpack[Keywords]",
    ) -> None:
        super().__init__(base, options={"rho": rho, "alpha": alpha}, **settings)

    @property
    def passes(self) -> int:
        """Gradients a perturbed step: 2."""
        return 2

    def _combined_gradient(self, point: PerturbedPoint) -> Passes[Blocks]:
        options = {name: self._option(name, point) for name in ("rho", "alpha")}
        return gsam_gradient(point, **options)

    def _check_option(self, name: str, value: float) -> None:
        (check_fraction if name == "alpha" else check_non_negative)(name, value)
