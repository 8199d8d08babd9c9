"""A network at one point and one chunk of samples: recorded once, then multiplied from."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from flatkit.hessian.layers.calls import Slot
from flatkit.hessian.layers.layer import Sum, added
from flatkit.hessian.layers.recording import Recording, Step
from flatkit.hessian.layers.trace import Network
from flatkit.hessian.unsupported import torch_derivatives
from flatkit.objective.passes import Chunk, arguments, differentiate

if TYPE_CHECKING:
    from flatkit.objective.function import Objective


@final
class Tape:
    """The layers of a network with their inputs and first derivatives at θ.

    The loss on top is any twice differentiable function of the outputs: its own curvature is left
    to autograd, where it is cheap.

    Args:
        network: the objective's model, traced.
        objective: L.
        theta: the point [P].
        chunk: the samples.

    Attributes:
        gradient: of the chunk's part of L, [P].
        outputs: of the network, a leaf of the loss's own graph.
        takes_blocks: whether K > 1 directions go through at once.

    Raises:
        UnsupportedError: a layer has no rule here, or no derivative.

    >>> from torch import nn
    >>> from flatkit.hessian.layers.trace import trace
    >>> from flatkit.objective.function import Objective
    >>> data = (torch.tensor([[3.0]]), torch.tensor([[0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)  # L = 9 w²
    >>> chunk = next(objective.chunks())
    >>> tape = Tape(trace(objective.model), objective, torch.tensor([2.0]), chunk)
    >>> tape.gradient, tape.products(torch.tensor([[1.0]]))
    (tensor([36.]), tensor([[18.]]))
    """

    def __init__(
        self, network: Network, objective: "Objective", theta: Tensor, chunk: Chunk
    ) -> None:
        self._space, self._narrowed = objective.space, objective.narrowed
        self._widening = objective.widening
        # Sums are of the dtype of the weights, whatever that of the outputs is.
        self._weights = objective.narrowed(theta.detach())
        parameters = {**network.constants, **self._space.unflatten(self._weights)}
        args, kwargs = arguments(objective.inputs_of(chunk))
        inputs = (*args, *kwargs.values())
        known = Recording(network, inputs, frozenset(self._space.names))
        self._steps: list[Step] = []
        with torch.no_grad(), objective.widening():
            for step in known.steps():
                value = step.layer.record([known.tensors[s] for s in step.inputs], parameters)
                if known.keep(step, value):
                    self._steps.append(step)
            self._output, self._depends = known.output, known.depends
            with torch.enable_grad():
                self.outputs = known.tensors[self._output].detach().requires_grad_()
                part = objective.share(self.outputs, chunk)
                with torch_derivatives():
                    self._slope = differentiate(part, self.outputs, create_graph=True)
            found = self._weights.new_empty(1, self._space.size)
            total = Sum(self._views(found))
            gradients: dict[Slot, Tensor | None] = {self._output: self._slope.detach()}
            for step in reversed(self._steps):
                gradient = gradients.pop(step.output, None)
                if gradient is None:  # nothing depends on it
                    # Its layer must still record: `pull` reads what `record_backward` keeps.
                    gradient = torch.zeros_like(known.tensors[step.output])
                below = step.layer.record_backward(gradient, total)
                step.layer.begin()
                self._pass_on(gradients, step, below)
            total.close()
        self.gradient = found[0].to(theta.dtype)
        self.takes_blocks = all(step.layer.takes_blocks for step in self._steps)

    @torch.no_grad()
    def products(
        self,
        vectors: Tensor,
        *,
        bend: Callable[[Tensor], Tensor] | None = None,
        curved: bool = True,
    ) -> Tensor:
        """Return the products [K, P] with the rows of [K, P].

        Args:
            vectors: directions.
            bend: what the loss makes of a direction of the outputs; its own Hessian by default.
            curved: with the curvature of the layers; without, this is Jᵀ B J.
        """
        if len(vectors) > 1 and not self.takes_blocks:
            rows = [self.products(row[None], bend=bend, curved=curved) for row in vectors]
            return torch.cat(rows)
        with self._widening():
            directions = self._views(self._narrowed(vectors))
            pushed: dict[Slot, Tensor | None] = {}
            for step in self._steps:
                given = [pushed.get(slot) for slot in step.inputs]
                pushed[step.output] = step.layer.push(given, directions)
            along = pushed.get(self._output)
            bent = None if along is None else (bend or self._bend_loss)(along)
            # The directions of all places, which nothing below reads: a layer keeps its own.
            del pushed
            found = self._weights.new_empty(len(vectors), self._space.size)
            total = Sum(self._views(found))
            gradients: dict[Slot, Tensor | None] = {self._output: bent}
            for step in reversed(self._steps):
                below = step.layer.pull(gradients.pop(step.output, None), total, curved=curved)
                step.layer.forget()
                self._pass_on(gradients, step, below)
            total.close()
            return found.to(vectors.dtype)

    def _pass_on(
        self,
        gradients: dict[Slot, Tensor | None],
        step: Step,
        below: Sequence[Tensor | None],
    ) -> None:
        """Add what a step passes down to the gradients of the places below it."""
        for slot, part in zip(step.inputs, below, strict=True):
            if slot in self._depends:
                gradients[slot] = added(gradients.get(slot), part)

    def _views(self, vectors: Tensor) -> dict[str, Tensor]:
        parts, count = vectors.split(self._space.sizes, dim=1), len(vectors)
        return {
            name: part.view(count, *shape)
            for name, part, shape in zip(self._space.names, parts, self._space.shapes, strict=True)
        }

    def _bend_loss(self, direction: Tensor) -> Tensor | None:
        """Return ∇²ℓ ẏ with respect to the outputs, for each of the directions [B·K, ...]."""
        if not self._slope.requires_grad:
            return None
        shape = self.outputs.shape
        count = len(direction) // shape[0]
        parts = direction.view(shape[0], count, *shape[1:]).unbind(1)
        with torch_derivatives():
            bent = [
                torch.autograd.grad(self._slope, self.outputs, part, retain_graph=True)[0]
                for part in parts
            ]
        return torch.stack(bent, dim=1).view_as(direction) if count > 1 else bent[0]
