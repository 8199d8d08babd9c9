"""Run the chosen measures on a task or a checkpoint.

Names load lazily: the settings can be checked without importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
