from .config import TrainingConfig as TrainingConfig
from .history import EpochRow as EpochRow
from .history import read_history as read_history
from .run import TrainingOutcome as TrainingOutcome
from .run import stored_config as stored_config
from .run import train as train
from .run_tracking import RunTracker as RunTracker
from .tracking import CurvatureTracker as CurvatureTracker
from .tracking import TrackedCurvature as TrackedCurvature

__all__: list[str]
