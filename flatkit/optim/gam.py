"""Gradient norm aware minimization: seeks a small maximum of ‖∇L‖ near θ (first-order flatness)."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, final, get_args

from torch.optim import Optimizer

from flatkit.checks import check_choice, check_fraction, check_non_negative
from flatkit.errors import InvalidArgumentError
from flatkit.optim import vectors
from flatkit.optim.excursion import Excursion
from flatkit.optim.perturbation import PerturbedOptimizer
from flatkit.optim.vectors import Vector, Weights

Mode: TypeAlias = Literal["accelerated", "exact"]

# Published for CIFAR-100 with ResNets (Zhang et al. 2023, appendix).
_ACCELERATED_ONLY = {"rho_prime": 0.02, "beta": 0.5, "gamma": 0.03}


@final
class GAM(PerturbedOptimizer):
    """GAM over any optimizer: seeks a small loss and a small R1_ρ = ρ·max ‖∇L(θ+δ)‖, ‖δ‖ ≤ ρ.

    `mode="exact"` (algorithm 1) steps down L + α·R1_ρ. The maximum is sought by one step up
    ‖∇L‖, so the gradient of R1_ρ is an estimate. See `exact_gradient`. Cost: the closure runs
    twice a step; each pass takes one gradient and one Hessian-vector product by double backward,
    so a step costs the arithmetic of about six gradients and holds a differentiable graph. The
    closure must not call `backward()`, gradients do not pass through `.grad`, and hence are NOT
    averaged by DistributedDataParallel.

    `mode="accelerated"` (algorithm 2) replaces the products by differences of gradients. See
    `accelerated_gradient`. Cost: four gradients a step, and memory for three vectors beyond the
    base and `.grad`. Under DistributedDataParallel each gradient is averaged, so the perturbation
    is that of the global batch.

    In every formula the options are those of the param group concerned, while norms and the
    projection are over all parameters together.

    Source: Zhang et al., Gradient Norm Aware Minimization, CVPR 2023, algorithms 1 and 2.

    Args:
        base: the optimizer that steps; see `PerturbedOptimizer` for what is shared with it.
        mode: `accelerated` or `exact`.
        rho: the radius ρ ≥ 0.
        alpha: exact: the weight α ≥ 0 of R1_ρ; accelerated: the share α in [0, 1] of g1 in h₊.
        rho_prime: accelerated only: the radius ρ' ≥ 0 of the two ascent steps; 0.02 by default.
        beta: accelerated only: the share β in [0, 1] of g0 in h₋; 0.5 by default.
        gamma: accelerated only: the weight γ ≥ 0 of h₋⊥; 0.03 by default.
        eps: ξ, against a division by zero.

    Attributes:
        mode: as above.

    Raises:
        InvalidArgumentError: an argument is not allowed, or does not belong to the mode.

    >>> import torch
    >>> theta = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = GAM(torch.optim.SGD([theta], lr=0.1), mode="exact", rho=0.5, alpha=1.0)
    >>> optimizer.step(lambda: theta.square().sum() / 2)  # H = 1, so R1 grows by ρ·1 = 0.5
    tensor(4.5000)
    >>> theta.item(), theta.grad  # 3 + α·0.5
    (2.6500..., tensor([3.5000]))
    """

    mode: Mode

    def __init__(
        self,
        base: Optimizer,
        *,
        mode: Mode = "accelerated",
        rho: float = 0.2,
        rho_prime: float | None = None,
        alpha: float = 0.6,
        beta: float | None = None,
        gamma: float | None = None,
        eps: float = 1e-12,
    ) -> None:
        check_choice("mode", mode, get_args(Mode))
        self.mode = mode
        given = {"rho_prime": rho_prime, "beta": beta, "gamma": gamma}
        options = {"rho": rho, "alpha": alpha} | _options_of_mode(mode, given)
        super().__init__(base, options=options, eps=eps)

    @classmethod
    def from_released_code(
        cls,
        base: Optimizer,
        rho: float,
        rho_prime: float,
        beta: float,
        alpha: float,
        gamma: float,
        eps: float = 1e-12,
    ) -> "GAM":
        """Return accelerated GAM that steps as the authors' released code does with its settings.

        That code forms h₋ = g0 + |1−β|·g2, without the factor β on g0 of algorithm 2. For β ≤ 1
        this is (2−β) times the h₋ of algorithm 2 with β' = 1/(2−β), and the projection is linear,
        so γ' = γ·(2−β).

        Raises:
            InvalidArgumentError: an argument is not allowed; β must lie in [0, 1].

        >>> import torch
        >>> base = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> released = {"rho": 0.2, "rho_prime": 0.04, "alpha": 0.5, "beta": 0.0, "gamma": 0.05}
        >>> group = GAM.from_released_code(base, **released).param_groups[0]
        >>> group["beta"], group["gamma"]
        (0.5, 0.1)
        """
        check_fraction("beta", beta)
        check_non_negative("gamma", gamma)
        return cls(
            base,
            rho=rho,
            rho_prime=rho_prime,
            alpha=alpha,
            beta=1 / (2 - beta),
            gamma=gamma * (2 - beta),
            eps=eps,
        )

    @property
    def passes(self) -> int:
        """Calls of the closure a step: 4 accelerated; 2 exact, each with a product beside it."""
        return 4 if self.mode == "accelerated" else 2

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"mode": self.mode}

    def _combined_gradient(self, walk: Excursion) -> Vector:
        options = {name: self._option(name, walk) for name in self._keys}
        if self.mode == "exact":
            return exact_gradient(walk, **options)
        return accelerated_gradient(walk, **options)

    def _check_option(self, name: str, value: float) -> None:
        share = name == "beta" or (name == "alpha" and self.mode == "accelerated")
        (check_fraction if share else check_non_negative)(name, value)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        if self.mode == "exact":
            own = {name: group.get(name) for name in _ACCELERATED_ONLY if name not in self.defaults}
            _refuse_given("exact", own)


def accelerated_gradient(
    walk: Excursion,
    *,
    rho: Weights,
    rho_prime: Weights,
    alpha: Weights,
    beta: Weights,
    gamma: Weights,
) -> Vector:
    """Return h₊ − γ·h₋⊥, the gradient of algorithm 2, from four gradients.

    1. g0 = ∇L(θ),   θ1 = θ + ρ'·g0/(‖g0‖+ξ)
    2. g1 = ∇L(θ1),  θ2 = θ + ρ·h/(‖h‖+ξ),  h = g1 − g0
    3. g2 = ∇L(θ2),  θ3 = θ2 + ρ'·g2/(‖g2‖+ξ)
    4. g3 = ∇L(θ3)

    h₊ = α·g1 + (1−α)·g3, h₋ = β·g0 + (1−β)·g2, and h₋⊥ is the part of h₋ orthogonal to h₊.

    Args:
        walk: at θ.
        rho: ρ of each block.
        rho_prime: ρ' of each block.
        alpha: α of each block.
        beta: β of each block.
        gamma: γ of each block.

    Raises:
        NonFiniteError: a gradient that is divided by its norm is NaN or infinite.

    >>> import torch
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], lambda: theta.square().sum() / 2, eps=1e-12)
    >>> with torch.no_grad(), walk:  # g0, ..., g3 = 3, 4, 5, 6; in one dimension h₋⊥ = 0
    ...     accelerated_gradient(
    ...         walk, rho=[2.0], rho_prime=[1.0], alpha=[0.5], beta=[0.5], gamma=[1.0]
    ...     )
    [[tensor([5.])]]
    """
    h_minus = walk.gradient()  # g0
    walk.move(h_minus, rho_prime)
    h_plus = walk.gradient()  # g1
    walk.return_home()
    walk.move(vectors.difference(h_plus, h_minus), rho, what="change of the gradient")
    g2 = walk.gradient()
    walk.move(g2, rho_prime)
    vectors.mix_(h_minus, g2, beta)
    del g2  # its memory is free for the last pass
    vectors.mix_(h_plus, walk.gradient(), alpha)
    vectors.project_out_(h_minus, h_plus)
    vectors.add_(h_plus, h_minus, [-weight for weight in gamma])
    return h_plus


def exact_gradient(walk: Excursion, *, rho: Weights, alpha: Weights) -> Vector:
    """Return g + α·n, the gradient of algorithm 1, from two gradients and two products.

    1. g = ∇L(θ), f = H(θ)·g/(‖g‖+ξ), θ_adv = θ + ρ·f/(‖f‖+ξ)
    2. g_adv = ∇L(θ_adv), n = ρ·H(θ_adv)·g_adv/(‖g_adv‖+ξ)

    Args:
        walk: at θ.
        rho: ρ of each block.
        alpha: α of each block.

    Raises:
        NonFiniteError: g, f or g_adv is NaN or infinite.

    >>> import torch
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], lambda: theta.square().sum() / 2, eps=1e-12)
    >>> with torch.no_grad(), walk:
    ...     exact_gradient(walk, rho=[0.5], alpha=[2.0])
    [[tensor([4.])]]
    """
    gradient, growth = walk.gradient_and_growth()
    walk.move(growth, rho, what="gradient of the gradient norm")
    del growth  # its memory is free for the second pass
    _, growth = walk.gradient_and_growth()
    vectors.add_(gradient, growth, [a * r for a, r in zip(alpha, rho, strict=True)])
    return gradient


def _options_of_mode(mode: Mode, given: Mapping[str, float | None]) -> dict[str, float]:
    if mode == "exact":
        _refuse_given(mode, given)
        return {}
    return {
        name: default if (value := given[name]) is None else value
        for name, default in _ACCELERATED_ONLY.items()
    }


def _refuse_given(mode: Mode, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidArgumentError(
                f'{name} does not apply to mode="{mode}", got {value!r}; leave it out, or use '
                'mode="accelerated"'
            )
