"""Schedules of the radii: constant, cosine, in proportion to the learning rate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

from torch.optim import Optimizer

from flatkit.checks import check_count, check_fraction, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.optim.wrapper import PerturbedOptimizer


class RhoSchedule(ABC):
    """Multiplies every radius of every group by one factor a group; like a torch `LRScheduler`.

    The radii as they are at the start are kept in the groups as `initial_rho` and the like, and so
    are saved with the optimizer.

    Args:
        optimizer: SAM, GAM or a relative.

    Attributes:
        steps: calls of `step` so far.

    Raises:
        InvalidArgumentError: the optimizer has no radius.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, PerturbedOptimizer):
            raise InvalidArgumentError(
                f"optimizer must be SAM, GAM or a relative, which have a radius; got {optimizer!r}"
            )
        self.optimizer = optimizer
        self.steps = 0
        self._apply()

    def step(self) -> None:
        """Set the radii of the next step; to be called after the scheduler of the rate, if any."""
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes; the radii are in the state of the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, after the optimizer has loaded its own."""
        self.steps = state["steps"]
        self._apply()

    @abstractmethod
    def factor(self, group: dict[str, Any]) -> float:
        """Return what the initial radii of a group are to be multiplied by now."""

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            factor = self.factor(group)
            for key in self.optimizer.radius_keys:
                # Of the first radius each time: `group[key]` holds that of the step before.
                group[key] = group.setdefault(f"initial_{key}", group[key]) * factor


@final
class ConstantRho(RhoSchedule):
    """The radii stay; the schedule of a run that has none.

    >>> import torch
    >>> from flatkit.optim import SAM
    >>> optimizer = SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), rho=0.2)
    >>> ConstantRho(optimizer).step()
    >>> optimizer.param_groups[0]["rho"]
    0.2
    """

    def factor(self, group: dict[str, Any]) -> float:
        """Return 1."""
        return 1.0


@final
class CosineRho(RhoSchedule):
    """ρ falls along half a cosine from ρ0 to final·ρ0, and stays there.

    Args:
        optimizer: SAM, GAM or a relative.
        total_steps: the number of steps after which the end is reached.
        final: the last radius as a share of the first, in [0, 1].

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> import torch
    >>> from flatkit.optim import SAM
    >>> optimizer = SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), rho=0.2)
    >>> schedule = CosineRho(optimizer, total_steps=2)
    >>> for _ in range(3):
    ...     print(round(optimizer.param_groups[0]["rho"], 3))
    ...     schedule.step()
    0.2
    0.1
    0.0
    """

    def __init__(self, optimizer: Optimizer, *, total_steps: int, final: float = 0.0) -> None:
        self._total = check_count("total_steps", total_steps)
        self._final = check_fraction("final", final)
        super().__init__(optimizer)

    def factor(self, group: dict[str, Any]) -> float:
        """Return final + (1 − final)·(1 + cos πt/T)/2."""
        progress = min(self.steps / self._total, 1.0)
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * progress)) / 2


@final
class ProportionalRho(RhoSchedule):
    """ρ = ρ0·(final + (1 − final)·lr/lr0): large where the rate is, as GSAM and GAM's authors have.

    Args:
        optimizer: SAM, GAM or a relative.
        lr: lr0, the rate at which the radii are as given, for instance the highest after a warmup;
            by default the initial rate of each group.
        final: the share of ρ0 that stays where the rate is 0, in [0, 1].

    Raises:
        InvalidArgumentError: an argument is not allowed.

    >>> import torch
    >>> from flatkit.optim import SAM
    >>> optimizer = SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), rho=0.2)
    >>> schedule = ProportionalRho(optimizer)
    >>> optimizer.param_groups[0]["lr"] = 0.05
    >>> schedule.step()
    >>> optimizer.param_groups[0]["rho"]
    0.1
    """

    def __init__(
        self, optimizer: Optimizer, *, lr: float | None = None, final: float = 0.0
    ) -> None:
        self._lr = None if lr is None else check_positive("lr", lr)
        self._final = check_fraction("final", final)
        super().__init__(optimizer)

    def factor(self, group: dict[str, Any]) -> float:
        """Return final + (1 − final)·lr/lr0."""
        rate = float(group["lr"])
        # torch's schedulers keep `initial_lr` in a group; without one the rate is still the first.
        start = float(group.setdefault("rho_lr", group.get("initial_lr", rate)))
        return self._final + (1 - self._final) * rate / (self._lr or start)
