"""Whether copies of a multiple eigenvalue are missing: what random vectors rule out.

From one start, a Krylov space holds one vector of each eigenspace: an eigenvalue of multiplicity
m is seen once, and those after it take places that are not theirs. The other vectors of the
eigenspace are eigenvectors in the complement of what was found, where Lanczos from a random vector
sees them.
"""

from collections.abc import Sequence

import numpy as np

from flatkit.spectrum.rank import RISK, Probe, chance, logs_unseen, sides


def displacements(
    values: np.ndarray,
    which: str,
    probes: Sequence[Probe],
    *,
    size: int,
    rounding: float = 0.0,
    reach: np.ndarray | float = 0.0,
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
        reach: how far before a value what is there counts as a copy of it, [K] or one for all.

    >>> values = np.array([3.0, 1.0])
    >>> displacements(values, "largest", [], size=9).tolist()
    [0.0, 2.0]
    >>> seen = Probe(values=np.array([0.0, 1.0]), log_couplings=-12.0)
    >>> displacements(values, "largest", [seen], size=9).tolist()
    [0.0, 0.0]
    """
    found = np.zeros(len(values))
    for places, sign in sides(values, which):
        nearest = sign * (values - sign * np.broadcast_to(reach, values.shape))[places]
        doubtful = np.ones(len(places), dtype=bool)
        if probes:
            logs = logs_unseen(sign * nearest, probes, size=size, rounding=rounding)
            tops = np.array([[_top(probe, sign)] for probe in probes])
            seen = nearest - rounding <= tops  # as much, or more, was seen
            doubtful = chance(np.where(seen, 0.0, logs)) > RISK
        if doubtful.any():
            first = places[int(np.argmax(doubtful))]
            # By magnitude a copy at one end also pushes down those of the other sign.
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
        for places, sign in sides(values, which)
        for probe in probes
    )


def _top(probe: Probe, sign: float) -> float:
    return float((sign * probe.values).max())
