"""Gradient norm aware minimization: seeks a small maximum of ‖∇L‖ near θ (first-order flatness)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, final, get_args

from torch.optim import Optimizer

from flatkit.checks import check_choice, check_fraction, check_non_negative
from flatkit.errors import InvalidArgumentError
from flatkit.optim.blockwise import Vector
from flatkit.optim.gam_rules import accelerated_gradient, exact_gradient
from flatkit.optim.perturb import Excursion, Walk
from flatkit.optim.settings import Keywords
from flatkit.optim.wrapper import PerturbedOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mode: TypeAlias = Literal["accelerated", "exact"]
Oracle: TypeAlias = Literal["loss", "sam"]
Engine: TypeAlias = Literal["double_backward", "central_difference"]

# Published for CIFAR-100 with ResNets (Zhang et al. 2023, appendix).
_ACCELERATED_ONLY = {"rho_prime": 0.02, "beta": 0.5, "gamma": 0.03}
_SAM_ONLY = {"rho_sam": 0.05}


@final
class GAM(PerturbedOptimizer):
    """GAM over any optimizer: seeks a small loss and a small R1_ρ = ρ·max ‖∇L(θ+δ)‖, ‖δ‖ ≤ ρ.

    `mode="exact"` (algorithm 1) steps down L + α·R1_ρ. The maximum is sought by one step up
    ‖∇L‖, so the gradient of R1_ρ is an estimate. See `exact_gradient`. Two gradients and two
    Hessian-vector products, by the `engine`:
    - `double_backward`: each product shares the forward pass of its gradient. The arithmetic of
      about six gradients, and a differentiable graph in memory. The loss must be twice
      differentiable in torch, and be returned by the closure (or given to `visit.backward`)
      without a backward pass before. Under DistributedDataParallel `model` must be given.
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
        base: the optimizer that steps; see `PerturbedOptimizer` for what is shared with it.
        mode: `accelerated` or `exact`.
        oracle: `loss` or `sam`.
        engine: exact only: `double_backward` (default) or `central_difference`.
        rho: the radius ρ ≥ 0.
        alpha: exact: the weight α ≥ 0 of R1_ρ; accelerated: the share α in [0, 1] of g1 in h₊.
        rho_prime: accelerated only: the radius ρ' ≥ 0 of the two ascent steps; 0.02 by default.
        beta: accelerated only: the share β in [0, 1] of g0 in h₋; 0.5 by default.
        gamma: accelerated only: the weight γ ≥ 0 of h₋⊥; 0.03 by default.
        rho_sam: oracle `sam` only: the radius ρ_sam ≥ 0 of SAM; 0.05 by default.
        settings: see `PerturbedOptimizer`.

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
    engine: Engine | None

    _radii: ClassVar[tuple[str, ...]] = ("rho", "rho_prime", "rho_sam")

    def __init__(
        self,
        base: Optimizer,
        *,
        mode: Mode = "accelerated",
        oracle: Oracle = "loss",
        engine: Engine | None = None,
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
            check_choice("engine", engine, get_args(Engine))
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
        `model=model` does here, and perturbs each replica with its own gradient, which
        `batch="local"` does.

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

    def _combined_gradient(self, walk: Excursion) -> Walk[Vector]:
        options = {name: self._option(name, walk) for name in self._keys}
        if self.mode == "exact":
            differences = self.engine == "central_difference"
            return exact_gradient(walk, **options, differences=differences)
        return accelerated_gradient(walk, **options)

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
