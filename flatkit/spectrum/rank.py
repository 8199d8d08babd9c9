"""Whether a found eigenvalue has its rank: what random vectors rule out beyond it.

A small residual says that some eigenvalue is near, not which one: any vector of a narrow bulk has a
small residual. What lies beyond is invisible only to a start that happens to have next to no part
along its eigenvector, and what the start saw bounds how small that part would have to be. The
chance of so unlucky a start is the risk of a rank (the bound of Kuczyński and Woźniakowski, 1992,
for what was measured instead of the worst spectrum).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaincc

RISK = 1e-3  # probability with which an eigenvalue may be overlooked
_QUARTERINGS = 7  # of an interval of sixty logarithmic units: to half a per cent
_QUARTERS = np.array([[1], [2], [3]])
_LEAST, _MOST = 1e-16, 1e10  # of the scale: where margins are looked for


class Probe(NamedTuple):
    """What a random vector saw: of A, or of A in the complement of vectors that were known.

    Attributes:
        values: Ritz values of its Krylov space; also those that were dropped at restarts.
        log_couplings: log of the product of the couplings of all its steps.
    """

    values: np.ndarray
    log_couplings: float


def log_unseen(points: np.ndarray, probe: Probe, *, size: int, rounding: float = 0.0) -> np.ndarray:
    """Return the log of a bound of the probability that a probe missed an eigenvalue at each point.

    After m steps of Lanczos from a unit vector w, the next one is χ(A) w / Π β, with the couplings
    β and the characteristic polynomial χ(x) = Π (x - θ) of the Ritz values. Its component along the
    unit eigenvector u of λ, χ(λ) ⟨u, w⟩ / Π β, is at most 1, so that |⟨u, w⟩| ≤ Π β / |χ(λ)|; and a
    random w in n dimensions has a component of at most t with a probability of at most t √(2n/π).
    A restart multiplies polynomials: the dropped Ritz values stay roots of χ.

    The bound holds at whatever step it is looked at, and without orthogonality of the basis.
    Rounding is taken to point in no particular direction.

    Args:
        points: [J].
        probe: with a random start.
        size: n.
        rounding: by which Ritz values may be off.

    >>> seen = Probe(np.array([0.0, 1.0]), math.log(0.006))
    >>> bound = log_unseen(np.array([3.0, 1.0]), seen, size=157)
    >>> bool(bound[0] < math.log(0.0101)), float(bound[1])
    (True, 0.0)
    """
    return logs_unseen(points, [probe], size=size, rounding=rounding)[0]


def logs_unseen(
    points: np.ndarray, probes: Sequence[Probe], *, size: int, rounding: float = 0.0
) -> np.ndarray:
    """Return `log_unseen` of several probes, [m, J].

    >>> seen = Probe(np.array([0.0, 1.0]), math.log(0.006))
    >>> logs_unseen(np.array([3.0, 1.0, 2.0]), [seen, seen], size=157).shape
    (2, 3)
    """
    values = [probe.values for probe in probes]
    distances = np.abs(np.concatenate(values)[:, None] - points)  # [ΣM, J]
    # A Ritz value may be off by the rounding: of its distance only what is sure counts.
    distances -= rounding
    logs = np.full(distances.shape, -math.inf)
    np.log(distances, out=logs, where=distances > 0)
    starts = list(accumulate(map(len, values[:-1]), initial=0))
    product = np.add.reduceat(logs, starts, axis=0)
    couplings = np.array([[probe.log_couplings] for probe in probes])
    # log (t √(2n/π)), t = Π β / |χ(λ)|; a probability is at most 1.
    return np.minimum(0.0, math.log(2 * size / math.pi) / 2 + couplings - product)


def chance(logs: np.ndarray) -> np.ndarray:
    """Return the probability that independent probes all missed, from the logs of their bounds.

    The product r of m numbers that are uniform in [0, 1] is at most r with the probability
    r Σ_{j<m} (−ln r)^j / j! (Fisher, 1932).

    Args:
        logs: [m, J].

    >>> chance(np.log([[0.5], [0.5]])).round(4).tolist()  # ¼ (1 + ln 4)
    [0.5966]
    """
    return gammaincc(len(logs), -logs.sum(0))


def margins(
    values: np.ndarray,
    which: str,
    probes: Sequence[Probe],
    *,
    size: int,
    rounding: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far beyond each wanted eigenvalue an unseen one may lie, but for `RISK`.

    Directly beside a found eigenvalue nothing can be ruled out; how far that goes shrinks with
    its residual, to about the residual times 800.

    Args:
        values: wanted eigenvalues [K], in the order of `which`.
        which: as of `lanczos`.
        probes: what independent random vectors saw of the whole spectrum.
        size: P.
        rounding: by which Ritz values may be off.

    Returns:
        Of each value [K]: how far beyond it one may lie; and how far on its other side one may lie
        that counts as a copy of it.

    >>> seen = Probe(np.array([0.0, 1.0, 3.0]), math.log(1e-6))
    >>> beyond, before = margins(np.array([3.0]), "largest", [seen], size=9)
    >>> bool(3e-4 < beyond[0] < 6e-4)
    True
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    beyond, before = np.zeros(len(values)), np.zeros(len(values))
    scale = max(_scale(probe) for probe in probes)
    if scale == 0:
        return beyond, before

    def reach(points: np.ndarray, sign: np.ndarray, most: np.ndarray) -> np.ndarray:
        return _reach(points, sign, most, scale, probes, size, rounding)

    for places, sign in sides(values, which):
        outward = sign * values[places]  # descending
        gaps = np.concatenate([[math.inf], outward[:-1] - outward[1:]])
        # What lies nearer to the next found value counts as a neighbour of that one.
        signs, most = np.full(len(places), sign), gaps / 2
        out = reach(values[places], signs, most)
        inner = np.concatenate([most[1:], [math.inf]])
        into = reach(values[places], -signs, inner)
        for place in range(1, len(places)):  # what is open up to the next one goes on beyond it
            if out[place] + into[place - 1] >= gaps[place] * (1 - 1e-9):
                out[place] = gaps[place] + out[place - 1]
        beyond[places], before[places] = out, into
        if which == "magnitude":  # as large a one of the other sign would also come before
            mirrored = reach(-values[places], -signs, np.full(len(places), math.inf))
            beyond[places] = np.maximum(out, mirrored)
    return beyond, before


def hidden_beyond(
    values: np.ndarray, which: str, beyond: np.ndarray, *, allowed: float
) -> np.ndarray:
    """Return how far beyond each value its rank's may lie, as those before it are not certain.

    Where a margin is wider than what is allowed, several eigenvalues may lie within it, which
    would all come before the values after it.

    Args:
        values: wanted Ritz values [K], in the order of `which`.
        which: as of `lanczos`.
        beyond: their margins [K].
        allowed: margins up to which hold one eigenvalue, or copies of it.

    >>> hidden_beyond(np.array([3.0, 1.0]), "largest", np.array([9.0, 1.0]), allowed=0.1)
    array([ 0., 11.])
    """
    hidden = np.zeros(len(values))
    ends = [(np.arange(len(values)), 0.0)] if which == "magnitude" else sides(values, which)
    for places, sign in ends:
        outward = sign * values[places] if sign else np.abs(values[places])
        tops, wide = outward + beyond[places], beyond[places] > allowed
        before = np.concatenate([[-math.inf], tops[:-1]])
        # A margin that reaches half-way to the value before goes on in the margin of that one.
        joined = np.where(wide | np.concatenate([[False], wide[:-1]]), before, -math.inf)
        most = np.maximum.accumulate(joined)
        hidden[places] = np.maximum(most - outward, 0.0)
    return hidden


def too_far(
    values: np.ndarray,
    which: str,
    probes: Sequence[Probe],
    *,
    size: int,
    rounding: float = 0.0,
    allowed: float,
) -> bool:
    """Return whether a glance tells that a margin is larger than what is allowed.

    >>> seen = Probe(np.array([0.0, 1.0, 3.0]), math.log(1e-6))
    >>> given = {"size": 9, "rounding": 0.0}
    >>> [too_far(np.array([3.0]), "largest", [seen], **given, allowed=a) for a in (1e-4, 1e-3)]
    [True, False]
    """
    for places, sign in sides(values, which):
        outward = sign * values[places]  # descending
        alone = np.concatenate([[math.inf], outward[:-1] - outward[1:]]) > 2 * allowed
        points = values[places][alone] + sign * allowed
        if (chance(logs_unseen(points, probes, size=size, rounding=rounding)) > RISK).any():
            return True
    return False


def notes(residuals: np.ndarray, beyond: np.ndarray | None) -> dict[str, Any]:
    """Return what is known of the ranks, ready for JSON.

    Args:
        residuals: [K].
        beyond: how far beyond each value another one may lie, [K]; None if none was looked for.

    >>> notes(np.array([0.1]), None)["unseen_within"]
    """
    return {
        "residual": residuals.tolist(),
        "unseen_within": None if beyond is None else beyond.tolist(),
        "unseen_risk": RISK,
    }


def sides(values: np.ndarray, which: str) -> list[tuple[np.ndarray, float]]:
    """Return the places of the values at the upper and lower end, with the sign of the end.

    >>> [(places.tolist(), sign) for places, sign in sides(np.array([3.0, -2.0]), "magnitude")]
    [([0], 1.0), ([1], -1.0)]
    """
    every = np.arange(len(values))
    upper = {
        "largest": every >= 0,
        "smallest": every < 0,
        "both": every % 2 == 0,
        "magnitude": values > 0,
    }[which]
    return [
        (side, sign) for side, sign in ((every[upper], 1.0), (every[~upper], -1.0)) if len(side)
    ]


def _reach(
    points: np.ndarray,
    signs: np.ndarray,
    most: np.ndarray,
    scale: float,
    probes: Sequence[Probe],
    size: int,
    rounding: float,
) -> np.ndarray:
    """Return how far from each point, in its direction, an eigenvalue may be unseen; at most most.

    log |χ| is concave between two roots, so that what is ruled out at a distance is ruled out up to
    as near to the next root.
    """

    def open_at(distances: np.ndarray) -> np.ndarray:
        at = (points + signs * distances).reshape(-1)
        logs = logs_unseen(at, probes, size=size, rounding=rounding)
        return (chance(logs) > RISK).reshape(distances.shape)

    low = np.full(len(points), math.log(_LEAST * scale))
    high = np.minimum(math.log(_MOST * scale), np.log(np.maximum(most, 1e-300)))
    shut = ~open_at(np.exp(low)) & (low < high)
    wide = open_at(np.exp(high))
    for _ in range(_QUARTERINGS):  # three points at once cost little more than one
        # Of the four quarters the one in which `open` turns into `ruled out`, if that happens once.
        quarter = (high - low) / 4
        still = open_at(np.exp(low + _QUARTERS * quarter))
        low = low + np.where(still[1], 2 + still[2], still[0]) * quarter
        high = low + quarter
    return np.where(shut, 0.0, np.where(wide, most, np.exp(high)))


def _scale(probe: Probe) -> float:
    """Return the largest of the Ritz values and of the mean coupling."""
    coupling = math.exp(probe.log_couplings / len(probe.values))
    return max(float(np.abs(probe.values).max()), coupling if coupling > 1e-290 else 0.0)
