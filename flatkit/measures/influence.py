"""How far other samples of the same population would move a number: the influence of the samples.

L is a mean over samples, so each number that is smooth in L moves, to first order, by a mean over
the samples of their influence: an eigenvalue by vᵀHᵢv, a trace by tr Hᵢ, ‖H‖ by tr(HHᵢ)/‖H‖, a
gradient norm by ĝᵀgᵢ, a maximum over a ball by what the maximised function does at the point found,
which itself moves in the second order only. Blocks of samples (`objective/blocks.py`) stand for
single ones. The weights of the network are held fixed: what another training would have given is
the error of the seeds.

To second order a largest eigenvalue, a norm and a maximum over few samples are too large, as noise
across their direction can but lengthen them: `sampling_bias` says by how much, from the spread of
the blocks across it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatkit.flatness.geometry import Geometry
from flatkit.objective.blocks import Blocks, BlockValues, around, blocks_of
from flatkit.objective.function import Objective
from flatkit.results.result import Result
from flatkit.spectrum.dot import dot, inner, project_out

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_PROBES = 4
"""Products for the influence on a trace; what they add to its spread is taken away again."""
_HELD, _HELD_BYTES = 8, 100_000_000
"""Ritz vectors along which the influence on ‖H‖ is exact: the outliers of a classifier; bytes."""
_SAME, _LEAST_GAP = 0.5, 1e-3
"""Cosine beyond which a Ritz vector is the eigenvector itself; least gap, relative to the value."""
_IS = "standard error over samples of the population, of {} blocks, to first order"
_OF_TRACE = "z'Hz over a block of samples"
_CURVE = (
    "of the curve not known: other samples move an eigenvalue by more than the bandwidth, so that "
    "no formula of the first order holds"
)
_EXACT = "standard error over samples of the population, of {:,} samples"


class Influences:
    """The influence of the samples on the results of one analysis.

    Args:
        session: whose results these are.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._evaluated: dict[str, BlockValues | str] = {}

    @cached_property
    def blocks(self) -> Blocks | str:
        """Of the training samples, or why there are none."""
        return blocks_of(self._session.objective)

    def top_eigenvalues(self, result: Result) -> dict[str, Any]:
        """Return the influence on the largest eigenvalues. Cost: a product for each."""
        return self._eigenvalues(result, self._session.top_so_far.vectors)

    def bottom_eigenvalues(self, result: Result) -> dict[str, Any]:
        """Return the influence on the smallest eigenvalues. Cost: a product for each."""
        bottom = self._session.bottom
        return self._eigenvalues(result, None if bottom is None else bottom.estimate().vectors)

    def _eigenvalues(self, result: Result, vectors: Tensor | None) -> dict[str, Any]:
        """Return the influence on eigenvalues. Cost: a product for each.

        Args:
            result: with a value for each.
            vectors: v [K, P], unit rows.
        """
        blocks = self.blocks
        if isinstance(blocks, str) or vectors is None:
            return _none(blocks if isinstance(blocks, str) else "no eigenvector is known")
        count = len(result.value)
        vectors = vectors[:count]
        shares: list[list[float]] = [[] for _ in range(count)]
        # Second order: the eigenvector turns towards what the noise of the blocks points to.
        # Made before the products, which go by once: they are too large to be kept.
        across = [self._across(v, blocks) for v in vectors]
        for block in self._products(vectors, blocks):
            for number, (v, product) in enumerate(zip(vectors, block, strict=True)):
                shares[number].append(inner(v, product))
                across[number].add(product, v)
        values = [float(value) for value in result.value]
        pairs = zip(values, shares, strict=True)
        found = [around(value, share, blocks.weights) for value, share in pairs]
        biases = [one.bias(value) for one, value in zip(across, values, strict=True)]
        return {**_spread(found, "v'Hv over a block of samples"), "sampling_bias": biases}

    def trace(self, result: Result) -> dict[str, Any]:
        """Return the influence on the trace, by random probes. Cost: 4 products."""
        blocks = self.blocks
        if isinstance(blocks, str):
            return _none(blocks)
        return _spread(self._traces(float(result.value), blocks), _OF_TRACE)

    def mean_eigenvalue(self, result: Result) -> dict[str, Any]:
        """Return the influence on the mean of a density, tr H / P. Cost: as of the trace, once."""
        blocks = self.blocks
        if isinstance(blocks, str):
            return _none(blocks)
        size = self._session.curved.num_parameters
        traces = self._traces(size * float(result.settings["mean"]), blocks)
        found = _spread([one / size for one in traces], f"{_OF_TRACE}, over P")
        return {
            **found,
            "sampling_error_is": f"of the mean: {found['sampling_error_is']}; {_CURVE}",
        }

    def _traces(self, value: float, blocks: Blocks) -> list[float]:
        """Return what the blocks say of a trace."""
        rows = self._quadratic_forms
        found = around(value, [fmean(row) for row in rows], blocks.weights)
        return _without_noise(found, rows, blocks.weights)

    @cached_property
    def _quadratic_forms(self) -> list[list[float]]:
        """What each block contributes to zᵀHz of each probe."""
        assert not isinstance(self.blocks, str)
        probes = self._probes("influence")
        return [
            [inner(z, product) for z, product in zip(probes, block, strict=True)]
            for block in self._products(probes, self.blocks)
        ]

    def _probes(self, stream: str) -> Tensor:
        """Return random signs [_PROBES, P]."""
        curved = self._session.curved
        signs = torch.randint(
            2, (_PROBES, curved.num_parameters), generator=self._session.generator(stream)
        )
        # Signs have the least variance of all probes with independent entries (Hutchinson 1990).
        return (2 * signs - 1).to(curved.theta)

    def frobenius_norm(self, result: Result) -> dict[str, Any]:
        """Return the influence on ‖H‖: tr(HHᵢ)/‖H‖, exact along some Ritz vectors, probed beside.

        Cost: 16 products at most.
        """
        blocks, session = self.blocks, self._session
        if isinstance(blocks, str):
            return _none(blocks)
        # A norm has no derivative at 0, and so no influence.
        if result.value == 0:
            return _none("the norm is exactly 0, where it has a kink")
        held = max(1, min(_HELD, _HELD_BYTES // session.curved.theta.nbytes))
        known = session.space.ritz(held)[1]
        vectors, images = known.vectors, known.images
        beside = known.size < session.curved.num_parameters
        if beside:
            # Off the Ritz vectors, which are counted exactly: nothing is counted twice.
            probes = torch.stack([project_out(vectors, z) for z in self._probes("norm")])
            vectors = torch.cat([vectors, probes])
            images = torch.cat([images, session.curvature.matmat(probes)])
        # tr over the Ritz vectors exactly, and over the complement as a mean over probes.
        counts = [1.0] * known.size + [1 / _PROBES] * (len(vectors) - known.size)
        square = _weighted(counts, [inner(image, image) for image in images])
        scale = float(result.value) / square
        shares, rows, squares = list[float](), list[list[float]](), list[float]()
        for block in self._products(vectors, blocks):
            row = [scale * inner(h, product) for h, product in zip(images, block, strict=True)]
            shares.append(_weighted(counts, row))
            rows.append(row[known.size :])
            squares.append(_weighted(counts, [inner(product, product) for product in block]))
        found = around(float(result.value), shares, blocks.weights)
        if beside:
            found = _without_noise(found, rows, blocks.weights)
        # Noise E across H lengthens it by ‖E‖²/2‖H‖, as that of a vector.
        along = [share / scale / math.sqrt(square) for share in shares]
        across = [whole - part**2 for whole, part in zip(squares, along, strict=True)]
        bias = scale * _noise(across, 0.0, blocks.weights) / 2
        return {**_spread(found, "tr(HHᵢ)/‖H‖ over a block of samples"), "sampling_bias": bias}

    def evaluation(self, result: Result) -> dict[str, Any]:
        """Return the influence on the loss or accuracy of a split. Cost: an evaluation."""
        split = str(result.settings["split"])
        objective = self._session.splits[split]
        if split not in self._evaluated:
            blocks = blocks_of(objective)
            self._evaluated[split] = (
                blocks if isinstance(blocks, str) else blocks.evaluate(objective.theta)
            )
        known, blocks = self._evaluated[split], blocks_of(objective)
        if isinstance(known, str) or isinstance(blocks, str):
            return _none(str(known))
        if result.measure == "accuracy":
            return _of_accuracy(float(result.value), known)
        value = float(result.value)
        found = _spread(around(value, known.losses, blocks.weights), "mean over a block of samples")
        if known.singles is None:
            return found
        shares, order = known.singles, torch.cat(list(blocks.rows))
        return {**found, **_exactly(value, shares, objective, order)}

    def gradient_norm(self, result: Result) -> dict[str, Any]:
        """Return the influence on the norm of the gradient. Cost: a gradient."""
        session = self._session
        return self._norm(result, session.objective.theta, session.gradient, Geometry("l2"))

    def largest_gradient_norm(self, result: Result) -> dict[str, Any]:
        """Return the influence on ρ times the largest norm in a ball. Cost: two gradients."""
        session, rho = self._session, result.settings["rho"]
        found = session.ball.answer("gradient_norm", rho).found
        theta = session.objective.theta + found.displacement
        return self._norm(result, theta, session.objective.gradient(theta), session.ball.geometry)

    def _norm(
        self, result: Result, theta: Tensor, gradient: Tensor, geometry: Geometry
    ) -> dict[str, Any]:
        """Return the influence on the norm of a gradient in the geometry of a ball, or ρ times it.

        Args:
            result: with a setting `rho` if the point is the highest of a ball.
            theta: the point [P].
            gradient: there [P].
            geometry: of the norm.
        """
        blocks = self.blocks
        if isinstance(blocks, str):
            return _none(blocks)
        whole = geometry.displacement(gradient)
        size = float(geometry.dual_norm(whole))
        if size == 0:
            return _none("the gradient is exactly 0, where its norm has a kink")
        scale, direction = float(result.value) / size, geometry.maximiser(whole, 1.0)
        shares, across = list[float](), _Across(blocks.weights)
        for part in map(geometry.displacement, blocks.gradients(theta)):
            shares.append(scale * inner(direction, part))
            if geometry.is_round:
                across.add(part, direction)
        found = _spread(
            around(float(result.value), shares, blocks.weights), "g'g/|g| over a block of samples"
        )
        # The formula below is that of a Euclidean norm.
        if not geometry.is_round:
            return found
        # Noise e across the gradient lengthens it by ‖e‖²/2|g|; the highest point of a ball moves
        # with the noise, which gains as much again beside one large eigenvalue.
        moves = 1.0 if "rho" in result.settings else 0.5
        return {**found, "sampling_bias": moves * scale * across.bias(size)}

    def loss_increase(self, result: Result) -> dict[str, Any]:
        """Return the influence on the largest L(θ + δ) − L(θ). Cost: two evaluations."""
        at = self._session.ball.answer("loss", result.settings["rho"]).found.displacement
        return self._increase(result, self._session.objective.theta + at)

    def rounded_increase(self, result: Result) -> dict[str, Any]:
        """Return the influence on the increase of the loss by rounding. Cost: two evaluations."""
        from flatkit.flatness.rounding import rounded

        objective = self._session.objective
        point = rounded(objective.theta, objective.space, int(result.settings["bits"]))
        return self._increase(result, point.theta)

    def _increase(self, result: Result, theta: Tensor) -> dict[str, Any]:
        """Return the influence on what the loss at a point [P] is above that at the checkpoint."""
        blocks = self.blocks
        if isinstance(blocks, str):
            return _none(blocks)
        shares = [a - b for a, b in zip(blocks.losses(theta), self._losses, strict=True)]
        values = around(float(result.value), shares, blocks.weights)
        return _spread(values, "L(θ + δ) - L(θ) over a block of samples")

    @cached_property
    def _losses(self) -> list[float]:
        assert not isinstance(self.blocks, str)
        return self.blocks.losses(self._session.objective.theta)

    def _products(self, vectors: Tensor, blocks: Blocks) -> Iterator[Tensor]:
        return self._session.curvature.shares(vectors, blocks.rows)

    def _across(self, vector: Tensor, blocks: Blocks) -> "_Across":
        """Return what adds up the noise across an eigenvector, next to all else that is known."""
        session = self._session
        if not session.has_space:
            return _Across(blocks.weights)
        values, found, _ = session.space.ritz()
        # One of the Ritz vectors is the eigenvector itself, whose gap to itself is 0.
        others = (dot(found.vectors, vector).abs() < _SAME).tolist()
        known = [value for value, other in zip(values.tolist(), others, strict=True) if other]
        return _Across(blocks.weights, known, found.vectors[torch.tensor(others)])


class _Across:
    """Adds up the noise across a direction: e⊥, of the noise e of a mean over all samples.

    Args:
        weights: of the blocks.
        values: μ, Ritz values of H.
        vectors: of these [M, P], unit rows orthogonal to the direction; elsewhere H counts as 0.
    """

    def __init__(
        self, weights: Sequence[float], values: Sequence[float] = (), vectors: Tensor | None = None
    ) -> None:
        self._weights, self._values, self._vectors = weights, values, vectors
        self._squares: list[float] = []
        self._sum: Tensor | None = None
        self._along: list[Tensor] = []

    def add(self, part: Tensor, direction: Tensor) -> None:
        """Add what the next block contributes to a vector, across a unit vector."""
        rest = part - direction * inner(direction, part)
        self._squares.append(inner(rest, rest))
        self._sum = rest if self._sum is None else self._sum.add_(rest)
        if self._vectors is not None:
            self._along.append(dot(self._vectors, rest))

    def bias(self, value: float) -> float:
        """Return the mean of e⊥ᵀ(value − H)⁺e⊥."""
        if self._sum is None or value == 0:
            return 0.0
        left = _noise(self._squares, inner(self._sum, self._sum), self._weights)
        near = 0.0
        for number, other in enumerate(self._values):
            along = [float(found[number]) for found in self._along]
            noise = _noise([one**2 for one in along], math.fsum(along) ** 2, self._weights)
            gap = value - other
            near += noise / math.copysign(max(abs(gap), _LEAST_GAP * abs(value)), gap)
            left -= noise
        return near + max(0.0, left) / value


def _noise(squares: Sequence[float], of_sum: float, weights: Sequence[float]) -> float:
    """Return the variance of a sum of shares, from their squares and that of their sum.

    Of weights w they are Σ w (s/w − S)²/(B − 1), as S is the mean of s/w by these weights.
    """
    each = math.fsum(s / w for s, w in zip(squares, weights, strict=True) if w > 0)
    return max(0.0, each - of_sum) / (len(squares) - 1)


def _weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(w * value for w, value in zip(weights, values, strict=True))


def _none(why: str) -> dict[str, Any]:
    return {"sampling_error_is": f"not known: {why}"}


def _error(values: Sequence[float]) -> float:
    return math.sqrt(variance(values) / len(values))


def _spread(values: Any, of: str) -> dict[str, Any]:
    """Return values of blocks, or a list of such for each number, with their standard error."""
    several = isinstance(values[0], list)
    count = len(values[0] if several else values)
    return {
        "sampling_error": [_error(each) for each in values] if several else _error(values),
        "sampling_error_is": _IS.format(count),
        "influence": {"blocks": count, "of": of, "values": values},
    }


def _exactly(value: float, shares: Tensor, objective: Objective, order: Tensor) -> dict[str, Any]:
    """Return the standard error of a mean from what each sample contributes."""
    weights = objective.weights[order] / objective.total_weight
    count = len(shares)
    squares = ((shares - value * weights) ** 2).sum()
    # Σ wₙ²(ℓₙ − L)², with N/(N − 1) as L is their own mean.
    error = math.sqrt(float(squares) * count / (count - 1))
    return {"sampling_error": error, "sampling_error_is": _EXACT.format(count)}


def _of_accuracy(value: float, known: BlockValues) -> dict[str, Any]:
    """Return the influence on an accuracy; where all are right it still may be wrong elsewhere.

    The error is that of Agresti and Coull (1998): of two more right and two more wrong.
    """
    asked = sum(known.asked)
    shares, weights = ([n / asked for n in counts] for counts in (known.right, known.asked))
    found = _spread(around(value, shares, weights), "right of a block of samples")
    # z² = 3.84 rounded to 4, as the source does at 95 %.
    p = (value * asked + 2) / (asked + 4)
    least = math.sqrt(p * (1 - p) / (asked + 4))
    error = max(found["sampling_error"], least) if value in (0.0, 1.0) else found["sampling_error"]
    return {**found, "sampling_error": error}


def _without_noise(
    values: list[float], rows: Sequence[Sequence[float]], weights: Sequence[float]
) -> list[float]:
    """Return values of blocks drawn together by what single probes differ from each other.

    Of blocks and probes the interaction is noise of the probes: in an analysis of variance it is
    taken from the variance over the blocks, which itself is known to √(2/(B - 1)) of it. So much
    more is left, so that the error is rather too large than too small.
    """
    probes, centre = len(rows[0]), fmean(values)
    columns = [around(0.0, [row[k] for row in rows], weights) for k in range(probes)]
    means = [fmean(column[b] for column in columns) for b in range(len(rows))]
    noise = math.fsum(
        (column[b] - means[b]) ** 2 for column in columns for b in range(len(rows))
    ) / ((probes - 1) * (len(rows) - 1) * probes)
    whole = variance(values)
    if whole == 0:
        return values
    doubt = math.sqrt(2 / (len(rows) - 1))
    # Deviations from the mean are shrunk, so that the variance loses the part that is noise.
    shrunk = math.sqrt(min(1.0, max(0.0, 1 - noise / whole) + doubt))
    return [centre + shrunk * (value - centre) for value in values]
