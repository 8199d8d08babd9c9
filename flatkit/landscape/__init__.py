"""Loss landscapes: directions, lines and planes, and the surfaces measured on them.

Names load lazily: settings and saved surfaces need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
