"""The two algorithms of GAM: from gradients and products at some points to one gradient."""

from flatkit.optim.blockwise import Vector, Weights
from flatkit.optim.perturb import Excursion, Walk


def accelerated_gradient(
    walk: Excursion,
    *,
    rho: Weights,
    rho_prime: Weights,
    alpha: Weights,
    beta: Weights,
    gamma: Weights,
    rho_sam: Weights | None = None,
) -> Walk[Vector]:
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
        rho_sam: if given, a fifth gradient ∇L(θ + ρ_sam·g0/(‖g0‖+ξ)) replaces g1 in h₊.

    Raises:
        NonFiniteError: a gradient that is divided by its norm is NaN or infinite.

    >>> import torch
    >>> from flatkit.optim.perturb import without_grad
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], eps=1e-12)
    >>> options = {"rho": [2.0], "rho_prime": [1.0], "alpha": [0.5], "beta": [0.5], "gamma": [1.0]}
    >>> def steps():  # g0, ..., g3 = 3, 4, 5, 6; in one dimension h₋⊥ = 0
    ...     with walk:
    ...         print((yield from accelerated_gradient(walk, **options)))
    >>> for visit in without_grad(steps()):
    ...     visit.backward(theta.square().sum() / 2)
    [[tensor([5.])]]
    """
    algebra = walk.algebra
    h_minus = yield from walk.gradient()  # g0
    walk.move(h_minus, rho_prime)
    h_plus = yield from walk.gradient()  # g1
    walk.return_home()
    change = algebra.difference(h_plus, h_minus)
    if rho_sam is not None:
        walk.norm(change, "change of the gradient")  # or the next pass would be blamed
        walk.move(h_minus, rho_sam)
        h_plus = yield from walk.gradient()  # SAM's in the place of g1
        walk.norm(h_plus, "gradient")
        walk.return_home()
    walk.move(change, rho, what="change of the gradient")
    del change
    g2 = yield from walk.gradient(kept=False)
    walk.move(g2, rho_prime)
    algebra.mix_(h_minus, g2, beta)
    del g2  # its memory is free for the last pass
    g3 = yield from walk.gradient(kept=False)
    algebra.mix_(h_plus, g3, alpha)
    algebra.project_out_(h_minus, h_plus)
    algebra.add_(h_plus, h_minus, [-weight for weight in gamma])
    return h_plus


def exact_gradient(
    walk: Excursion,
    *,
    rho: Weights,
    alpha: Weights,
    rho_sam: Weights | None = None,
    differences: bool = False,
) -> Walk[Vector]:
    """Return g + α·n, the gradient of algorithm 1, from two gradients and two products.

    1. g = ∇L(θ), f = H(θ)·g/(‖g‖+ξ), θ_adv = θ + ρ·f/(‖f‖+ξ)
    2. g_adv = ∇L(θ_adv), n = ρ·H(θ_adv)·g_adv/(‖g_adv‖+ξ)

    Args:
        walk: at θ.
        rho: ρ of each block.
        alpha: α of each block.
        rho_sam: if given, a third gradient ∇L(θ + ρ_sam·g/(‖g‖+ξ)) replaces g in the result.
        differences: take products by central differences of gradients.

    Raises:
        NonFiniteError: g, f or g_adv is NaN or infinite.

    >>> import torch
    >>> from flatkit.optim.perturb import without_grad
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> walk = Excursion([{"params": [theta]}], eps=1e-12)
    >>> def steps():
    ...     with walk:
    ...         print((yield from exact_gradient(walk, rho=[0.5], alpha=[2.0])))
    >>> for visit in without_grad(steps()):
    ...     visit.backward(theta.square().sum() / 2)
    [[tensor([4.])]]
    """
    grow = walk.gradient_and_difference if differences else walk.gradient_and_growth
    gradient, growth = yield from grow()
    walk.return_home()
    if rho_sam is not None:
        walk.move(gradient, rho_sam)
        gradient = yield from walk.gradient()
        walk.norm(gradient, "gradient")
        walk.return_home()
    walk.move(growth, rho, what="gradient of the gradient norm")
    del growth  # its memory is free for the second pass
    _, growth = yield from grow()
    weights = [a * r for a, r in zip(alpha, rho, strict=True)]
    walk.algebra.add_(gradient, growth, weights)
    return gradient
