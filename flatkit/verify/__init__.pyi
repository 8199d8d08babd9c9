from .ladder import verify as verify
from .ladder import verify_series as verify_series

__all__: list[str]
