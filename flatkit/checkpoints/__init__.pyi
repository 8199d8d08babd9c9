from .checkpoint import Checkpoint as Checkpoint
from .inspection import inspect as inspect
from .loading import load as load
from .native import FORMAT as FORMAT
from .native import save as save
from .sharded import load_parts as load_parts
from .task_file import Parts as Parts
from .task_file import as_task as as_task
from .task_file import assemble as assemble
from .task_file import load_task as load_task

__all__: list[str]
