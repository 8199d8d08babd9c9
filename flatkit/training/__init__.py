"""Training with SGD, AdamW, SAM and GAM, resumable bit for bit.

Settings and history load without torch; `train` brings it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
