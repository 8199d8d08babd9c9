"""Whether the theory of flatness holds at a checkpoint: the ladder of radii and its claims."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
