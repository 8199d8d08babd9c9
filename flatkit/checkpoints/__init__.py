"""Checkpoints of any origin: read without running anything in them; flatkit's own are written.

Names load lazily: what a file holds can be listed without importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
