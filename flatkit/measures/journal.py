"""The journal of an analysis: what it has finished, kept beside its report, and of what that is."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flatkit.files.store import Store
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.digest import digest_of, joined, parts_of
from flatkit.objective.function import Objective
from flatkit.objective.kept import Passes, digest_of_tensors
from flatkit.version import __version__

if TYPE_CHECKING:
    from flatkit.measures.session import Session

FREE = ("measures", "added", "budget", "time", "full", "search_budget")
"""Settings that may change from one run to the next: what is measured, and how much of it."""


@contextmanager
def journal(
    path: str | Path,
    objective: Objective,
    settings: AnalysisSettings,
    *,
    fresh: bool = False,
) -> Generator[Store, None, None]:
    """Keep the dear passes of an analysis in a file; one that goes on replays them.

    Passes of `objective` and of its blocks are found again. Other objectives of the same analysis
    (test data, further draws of the samples) join by `keep_passes`. Where nothing can be written
    any more, the analysis goes on, and `Store.failed` says why.

    Args:
        path: of the journal.
        objective: L over the training samples.
        settings: of the analysis.
        fresh: forget what is there.

    Raises:
        ResultError: the journal is of other weights, samples or settings (which is said), damaged,
            or the file is none.
        OutputError: another process writes it, or it cannot be written.

    >>> import tempfile
    >>> from flatkit.objective import Task
    >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
    >>> task, settings = Task(torch.nn.Linear(1, 1), "mse", data), AnalysisSettings()
    >>> path = Path(tempfile.mkdtemp()) / "report.json.journal"
    >>> with journal(path, task.objective(settings), settings) as store:
    ...     store.put("result", "loss", 0.5)
    >>> with journal(path, task.objective(settings), settings) as store:
    ...     store.get("result", "loss")
    0.5
    >>> with torch.no_grad():
    ...     _ = task.model.bias.add_(1)
    >>> with journal(path, task.objective(settings), settings) as store:
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.ResultError: .../report.json.journal is of another job (the weights); ...
    """
    parts = parts_of(objective)
    advice = "give the same as then, begin anew with `fresh`, or name another report"
    found = identity(objective, settings, parts)
    with Store(path, found, fresh=fresh, advice=advice) as store:
        # Under the digest of the function alone: at another point of it other passes are found.
        objective.kept = Passes(store, joined(parts), ranks=objective.ranks)
        yield store


@contextmanager
def kept(
    session: "Session", path: str | Path, *, fresh: bool = False
) -> Generator[Store | None, None, None]:
    """Keep the dear passes of all objectives of a session in a file.

    Of several ranks the first writes it, and tells the others what it holds; these get None.

    However the analysis ends, by a failure too, the file stays only if it holds the answer of such
    a pass: what was quick (as everything of a small network) is computed sooner than it is kept.

    Args:
        session: which has computed nothing yet.
        path: of the journal.
        fresh: forget what is there.

    Raises:
        ResultError: as `journal`.
        OutputError: as `journal`.
    """
    if not session.objective.ranks.is_first:
        session.keep = partial(keep_passes, store=None)
        session.keep(session.objective)
        yield None
        return
    with journal(path, session.objective, session.settings, fresh=fresh) as store:
        session.keep = partial(keep_passes, store=store)
        try:
            yield store
        finally:
            # Also after a failure: an empty journal would
            # be refused next time for a changed setting.
            if not store.has_blobs:
                store.remove()


def keep_passes(objective: Objective, store: Store | None) -> Objective:
    """Return an objective, whose dear passes are kept in a journal from now on."""
    function = "" if store is None else digest_of(objective)
    objective.kept = Passes(store, function, ranks=objective.ranks)
    return objective


def identity(
    objective: Objective, settings: AnalysisSettings, parts: dict[str, str]
) -> dict[str, Any]:
    """Return what the numbers of an analysis depend on, ready for JSON.

    Args:
        objective: L over the training samples.
        settings: all of them but `FREE` count.
        parts: digests of what L depends on, by `parts_of`.
    """
    return {
        # Every setting but the free ones, so that a new one counts without an edit here.
        **{name: value for name, value in settings.to_json().items() if name not in FREE},
        "the weights": digest_of_tensors("", [objective.theta]),
        "the samples": parts["samples"],
        "the model or its buffers": parts["model"],
        "the loss": parts["loss"],
        "values that the model or the loss holds": parts["values"],
        "the code of the model or the loss": parts["code"],
        "how the loss is computed": parts["objective"],
        "flatkit": __version__,
        # Another version rounds otherwise, and the run would not be the same again.
        "torch": torch.__version__,
    }
