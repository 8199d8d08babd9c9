"""Whether copies of a multiple eigenvalue are missing: what random vectors rule out.

From one start, a Krylov space holds one vector of each eigenspace: an eigenvalue of multiplicity
m is seen once, and those after it take places that are not theirs. The other vectors of the
eigenspace are eigenvectors in the complement of what was found, where Lanczos from a random vector
sees them.
"""

import math
from collections.abc import Sequence

import numpy as np

from flatkit.spectrum.krylov import Probe

RISK = 1e-3  # probability with which a missing copy may be overlooked


def displacements(
    values: np.ndarray,
    which: str,
    probes: Sequence[Probe],
    *,
    size: int,
    rounding: float = 0.0,
) -> np.ndarray:
    """Return by how much missing copies may displace each of the wanted eigenvalues.

    A found eigenvalue that the probes rule out to be multiple, but for `RISK`, displaces nothing.
    Another one may have more copies, which would push all after it by one place or more.

    Args:
        values: wanted eigenvalues [K], in the order of `which`.
        which: as of `lanczos`.
        probes: what was seen of the complement, each by itself.
        size: P.
        rounding: by which Ritz values may be off.

    >>> values = np.array([3.0, 1.0])
    >>> displacements(values, "largest", [], size=9).tolist()
    [0.0, 2.0]
    >>> seen = Probe(values=np.array([0.0, 1.0]), log_couplings=-12.0)
    >>> displacements(values, "largest", [seen], size=9).tolist()
    [0.0, 0.0]
    """
    found = np.zeros(len(values))
    for places, sign in _sides(values, which):
        risks = [
            math.prod(unseen(sign * value, sign, probe, size, rounding) for probe in probes)
            for value in values[places]
        ]
        doubtful = np.array(risks) > RISK
        if doubtful.any():
            first = places[int(np.argmax(doubtful))]
            after = np.arange(len(values)) if which == "magnitude" else places
            after = after[after > first]
            found[after] = np.maximum(found[after], np.abs(values[first] - values[after]))
    return found


def saw_copy(
    values: np.ndarray, which: str, probes: Sequence[Probe], *, rounding: float = 0.0
) -> bool:
    """Return whether a probe saw a copy of something before the last wanted eigenvalue.

    >>> saw_copy(np.array([3.0, 3.0, 1.0]), "largest", [Probe(np.array([0.0, 3.0]), 0.0)])
    True
    """
    return any(
        bool((sign * values[places[:-1]] <= _top(probe, sign) + rounding).any())
        for places, sign in _sides(values, which)
        for probe in probes
    )


def unseen(value: float, sign: float, probe: Probe, size: int, rounding: float = 0.0) -> float:
    """Return a bound of the probability that a probe saw nothing of an eigenvalue that is there.

    After m steps of Lanczos from a unit vector w, the next one is χ(A) w / Π β, with the couplings
    β and the characteristic polynomial χ(x) = Π (x - θ) of the Ritz values. Its component along the
    unit eigenvector u of λ, χ(λ) ⟨u, w⟩ / Π β, is at most 1, so that |⟨u, w⟩| ≤ Π β / (λ - θ) for λ
    above all θ; and a random w in n = `size` dimensions has a component of at most t with a
    probability of at most t √(2n/π).

    >>> unseen(3.0, 1.0, Probe(np.array([0.0, 1.0]), math.log(0.006)), 157) < 0.0101
    True
    """
    distances = value - sign * probe.values - rounding
    if distances.min() <= 0:
        return 1.0
    logarithm = math.log(2 * size / math.pi) / 2 + probe.log_couplings - np.log(distances).sum()
    return math.exp(min(0.0, logarithm))


def _sides(values: np.ndarray, which: str) -> list[tuple[np.ndarray, float]]:
    """Return the places of the values at the upper and lower end, with the sign of the end."""
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


def _top(probe: Probe, sign: float) -> float:
    return float((sign * probe.values).max())
