"""Curvature and flatness analysis of PyTorch checkpoints.

Public names load lazily, so that drawing a saved result or asking for help does not import torch.
"""

import lazy_loader

from flatkit._moved import register as _register
from flatkit.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_register()
