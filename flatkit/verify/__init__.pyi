from .claims import verify as verify
from .claims import verify_series as verify_series

__all__: list[str]
