"""Results in, tables and pictures out; never torch.

Names load lazily, so that a table does not pay for matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
