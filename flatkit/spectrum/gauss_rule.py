"""Gauss rules of the spectral measure of a vector, and what lies between their nodes."""

import math
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A quadrature of a spectral measure, with weights that add up to 1.

    Attributes:
        nodes: of the Gauss rule [m].
        weights: their weights.
        finer: nodes of the averaged rule [2m - 1], within those of the Gauss rule.
        shares: their weights.
        signs: 1 for those of the Gauss rule with a node less, -1 for those of the anti-Gauss rule;
            0 where the Gauss rule is the measure itself.
    """

    nodes: np.ndarray
    weights: np.ndarray
    finer: np.ndarray
    shares: np.ndarray
    signs: np.ndarray


def rule_of(projection: np.ndarray, *, ended: bool) -> Rule:
    """Return the rule of the vector that a Krylov basis starts with.

    The anti-Gauss rule is wrong by as much as the Gauss rule with a node less, the other way
    (Laurie, 1996): its nodes lie between those. Their mean is closer than either, and half their
    difference tells how wrong either is. It takes no further product: the last coupling of the
    tridiagonal matrix is multiplied by √2.

    Args:
        projection: of the operator onto the basis, [m, m].
        ended: whether the Krylov space is invariant.

    >>> rule = rule_of(np.array([[0.0, 1.0], [1.0, 0.0]]), ended=False)
    >>> rule.nodes.round(3).tolist(), rule.finer.round(3).tolist(), rule.signs.tolist()
    ([-1.0, 1.0], [0.0, -1.0, 1.0], [1.0, -1.0, -1.0])
    """
    nodes, weights = _gauss(projection)
    if ended:
        return Rule(nodes, weights, nodes, weights, np.zeros(len(nodes)))
    if len(nodes) == 1:
        return Rule(nodes, weights, nodes, weights, np.ones(1))
    wider = projection.copy()
    wider[-1, :-1] *= math.sqrt(2)
    wider[:-1, -1] *= math.sqrt(2)
    less, shares = _gauss(projection[:-1, :-1])
    between, others = _gauss(wider)
    return Rule(
        nodes,
        weights,
        np.concatenate([less, between.clip(nodes[0], nodes[-1])]),
        np.concatenate([shares, others]) / 2,
        np.r_[np.ones(len(less)), -np.ones(len(between))],
    )


def _gauss(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes, vectors = np.linalg.eigh(projection)
    return nodes, vectors[0] ** 2
