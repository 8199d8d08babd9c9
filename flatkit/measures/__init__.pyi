from .run import analyze as analyze
from .run import compare as compare
from .settings import MEASURES as MEASURES
from .settings import AnalysisSettings as AnalysisSettings

__all__: list[str]
