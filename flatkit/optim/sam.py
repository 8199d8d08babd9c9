"""Sharpness-aware minimization: the gradient at the worst neighbour, the step from here."""

from typing import final

from torch.optim import Optimizer

from flatkit.checks import check_non_negative
from flatkit.optim.excursion import Excursion
from flatkit.optim.perturbation import PerturbedOptimizer
from flatkit.optim.vectors import Vector, Weights


@final
class SAM(PerturbedOptimizer):
    """SAM over any optimizer: seeks a small maximum of L in the ball ‖δ‖ ≤ ρ.

    With g = ∇L(θ), the base steps from θ with the gradient ∇L(θ + ρ·g/(‖g‖+ξ)). That point is the
    maximum of the linear model of L in the ball; it is NOT the maximum of L itself. ρ = 0 is the
    base alone, at twice its price.

    Cost: two gradients a step, and memory for one vector beyond the base and `.grad`.

    Source: Foret et al., Sharpness-Aware Minimization, 2021, algorithm 1 with p = 2.

    Args:
        base: the optimizer that steps; see `PerturbedOptimizer` for what is shared with it.
        rho: the radius ρ ≥ 0; a param group may have its own.
        eps: ξ, against a division by zero.

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

    def __init__(self, base: Optimizer, *, rho: float = 0.05, eps: float = 1e-12) -> None:
        super().__init__(base, options={"rho": rho}, eps=eps)

    @property
    def passes(self) -> int:
        """Gradients a step: 2."""
        return 2

    def _combined_gradient(self, walk: Excursion) -> Vector:
        return sam_gradient(walk, rho=self._option("rho", walk))

    def _check_option(self, name: str, value: float) -> None:
        check_non_negative(name, value)


def sam_gradient(walk: Excursion, *, rho: Weights) -> Vector:
    """Return ∇L(θ + ρ·g/(‖g‖+ξ)), g = ∇L(θ).

    Args:
        walk: at θ.
        rho: the radius of each block.

    Raises:
        NonFiniteError: ‖g‖ is NaN or infinite.

    >>> import torch
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], lambda: theta.square().sum() / 2, eps=1e-12)
    >>> with torch.no_grad(), walk:
    ...     sam_gradient(walk, rho=[1.0])
    [[tensor([4.])]]
    """
    walk.move(walk.gradient(), rho)
    return walk.gradient()
