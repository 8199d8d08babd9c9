"""The claims of the theory of flatness, judged by what was measured at a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from flatkit.measures.precision import Jump

Claim: TypeAlias = Mapping[str, str]
"""`claim`, its `verdict` (`holds`, `fails` or `cannot tell`) and the `reason`."""

_LIMIT = 0.01
"""Part by which a value may differ from its limit, and curvature may be negative."""
_ON_KINK = "the checkpoint lies on a kink: there is no second derivative (`smooth` above)"
_PICTURE = 0.05
"""Part by which a search may differ from the quadratic model that describes the ball; what 16 bits
put off by more decides nothing."""
_WIDER = "float32 helps"


@dataclass(frozen=True)
class Rung:
    """One radius: what was found, what the quadratic model says, both over ρ².

    `r0` is None where rounding of the loss is more than 1 % of R0. `model0_off` and `model1_off`
    are what 16 bits may have put the model off.
    """

    rho: float
    r0: float | None
    r1: float
    model0: float
    model1: float
    model0_off: float = 0.0
    model1_off: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether both searches are where the quadratic model is."""
        # Where rounding hides R0, R1 alone is held against the model.
        zeroth = (
            self.r0 is None
            or abs(self.r0 - self.model0) <= _PICTURE * self.model0 + self.model0_off
        )
        return zeroth and abs(self.r1 - self.model1) <= _PICTURE * self.model1 + self.model1_off

    @property
    def off(self) -> float:
        """What 16 bits may have put the model off, relative to it."""
        zeroth = 0.0 if self.r0 is None else _part(self.model0_off, self.model0)
        return max(zeroth, _part(self.model1_off, self.model1))


@dataclass(frozen=True)
class Facts:
    """What the claims are judged by, beside the ladder.

    `ranked` says that the errors of `top` and `lowest` reach to the true extremes; `smooth`, that
    the examination found no kink at the checkpoint; `narrow`, what makes the numbers of 16 bits
    wrong, if they are such: `norm_error` is then that of `norm`.
    """

    top: float
    top_error: float
    ranked: bool
    lowest: float
    lowest_error: float
    norm: float
    blurred: float
    jump: "Jump"
    smooth: bool = True
    norm_error: float = 0.0
    narrow: str = ""

    @property
    def slope(self) -> float:
        """|λ|max."""
        return max(self.top, abs(self.lowest))

    @property
    def lifted(self) -> float:
        """The radius below which the gradient that is left lifts R1/ρ² by more than 1 %."""
        # There ‖∇L‖/ρ is 1 % of |λ|max, by R1/ρ² ≤ λ + ‖∇L‖/ρ on a quadratic.
        return self._lifted_by(self.norm + self.norm_error)

    @property
    def surely_lifted(self) -> float:
        """The same for the least gradient that there may be, as far as 16 bits tell it."""
        return self._lifted_by(max(0.0, self.norm - self.norm_error))

    @property
    def top_off(self) -> float:
        """What 16 bits may have put λmax off, relative to it."""
        return _part(self.top_error, self.top) if self.narrow else 0.0

    def _lifted_by(self, norm: float) -> float:
        return norm / (_LIMIT * self.slope) if self.slope > 0 else math.inf


def judge(facts: Facts, rungs: Sequence[Rung]) -> list[Claim]:
    """Return the claims with their verdicts."""
    picture = _picture(rungs)
    found = f"λmax = {facts.top:.4g}, lowest {facts.lowest:.3g}"
    claims = [
        _measured(facts, found),
        # By the largest slope that there may be, so that it fails only beyond doubt.
        _convexity(
            facts.lowest,
            facts.lowest_error,
            facts.slope + facts.top_error,
            facts.ranked,
            facts.lowest_error if facts.narrow else 0.0,
        )
        if facts.smooth
        else _unknown("no negative curvature", _ON_KINK),
        _smoothness(facts.jump, facts.smooth),
    ]
    if not rungs:
        helps = "float32" if facts.narrow else "float64"
        why = f"rounding: every radius is below ρ = {facts.blurred:.2g}; {helps} helps"
        names = ("gradient is negligible", "R0 ≤ R1", "R1/ρ² → λmax", "2 R0/ρ² → λmax")
        return claims + [_unknown(name, why) for name in (*names, "quadratic picture")]
    return [
        *claims,
        _negligible(facts, rungs, picture),
        _ordered(rungs, facts.narrow),
        *(_limit(name, facts, rungs, picture) for name in ("R1/ρ² → λmax", "2 R0/ρ² → λmax")),
        _described(rungs, picture, facts.narrow),
    ]


def _measured(facts: Facts, found: str) -> Claim:
    """Say whether there is curvature, beyond what 16 bits make of none."""
    name = "curvature was measured"
    error = max(facts.top_error, facts.lowest_error) if facts.narrow else 0.0
    if 0 < facts.slope <= error:
        return _unknown(name, f"{found}: no more than {facts.narrow} makes of none; {_WIDER}")
    return _claim(name, facts.slope > 0, found)


def _negligible(facts: Facts, rungs: Sequence[Rung], picture: Sequence[float]) -> Claim:
    """Say whether the gradient that is left matters where the quadratic picture holds."""
    name, reason = "gradient is negligible", f"{_remaining(facts)}; {_reach(picture)}"
    # Some radius of the quadratic picture must be free of the gradient.
    # In 16 bits the picture may hold at radii too small to be measured.
    end = picture[-1] if picture else rungs[-1].rho
    if facts.narrow and facts.surely_lifted <= end and not (picture and facts.lifted <= end):
        return _unknown(name, f"{reason}; {_WIDER}")
    return _claim(name, bool(picture) and facts.lifted <= picture[-1], reason)


def _described(rungs: Sequence[Rung], picture: Sequence[float], narrow: str) -> Claim:
    """Say in which balls the quadratic model describes the loss."""
    name, off = "quadratic picture", rungs[0].off
    if narrow and not picture:
        tells = f"{narrow} tells the model there to ± {off:.1%}, and nothing of smaller ones"
        return _unknown(name, f"{_reach(picture)}: {tells}; {_WIDER}")
    allowed = max((rung.off for rung in rungs if rung.rho in picture), default=off)
    more = f", {narrow} adding up to {allowed:.1%}" if narrow else ""
    return _claim(name, bool(picture), _reach(picture) + more)


def _limit(name: str, facts: Facts, rungs: Sequence[Rung], picture: Sequence[float]) -> Claim:
    """Hold the smallest radius at which the gradient does not matter against λmax."""
    # On a quadratic R1/ρ² ≤ λ + ‖∇L‖/ρ and 2 R0/ρ² ≤ λ + 2 ‖∇L‖/ρ.
    factor = 1 if name.startswith("R1") else 2
    usable = [
        (rung.rho, factor * value)
        for rung in rungs
        if rung.rho >= factor * facts.lifted
        and rung.rho in picture
        and (value := rung.r1 if factor == 1 else rung.r0) is not None
    ]
    if not facts.smooth:
        return _unknown(name, _ON_KINK)
    # R1 then follows the negative curvature, which is the larger one.
    if facts.top < facts.slope:
        return _unknown(name, "the largest |λ| belongs to a negative one")
    if facts.ranked and facts.top_off > _PICTURE:
        return _unknown(name, f"{facts.narrow} tells λmax to ± {facts.top_off:.1%} only; {_WIDER}")
    if not facts.ranked or (facts.top_error > _LIMIT * facts.slope and not facts.narrow):
        return _unknown(name, "it is not certain that no larger eigenvalue than λmax was missed")
    if not usable:
        return _unknown(name, f"{_remaining(facts)}; {_reach(picture)}")
    # The smallest, as λmax is the limit for ρ → 0.
    rho, value = usable[0]
    # What gradient is left may lift the value by as much again.
    lift = factor * (facts.norm + facts.norm_error) / (rho * facts.top)
    allowed = _LIMIT + lift + facts.top_off
    reason = f"{value / facts.top:.4f} × λmax at ρ = {rho:.3g}, allowed ± {allowed:.1%}"
    if facts.narrow:
        reason += f", of which {facts.narrow} takes {facts.top_off:.1%}"
    return _claim(name, abs(value / facts.top - 1) <= allowed, reason)


def _ordered(rungs: Sequence[Rung], narrow: str) -> Claim:
    """Compare R0 and R1 where both are more than rounding."""
    # L rises by the integral of ∇L over a way of ρ at most, hence by ρ max ‖∇L‖ = R1 at most.
    both = [rung for rung in rungs if rung.r0 is not None]
    # Beyond the rounding of both.
    wrong = [f"{rung.rho:.3g}" for rung in both if (rung.r0 or 0.0) > rung.r1 * (1 + 1e-6)]
    if not both:
        return _unknown("R0 ≤ R1", "rounding of the loss hides R0 at every radius; float64 helps")
    reason = f"the R1 search missed at ρ = {', '.join(wrong)}" if wrong else ""
    if wrong and narrow:
        return _unknown("R0 ≤ R1", f"{reason}, which {narrow} led astray; {_WIDER}")
    return _claim("R0 ≤ R1", not wrong, reason)


def _smoothness(jump: "Jump", smooth: bool) -> Claim:
    """Say whether the gradient, or its slope, jumps at the checkpoint."""
    name = "smooth at the checkpoint"
    if jump.found:
        return _claim(
            name,
            False,
            f"a kink: ∇L changes by {jump.size:.2g} within ρ = {jump.distance:.1g}, whatever the "
            "step; R1/ρ² grows without limit as ρ → 0",
        )
    if not smooth:
        return _claim(name, False, _ON_KINK)
    return _claim(name, True, f"∇L does not jump within ρ = {jump.distance:.1g}")


def _remaining(facts: Facts) -> str:
    off = f" ± {facts.norm_error:.1g}" if facts.narrow else ""
    return f"‖∇L‖ = {facts.norm:.2g}{off} lifts R1/ρ² by more than 1 % below ρ = {facts.lifted:.2g}"


def _reach(picture: Sequence[float]) -> str:
    """Say in which radii the quadratic picture holds."""
    if not picture:
        return "the quadratic model is more than 5 % off at the smallest ρ already"
    return (
        f"the quadratic picture holds within 5 % for ρ from {picture[0]:.3g} to {picture[-1]:.3g}"
    )


def _convexity(
    lowest: float, error: float, slope: float, ranked: bool = True, off: float = 0.0
) -> Claim:
    """Judge by the lowest Ritz value, above which the lowest eigenvalue cannot lie.

    In 16 bits it can, by `off`.

    Below it, it lies by at most the error, but for the risk that belongs to it. The claim is about
    more than 1 % of the largest curvature.
    """
    name = "no negative curvature"
    found = f"lowest eigenvalue at most {lowest:.3g}, error {error:.1g}"
    if lowest + off < -_LIMIT * slope:
        return _claim(name, False, found)
    if off and lowest - error < -_LIMIT * slope:
        return _unknown(name, f"{found}, which is as much as 16 bits make; {_WIDER}")
    if lowest - error < -_LIMIT * slope or not ranked:
        return _unknown(name, f"{found}: a lower one may have been missed")
    return _claim(name, True, f"{found}: none lies below −1 % of |λ|max")


def _picture(rungs: Sequence[Rung]) -> list[float]:
    """Return the radii, from the smallest on without a gap, at which the quadratic model fits."""
    fitting: list[float] = []
    for rung in rungs:
        # Beyond a radius that does not fit, another that does is chance.
        if not rung.fits or rung.off > _PICTURE:
            break
        fitting.append(rung.rho)
    return fitting


def _part(error: float, value: float) -> float:
    return error / value if value > 0 else (math.inf if error else 0.0)


def _claim(name: str, holds: bool, reason: str) -> Claim:
    return {"claim": name, "verdict": "holds" if holds else "fails", "reason": reason}


def _unknown(name: str, reason: str) -> Claim:
    return {"claim": name, "verdict": "cannot tell", "reason": reason}
