"""The gradient passes of one step, and the gradient that they leave to the base optimizer."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias, final

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

from flatkit.errors import NonFiniteError
from flatkit.optim.autograd import Passes, without_grad
from flatkit.optim.blockwise import Blocks
from flatkit.optim.buffers import Buffers
from flatkit.optim.data_parallel import DataParallel, check_known
from flatkit.optim.perturb import PerturbedPoint
from flatkit.optim.settings import Settings

Rule: TypeAlias = Callable[[PerturbedPoint], Passes[Blocks]]
"""Takes gradients at perturbed points and combines them to one, e.g. `sam_gradient`."""


@final
class Step:
    """One step, from cleared gradients to the one that the base is to use.

    Args:
        param_groups: of the optimizer.
        rule: says where gradients are taken and how they are combined.
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
        self._parallel = DataParallel(settings.model)
        self._buffers = Buffers(settings.model)
        self._point = PerturbedPoint(
            param_groups,
            eps=settings.eps,
            eta=settings.eta if settings.adaptive else None,
            foreach=settings.foreach,
            scaler=scaler,
            average=None if self._local else self._parallel.average_,
            # With local perturbations one process alone may meet a NaN. It goes on all the same,
            # because the others would wait for it in their next all_reduce for ever.
            defer_failures=self._local and self._parallel.has_several,
        )

    @property
    def pass_number(self) -> int:
        """The number of the pass under way, 0 before the first."""
        return max(self._point.pass_number, 0)

    def passes(self, owner: Optimizer) -> Passes[None]:
        """Yield the passes, then leave the combined gradient in `.grad`, unscaled.

        Args:
            owner: the optimizer that the scaler is to step.

        Raises:
            NonFiniteError: a gradient is NaN or infinite, and there is no scaler.
        """
        try:
            gradient = yield from without_grad(self._combined())
        except NonFiniteError:
            if self._scaler is None:
                raise
            self._report_overflow(self._scaler, owner)
        else:
            self._write(gradient, owner)
        self.loss = self._point.loss

    def _combined(self) -> Passes[Blocks]:
        """Return the combined gradient, finite, averaged and clipped; θ is then restored."""
        with self._point as point:
            gradient = yield from self._guarded(self._rule(point))
            # Finite gradients may add up to an infinite one: refused before it is written.
            point.norm(gradient, "combined gradient")
            if self._local:
                first = next(point.parameters())
                point.check_finite(failed=self._parallel.any(point.failed, first))
                self._parallel.average_(gradient)
            self._clip(gradient)
            return gradient

    def _guarded(self, passes: Passes[Blocks]) -> Passes[Blocks]:
        """Keep the buffers as the first pass left them, and gradients local where that is meant."""
        try:
            while True:
                try:  # the end of the last pass may still differentiate: no buffer changes yet
                    gradient_pass = next(passes)
                except StopIteration as stop:
                    return stop.value
                self._buffers.put_back()
                # Twice: torch.autograd.grad does not call the hooks of DistributedDataParallel, so
                # `average` takes the mean instead.
                local = self._local or gradient_pass.twice
                with self._parallel.no_sync() if local else nullcontext():
                    yield gradient_pass
                if gradient_pass.number == 0:
                    self._buffers.keep()
        finally:
            self._buffers.put_back()

    def _clip(self, gradient: Blocks) -> None:
        if self._max_norm is None:
            return
        length = self._point.norm(gradient, "combined gradient")
        if length > self._max_norm:
            self._point.blockwise.scale_(gradient, [self._max_norm / length] * len(gradient))

    def _write(self, gradient: Blocks, owner: Optimizer) -> None:
        """Leave the gradient to the base, and let the scaler see that it is finite."""
        scaler = self._scaler
        if scaler is not None:  # unscale_ is the only public way to tell it, so scale once more
            with torch.no_grad():
                self._point.blockwise.scale_(gradient, [scaler.get_scale()] * len(gradient))
        self._point.write_gradient(gradient)
        if scaler is not None:
            scaler.unscale_(owner)
        self.prepared = True

    def _report_overflow(self, scaler: GradScaler, owner: Optimizer) -> None:
        """Let the scaler find an infinite gradient, through its public methods."""
        first = next(self._point.parameters())
        # To a scaler that is an overflow: it skips the step and lowers its scale.
        first.grad = torch.full_like(first, float("inf"))
        scaler.unscale_(owner)
        self._point.clear_gradients()
