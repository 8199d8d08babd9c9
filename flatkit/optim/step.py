"""One step of an optimizer: its visits, and the gradient that they leave to the base."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias, final

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

from flatkit.errors import NonFiniteError
from flatkit.optim.blockwise import Vector
from flatkit.optim.buffers import Buffers
from flatkit.optim.data_parallel import Replicas, check_known
from flatkit.optim.passes import GradientPass
from flatkit.optim.perturb import Excursion, Walk, without_grad
from flatkit.optim.settings import Settings

Rule: TypeAlias = Callable[[Excursion], Walk[Vector]]
"""Combines the gradients of some visits to one."""


@final
class Step:
    """One step, from zeroed gradients to the one that the base is to use.

    Args:
        param_groups: of the optimizer.
        rule: makes the visits.
        settings: of the optimizer.
        scaler: scales the losses; None if there is none, or it is disabled.
        twice: the rule differentiates twice, past DistributedDataParallel.

    Attributes:
        prepared: whether `.grad` holds the gradient for the base.
        loss: of the first pass, detached; None before.

    Raises:
        InvalidArgumentError: the model is needed and not known.
    """

    def __init__(
        self,
        param_groups: Iterable[Mapping[str, Any]],
        rule: Rule,
        settings: Settings,
        scaler: GradScaler | None,
        *,
        twice: bool,
    ) -> None:
        self.prepared = False
        self.loss: Any = None
        self._rule, self._scaler = rule, scaler
        self._local = settings.batch == "local"
        self._max_norm = settings.max_norm
        if self._local or twice:
            check_known(settings.model, 'batch="local"' if self._local else "the exact mode")
        self._replicas = Replicas(settings.model)
        self._buffers = Buffers(settings.model)
        self._walk = Excursion(
            param_groups,
            eps=settings.eps,
            eta=settings.eta if settings.adaptive else None,
            foreach=settings.foreach,
            scaler=scaler,
            average=None if self._local else self._replicas.average_,
            patient=self._local and self._replicas.several,
        )

    @property
    def pass_number(self) -> int:
        """The number of the pass under way, 0 before the first."""
        return max(self._walk.pass_number, 0)

    def phases(self, owner: Optimizer) -> Generator[GradientPass, None, None]:
        """Walk, then leave the gradient in `.grad`, unscaled.

        Args:
            owner: the optimizer that the scaler is to step.

        Raises:
            NonFiniteError: a gradient is NaN or infinite, and there is no scaler.
        """
        try:
            gradient = yield from without_grad(self._walked())
        except NonFiniteError:
            if self._scaler is None:
                raise
            self._report_overflow(self._scaler, owner)
        else:
            self._leave(gradient, owner)
        self.loss = self._walk.loss

    def _walked(self) -> Walk[Vector]:
        """Return the combined gradient, finite, averaged and clipped; at home again."""
        with self._walk as walk:
            gradient = yield from self._visits(self._rule(walk))
            walk.norm(gradient, "combined gradient")
            if self._local:
                first = next(walk.parameters())
                walk.check(failed=self._replicas.any(walk.failed, first))
                self._replicas.average_(gradient)
            self._clip(gradient)
            return gradient

    def _visits(self, inner: Walk[Vector]) -> Walk[Vector]:
        """Keep the buffers after the first pass, and replicas to themselves where that is meant."""
        try:
            while True:
                try:  # the end of the last pass may still differentiate: no buffer changes yet
                    visit = next(inner)
                except StopIteration as stop:
                    return stop.value
                self._buffers.put_back()
                alone = self._local or visit.twice
                with self._replicas.alone() if alone else nullcontext():
                    yield visit
                if visit.number == 0:
                    self._buffers.keep()
        finally:
            self._buffers.put_back()

    def _clip(self, gradient: Vector) -> None:
        if self._max_norm is None:
            return
        length = self._walk.norm(gradient, "combined gradient")
        if length > self._max_norm:
            self._walk.algebra.scale_(gradient, [self._max_norm / length] * len(gradient))

    def _leave(self, gradient: Vector, owner: Optimizer) -> None:
        """Leave the gradient to the base, and let the scaler see that it is finite."""
        scaler = self._scaler
        if scaler is not None:
            with torch.no_grad():
                self._walk.algebra.scale_(gradient, [scaler.get_scale()] * len(gradient))
        self._walk.write_gradient(gradient)
        if scaler is not None:
            scaler.unscale_(owner)
        self.prepared = True

    def _report_overflow(self, scaler: GradScaler, owner: Optimizer) -> None:
        """Let the scaler find an infinite gradient, through its public methods."""
        first = next(self._walk.parameters())
        first.grad = torch.full_like(first, float("inf"))
        scaler.unscale_(owner)
        self._walk.clear_gradients()
