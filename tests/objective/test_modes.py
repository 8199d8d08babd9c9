"""What flatkit is told of operations by, which should not take longer than these."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flatkit.hessian import memory, work
from flatkit.objective.model import sizing, widening
from flatkit.objective.model.dispatch import leaves_in, map_leaves
from flatkit.objective.proofs import derivative

MODULES = {module.__name__ for module in (memory, work, sizing, widening, derivative)}


def kinds(of: type) -> list[type]:
    return [kind for sub in of.__subclasses__() for kind in (sub, *kinds(sub))]


def test_no_mode_imports_the_compiler_of_torch_at_its_first_operation():
    """torch wraps modes that do not decline, and the wrapper imports it."""
    ours = [kind for kind in kinds(TorchDispatchMode) if kind.__module__.startswith("flatkit.")]
    found = [kind for kind in ours if "__torch_dispatch__" in vars(kind)]
    assert {kind.__module__ for kind in found} == MODULES
    assert not any(hasattr(vars(kind)["__torch_dispatch__"], "__wrapped__") for kind in found)


def test_leaves_are_those_of_torch():
    tree = ([torch.ones(1), (2, None)], {"out": [torch.zeros(2)], "n": 3})
    assert list(map(id, leaves_in(tree))) == list(map(id, tree_leaves(tree)))
    assert map_leaves(str, tree) == tree_map(str, tree)
