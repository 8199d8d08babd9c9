"""The one door for a model, a loss and data: together a function of one flat vector θ.

Names load lazily: the names of losses need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
