"""The order of a search in a ball: the most promising start alone, then rounds that double."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from flatkit.flatness.frank_wolfe import BallSearch, Iterate, Precision
from flatkit.flatness.iterated_search import NAME, DirectionSampler, walk_far_apart, walk_near
from flatkit.flatness.sphere_lbfgs import ascend
from flatkit.spectrum.dot import inner, norm

Start: TypeAlias = tuple[str, Tensor | Callable[[], Tensor]] | int
"""A name and coordinates u [P], or what makes them, always the same, so that nobody keeps them; or
how many gradients it took to get nearer to the next."""

_LOOKS = 4  # starts whose value is looked at before the highest goes on alone, where they fit
_ROUND = 4  # starts of the next round; each further one has twice as many
_STEPPED, _ASCENDED = 2, 4  # one in so many of a round takes a step, and is ascended from
_FIRST_STEP = Precision(0.1)  # of the better half
_SPAN = 17  # starts in whose span walks from near the best begin
_SAME_MAXIMUM = 0.1  # distance, in radii, of a lower point that leads to the maximum of another
_HOPELESS = 0.9  # of the highest value: what is below after the rough part of an ascent is left
_MOST_NUMBERS = 2**26  # of the starts of one round together
# Angle, in radians, to the ascent direction at which no ascent of a smooth function ends: those
# of the tanh networks in `python -m benchmarks.flatness networks` end closer, those of untrained
# ReLU networks do not.
_KINK_ANGLE = 3e-3
_ROUNDINGS = 8  # units of rounding of a value within which a gain is none


@dataclass(eq=False)
class Rounds:
    """One search, which goes on for as long as it is asked to.

    What it does next depends on the function, the starts and the generator alone.

    Args:
        search: the function, the radius and what was spent.
        starts: where to begin.
        explore: draws directions for walks from far apart; without it there are none.
        generator: draws where walks begin.

    Attributes:
        kinked: whether an ascent ended although the slope there promised more.
        phases: that have ended: the first ascent, and rounds.
        ended: the ascents that came to an end on their own, each with the iterate that it led to:
            itself, or the best one if it was left close to that.
        looked_elsewhere: whether the best of other starts was ascended from too, or there are none.
    """

    search: BallSearch
    starts: Iterator[Start]
    explore: DirectionSampler | None
    generator: torch.Generator
    kinked: bool = False
    looked_elsewhere: bool = False
    phases: int = 0
    ended: list[tuple[Iterate, Iterate]] = field(default_factory=list[tuple[Iterate, Iterate]])
    _seen: list[Callable[[], Tensor]] = field(default_factory=list[Callable[[], Tensor]])

    def run(self) -> Iterator[None]:
        """Search; yield after each small piece of work."""
        waiting: list[Iterate] = []
        yield from self._look(1, waiting)  # which tells how many fit
        yield from self._look(min(_LOOKS, self._room) - 1, waiting)
        waiting.remove(first := self.search.best)
        if not self.has_room:
            for iterate in waiting:  # beside an ascent, and those of searches in other balls
                iterate.rest()
        yield from self._ascend(first)
        size = _ROUND
        while True:
            self.phases += 1
            yield from self._look(min(size, self._room), waiting)
            if not waiting and not self.kinked:
                break
            yield from self._round(waiting)
            self.looked_elsewhere = True
            if self.kinked and size > _ROUND:
                yield from self._walk(size)
            waiting = []
            size *= 2
        self.looked_elsewhere = True
        yield  # or whoever asked after the last ascent would never hear of the end

    def ends_at_kink(self, iterate: Iterate) -> bool:
        """Return whether an ascent has ended although the slope there promises more."""
        geometry, radius = self.search.function.geometry, self.search.radius
        if not (iterate.done and geometry.is_round and bool(iterate.ascent.any())):
            return False
        target, size = geometry.maximiser(iterate.ascent, radius), abs(iterate.value)
        gain = linear_gain(iterate, target)
        rounding = torch.finfo(iterate.u.dtype).eps * size
        if gain <= max(self.search.noise, _ROUNDINGS * rounding):
            return False
        between = angle(iterate, target, radius)
        if between is None:
            # Off the sphere: at the angle φ from its maximiser a
            # linear function lacks 1 − cos φ ≈ φ²/2.
            return gain > 0.5 * _KINK_ANGLE**2 * size
        return between > _KINK_ANGLE

    @property
    def has_room(self) -> bool:
        """Whether a search may keep points that can be made anew, beside those in other balls."""
        return self._room >= _LOOKS

    @property
    def _room(self) -> int:
        """How many starts fit in memory at once."""
        if not self.search.size:
            return 2
        # Three vectors a start: its point, the gradient that was evaluated there, and the ascent.
        return max(2, _MOST_NUMBERS // (3 * self.search.size))

    def _look(self, count: int, looked: list[Iterate]) -> Iterator[None]:
        """Evaluate the next starts and add them to those that were looked at."""
        missing = count
        while missing and (start := next(self.starts, None)) is not None:
            if isinstance(start, int):
                self.search.explored += start
            else:
                name, u = start
                make = u if callable(u) else partial(_itself, u)
                del start, u  # a search that waits for others keeps no vector more than it needs
                looked.append(self.search.begin(name, make))
                missing -= 1
                if len(self._seen) < min(_SPAN, 2 * self._room):
                    self._seen.append(make)
                del make
            yield

    def _ascend(self, iterate: Iterate) -> Iterator[None]:
        def worthwhile() -> bool:
            best = self.search.best
            if iterate is best:
                return True
            return not self._is_near(best, iterate) and iterate.value > _HOPELESS * best.value

        yield from ascend(self.search, iterate, worthwhile)
        best = self.search.best
        if iterate.name != NAME:
            self.ended.append((iterate, best if self._is_near(best, iterate) else iterate))
        self.kinked = self.kinked or self.ends_at_kink(iterate)

    def _is_near(self, best: Iterate, iterate: Iterate) -> bool:
        """Return whether an ascent leads to the maximum of the best, whatever its value is yet."""
        return float((iterate.u - best.u).norm()) < _SAME_MAXIMUM * self.search.radius

    def _round(self, waiting: list[Iterate]) -> Iterator[None]:
        """Let the better half of some starts take a step, and ascend from the best quarter."""
        for iterate in _best_part(waiting, _STEPPED):
            self.search.aim(iterate, _FIRST_STEP)
            yield
            yield from self.search.step(iterate, _FIRST_STEP)
        chosen = _best_part(waiting, _ASCENDED)
        while chosen:
            self._forget(but=chosen)
            yield from self._ascend(chosen.pop(0))
        self._forget()

    def _forget(self, but: Sequence[Iterate] = ()) -> None:
        """Give up the points that nothing goes on from: a large network has no room for them."""
        best = self.search.best
        for iterate in self.search.iterates:
            if iterate is not best and iterate.name != NAME and iterate not in but:
                iterate.forget()

    def _walk(self, count: int) -> Iterator[None]:
        """Walk from far apart and then, at half the cost, from near the best point."""
        search = self.search
        walks = next((it for it in search.iterates if it.name == NAME), None)
        if walks is None:
            search.iterates.append(walks := Iterate(NAME, search.best.point))
        walks.follow(search.best)
        before = search.spent
        if self.explore is not None:
            yield from walk_far_apart(search, walks, count, self.explore, self.generator)
        # One walk at least, also where nothing was explored.
        until = max(search.spent + (search.spent - before) // 2, before + 1)
        while search.spent < until:
            yield from walk_near(search, walks, self._seen, self.generator)
        if not walks.done:
            yield from self._ascend(walks)


def _itself(u: Tensor) -> Tensor:
    return u


def _best_part(iterates: list[Iterate], one_in: int) -> list[Iterate]:
    """Return the highest of some iterates, one in so many."""
    ranking = sorted(iterates, key=lambda iterate: -iterate.value)
    return ranking[: math.ceil(len(iterates) / one_in)]


def linear_gain(iterate: Iterate, target: Tensor) -> float:
    """Return what the function would gain on the way to a point [P], were it linear."""
    return inner(iterate.ascent, target - iterate.u)


def angle(iterate: Iterate, target: Tensor, radius: float) -> float | None:
    """Return the angle between a point on the sphere and its ascent direction, else None."""
    size = norm(iterate.u)
    # Rounding may leave a point of the sphere a little inside of it.
    if size < 0.999 * radius or not bool(target.any()):
        return None
    along = inner(iterate.u, target) / size**2
    # Not acos, which loses half of the digits at the small angles that matter.
    return math.atan2(norm(target - iterate.u * along), along * size)
