from .function import Objective as Objective
from .names import LOSSES as LOSSES
from .passes import Chunk as Chunk
from .passes import Evaluation as Evaluation
from .passes import differentiate as differentiate
from .reading.sample_set import Samples as Samples
from .task import Task as Task

__all__: list[str]
