"""Gradient norm aware minimization: seeks a small maximum of ‖∇L‖ near θ (first-order flatness)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, final, get_args

from torch.optim import Optimizer

from flatkit.checks import check_choice, check_fraction, check_non_negative
from flatkit.errors import InvalidArgumentError
from flatkit.optim.autograd import Passes
from flatkit.optim.blockwise import Blocks, Weights
from flatkit.optim.perturb import PerturbedPoint
from flatkit.optim.settings import Keywords
from flatkit.optim.wrapper import PerturbedOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mode: TypeAlias = Literal["accelerated", "exact"]
Oracle: TypeAlias = Literal["loss", "sam"]
ProductEngine: TypeAlias = Literal["double_backward", "central_difference"]

# These and the defaults of rho and alpha: published for CIFAR-100 with ResNets (Zhang et al. 2023,
# appendix).
_ACCELERATED_ONLY = {"rho_prime": 0.02, "beta": 0.5, "gamma": 0.03}
_SAM_ONLY = {"rho_sam": 0.05}  # SAM's own default


def accelerated_gradient(
    point: PerturbedPoint,
    *,
    rho: Weights,
    rho_prime: Weights,
    alpha: Weights,
    beta: Weights,
    gamma: Weights,
    rho_sam: Weights | None = None,
) -> Passes[Blocks]:
    """Return h₊ − γ·h₋⊥, from four gradients (Zhang et al. 2023, algorithm 2).

    1. g0 = ∇L(θ),   θ1 = θ + ρ'·g0/(‖g0‖+ξ)
    2. g1 = ∇L(θ1),  θ2 = θ + ρ·h/(‖h‖+ξ),  h = g1 − g0
    3. g2 = ∇L(θ2),  θ3 = θ2 + ρ'·g2/(‖g2‖+ξ)
    4. g3 = ∇L(θ3)

    h₊ = α·g1 + (1−α)·g3, h₋ = β·g0 + (1−β)·g2, and h₋⊥ is the part of h₋ orthogonal to h₊.

    Args:
        point: at θ.
        rho: ρ of each block.
        rho_prime: ρ' of each block.
        alpha: α of each block.
        beta: β of each block.
        gamma: γ of each block.
        rho_sam: if given, a fifth gradient ∇L(θ + ρ_sam·g0/(‖g0‖+ξ)) replaces g1 in h₊.

    Raises:
        NonFiniteError: a gradient that is divided by its norm is NaN or infinite.

    >>> import torch
    >>> from flatkit.optim.autograd import without_grad
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> point = PerturbedPoint([{"params": [theta]}], eps=1e-12)
    >>> options = {"rho": [2.0], "rho_prime": [1.0], "alpha": [0.5], "beta": [0.5], "gamma": [1.0]}
    >>> def passes():  # g0, ..., g3 = 3, 4, 5, 6; in one dimension h₋⊥ = 0
    ...     with point:
    ...         print((yield from accelerated_gradient(point, **options)))
    >>> for gradient_pass in without_grad(passes()):
    ...     gradient_pass.backward(theta.square().sum() / 2)
    [[tensor([5.])]]
    """
    blockwise = point.blockwise
    h_minus = yield from point.gradient()  # g0
    point.ascend(h_minus, rho_prime)
    h_plus = yield from point.gradient()  # g1
    # θ2 starts from θ, not from θ1.
    point.restore()
    change = blockwise.difference(h_plus, h_minus)  # ≈ ρ'·H·g0/‖g0‖, the direction up ‖∇L‖
    if rho_sam is not None:
        point.norm(change, "change of the gradient")  # or the next pass would be blamed
        point.ascend(h_minus, rho_sam)
        h_plus = yield from point.gradient()  # SAM's in the place of g1
        point.norm(h_plus, "gradient")
        point.restore()
    point.ascend(change, rho, what="change of the gradient")
    del change
    g2 = yield from point.gradient(kept=False)
    # From θ2, where the parameters still are: no restore, and θ3 is as far from θ as both steps go.
    point.ascend(g2, rho_prime)
    # In place, as soon as their parts are known: h₋ needs g0 and g2, h₊ below g1 and g3.
    blockwise.mix_(h_minus, g2, beta)
    del g2  # its memory is free for the last pass
    g3 = yield from point.gradient(kept=False)
    blockwise.mix_(h_plus, g3, alpha)
    blockwise.project_out_(h_minus, h_plus)
    blockwise.add_(h_plus, h_minus, [-weight for weight in gamma])
    return h_plus


def exact_gradient(
    point: PerturbedPoint,
    *,
    rho: Weights,
    alpha: Weights,
    rho_sam: Weights | None = None,
    differences: bool = False,
) -> Passes[Blocks]:
    """Return g + α·n, from two gradients and two products (Zhang et al. 2023, algorithm 1).

    1. g = ∇L(θ), f = H(θ)·g/(‖g‖+ξ), θ_adv = θ + ρ·f/(‖f‖+ξ)
    2. g_adv = ∇L(θ_adv), n = ρ·H(θ_adv)·g_adv/(‖g_adv‖+ξ)

    Args:
        point: at θ.
        rho: ρ of each block.
        alpha: α of each block.
        rho_sam: if given, a third gradient ∇L(θ + ρ_sam·g/(‖g‖+ξ)) replaces g in the result.
        differences: take products by central differences of gradients.

    Raises:
        NonFiniteError: g, f or g_adv is NaN or infinite.

    >>> import torch
    >>> from flatkit.optim.autograd import without_grad
    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> point = PerturbedPoint([{"params": [theta]}], eps=1e-12)
    >>> def passes():
    ...     with point:
    ...         print((yield from exact_gradient(point, rho=[0.5], alpha=[2.0])))
    >>> for gradient_pass in without_grad(passes()):
    ...     gradient_pass.backward(theta.square().sum() / 2)
    [[tensor([4.])]]
    """
    differentiate = point.gradient_and_norm_gradient
    if differences:
        differentiate = point.gradient_and_norm_gradient_by_differences
    gradient, norm_gradient = yield from differentiate()
    point.restore()
    if rho_sam is not None:
        point.ascend(gradient, rho_sam)
        gradient = yield from point.gradient()
        point.norm(gradient, "gradient")
        point.restore()
    point.ascend(norm_gradient, rho, what="gradient of the gradient norm")
    del norm_gradient  # its memory is free for the second pass
    _, norm_gradient = yield from differentiate()
    # n = ρ·(gradient of the norm), and α·n is added: each block with its own α and ρ.
    weights = [a * r for a, r in zip(alpha, rho, strict=True)]
    point.blockwise.add_(gradient, norm_gradient, weights)
    return gradient


@final
class GAM(PerturbedOptimizer):
    """GAM over any optimizer: seeks a small loss and a small R1_ρ = ρ·max ‖∇L(θ+δ)‖, ‖δ‖ ≤ ρ.

    `mode="exact"` (algorithm 1) steps down L + α·R1_ρ. The maximum is sought by one step up
    ‖∇L‖, so the gradient of R1_ρ is an estimate. See `exact_gradient`. Two gradients and two
    Hessian-vector products, by the `engine`:
    - `double_backward`: each product shares the forward pass of its gradient. The arithmetic of
      about six gradients, and a differentiable graph in memory. The loss must be twice
      differentiable in torch. The closure must return it, or the loop give it to
      `gradient_pass.backward`, without a backward pass before. Under DistributedDataParallel
      `model` must be given.
    - `central_difference`: six gradients. For smooth losses that torch cannot differentiate twice
      (fused attention, compiled models), for closures that call `backward()`, and for batches in
      parts. A product is off by 1e-4 to 2e-3 of its length in float32 with GELU or SiLU; with
      ReLU, whose kinks lie within the step, by as much as its length; under autocast to 16 bits
      it is noise.

    `mode="accelerated"` (algorithm 2) replaces the products by differences of gradients. See
    `accelerated_gradient`. Cost: four gradients a step, and memory for three vectors beyond the
    base and `.grad`.

    `oracle="sam"` puts SAM's loss in the place of L: the gradient ∇L(θ + ρ_sam·g/‖g‖) replaces g
    in g + α·n of the exact mode. In h₊ of the accelerated mode it replaces g1, which is SAM's
    gradient for ρ_sam = ρ'. Cost: one more gradient.

    In every formula the options are those of the param group concerned, while norms and the
    projection are over all parameters together.

    Source: Zhang et al., Gradient Norm Aware Minimization, CVPR 2023, algorithms 1 and 2.

    Args:
        base: the optimizer that steps, already built over the parameters.
        mode: `accelerated` or `exact`.
        oracle: `loss` or `sam`.
        engine: exact only: `double_backward` (default) or `central_difference`.
        rho: the radius ρ ≥ 0.
        alpha: exact: the weight α ≥ 0 of R1_ρ; accelerated: the share α in [0, 1] of g1 in h₊.
        rho_prime: accelerated only: the radius ρ' ≥ 0 of the two ascent steps; 0.02 by default.
        beta: accelerated only: the share β in [0, 1] of g0 in h₋; 0.5 by default.
        gamma: accelerated only: the weight γ ≥ 0 of h₋⊥; 0.03 by default.
        rho_sam: oracle `sam` only: the radius ρ_sam ≥ 0 of SAM; 0.05 by default.
        settings: further arguments of `PerturbedOptimizer`.

    Attributes:
        mode: as above.
        oracle: as above.
        engine: as above; None in the accelerated mode.

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
    oracle: Oracle
    engine: ProductEngine | None

    _radii: ClassVar[tuple[str, ...]] = ("rho", "rho_prime", "rho_sam")

    def __init__(
        self,
        base: Optimizer,
        *,
        mode: Mode = "accelerated",
        oracle: Oracle = "loss",
        engine: ProductEngine | None = None,
        rho: float = 0.2,
        rho_prime: float | None = None,
        alpha: float = 0.6,
        beta: float | None = None,
        gamma: float | None = None,
        rho_sam: float | None = None,
        **settings: "Unpack[Keywords]",
    ) -> None:
        check_choice("mode", mode, get_args(Mode))
        check_choice("oracle", oracle, get_args(Oracle))
        if engine is not None:
            check_choice("engine", engine, get_args(ProductEngine))
            if mode == "accelerated":
                _refuse({"engine": engine}, 'mode="accelerated"', 'mode="exact"')
        self.mode, self.oracle = mode, oracle
        self.engine = (engine or "double_backward") if mode == "exact" else None
        given = {"rho_prime": rho_prime, "beta": beta, "gamma": gamma, "rho_sam": rho_sam}
        options = {"rho": rho, "alpha": alpha} | self._special_options(given)
        super().__init__(base, options=options, **settings)

    @classmethod
    def from_released_code(
        cls,
        base: Optimizer,
        rho: float,
        rho_prime: float,
        beta: float,
        alpha: float,
        gamma: float,
        **settings: "Unpack[Keywords]",
    ) -> "GAM":
        """Return accelerated GAM that steps as the authors' released code does with its settings.

        That code forms h₋ = g0 + |1−β|·g2, without the factor β on g0 of algorithm 2. For β ≤ 1
        this is (2−β) times the h₋ of algorithm 2 with β' = 1/(2−β), and the projection is linear,
        so γ' = γ·(2−β). It also updates the statistics of BatchNorm in the first pass only, which
        `model=model` does here. Under data parallelism it perturbs each process with its own
        gradient, which `batch="local"` does.

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
            beta=1 / (2 - beta),  # of (2 − β) h₋: g0 gets 1/(2 − β)
            gamma=gamma * (2 - beta),
            **settings,
        )

    @property
    def passes(self) -> int:
        """Passes a perturbed step: 4 accelerated; 2 exact, each with a product beside it.

        Exact by central differences 6. One more with `oracle="sam"`.
        """
        passes = {None: 4, "double_backward": 2, "central_difference": 6}[self.engine]
        return passes + (self.oracle == "sam")

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            name: getattr(self, name) for name in ("mode", "oracle", "engine")
        }

    def _combined_gradient(self, point: PerturbedPoint) -> Passes[Blocks]:
        options = {name: self._option(name, point) for name in self._keys}
        if self.mode == "exact":
            differences = self.engine == "central_difference"
            return exact_gradient(point, **options, differences=differences)
        return accelerated_gradient(point, **options)

    @property
    def _differentiates_twice(self) -> bool:
        return self.engine == "double_backward"

    def _check_option(self, name: str, value: float) -> None:
        share = name == "beta" or (name == "alpha" and self.mode == "accelerated")
        (check_fraction if share else check_non_negative)(name, value)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        special = [*_ACCELERATED_ONLY, *_SAM_ONLY]
        # An option of the same name that the base has is its own.
        self._special_options({n: group.get(n) for n in special if n not in self.defaults})

    def _special_options(self, given: Mapping[str, Any]) -> dict[str, float]:
        """Return the options of this mode and oracle, as given or the defaults."""
        known: dict[str, float] = {}
        for applies, defaults, chosen, fix in (
            (self.mode == "accelerated", _ACCELERATED_ONLY, 'mode="exact"', 'mode="accelerated"'),
            (self.oracle == "sam", _SAM_ONLY, 'oracle="loss"', 'oracle="sam"'),
        ):
            if applies:
                known |= defaults
            else:
                _refuse({name: given.get(name) for name in defaults}, chosen, fix)
        return {
            name: default if (value := given.get(name)) is None else value
            for name, default in known.items()
        }


def _refuse(given: Mapping[str, Any], chosen: str, fix: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidArgumentError(
                f"{name} does not apply to {chosen}, got {value!r}; leave it out, or use {fix}"
            )
