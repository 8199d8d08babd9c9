"""What makes a private model one function, the same with gradients and without."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from flatkit.objective.model.weight_norms import settle_weight_norms
from flatkit.objective.proofs.signs import settle_signs
from flatkit.objective.proofs.tables import settle_tables

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules that take another path, of other values at padded places, where nothing of theirs
requires gradients."""
_SPARSE = (nn.Embedding, nn.EmbeddingBag)


def make_one_function(model: nn.Module) -> None:
    """Switch off what computes or differentiates a private model in more than one way.

    Tables whose gradients are not their derivatives, norms of weights whose second derivatives are
    wrong, fused paths of encoders, flags that make gradients sparse, and caches of
    parametrizations, which a caller may have switched on for the whole process.

    Args:
        model: a private copy, changed in place; which of its parameters require gradients says
            nothing any more.

    >>> table = nn.Embedding(3, 2, sparse=True)
    >>> make_one_function(table)
    >>> table.sparse
    False
    """
    settle_tables(model)
    settle_signs(model)
    settle_weight_norms(model)
    for module in list(model.modules()):
        if isinstance(module, _SPARSE):
            module.sparse = False
            module.scale_grad_by_freq = False  # of gradients that then are no derivatives
        if isinstance(module, _FUSED):
            for parameter in module.parameters():
                # Their fused path asks for it: with frozen weights it would be another function.
                parameter.requires_grad_(parameter.is_floating_point())
        if parametrize.is_parametrized(module):
            _compute_always(module)


def has_fused_paths(model: nn.Module) -> bool:
    """Whether a model has modules that under `torch.vmap` would take their other path.

    >>> has_fused_paths(nn.Sequential(nn.Linear(1, 1)))
    False
    """
    return any(isinstance(module, _FUSED) for module in model.modules())


def _compute_always(module: nn.Module) -> None:
    """Let parametrized tensors of a module be computed whenever they are asked for."""
    # A class of its own for each module: `parametrize` shares none either.
    kind = type(module)
    names = vars(module)["_modules"]["parametrizations"]
    properties = {name: _uncached(name, getattr(kind, name)) for name in names}
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **properties})


def _uncached(name: str, given: property) -> property:
    def get(self: nn.Module) -> torch.Tensor:
        return vars(self)["_modules"]["parametrizations"][name]()

    return property(get, given.fset)
