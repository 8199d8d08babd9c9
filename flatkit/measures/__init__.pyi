from .base import Measure as Measure
from .reading import Reading as Reading
from .registry import MEASURES as MEASURES
from .report import analyze as analyze
from .settings import AnalysisSettings as AnalysisSettings

__all__: list[str]
