"""Results: values with their error bars, status, settings, cost and provenance; JSON in and out.

Nothing here imports torch, so that saved results can be read and drawn without it.
"""

from flatkit.results.comparison import Comparison, Entry, load_results
from flatkit.results.cost import Cost
from flatkit.results.report import Report, environment
from flatkit.results.result import ErrorKind, Result, Value
from flatkit.results.schema import SCHEMA
from flatkit.results.status import Status

__all__ = [
    "SCHEMA",
    "Comparison",
    "Cost",
    "Entry",
    "ErrorKind",
    "Report",
    "Result",
    "Status",
    "Value",
    "environment",
    "load_results",
]
