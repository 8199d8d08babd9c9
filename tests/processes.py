"""Processes that tests start and kill: forked off a server that has imported torch once.

A fresh interpreter takes three seconds for its imports, a fork some hundredths.
"""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatkit import Report, analyze, checkpoints
from flatkit.comparison import workers
from flatkit.files import Store
from flatkit.hessian import HessianOperator
from flatkit.landscape import LandscapeJob, LandscapeSettings, measure_into, plan_landscapes
from flatkit.measures.watching import Silent, Watcher
from flatkit.objective import Objective, kept
from flatkit.objective.digest import digest_of
from flatkit.objective.kept import Passes
from flatkit.spectrum.lanczos import lanczos
from flatkit.studies import study as studies
from flatkit.studies.settings import Study
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import main

# As the command sets it before it imports torch, which reads it then: else a rank that outlives the
# first by a moment prints a stack of frames.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
CONTEXT = multiprocessing.get_context("forkserver")
# Optimizers import torch._dynamo when the first is made.
CONTEXT.set_forkserver_preload([__name__, "sklearn.datasets", "torch._dynamo"])
torch.set_num_threads(1)  # threads do not survive a fork
_HANGS = 900
"""Seconds after which a process hangs: on a busy machine three ranks took more than 300."""


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start a function of this module in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def finish(processes: Sequence[ForkServerProcess]) -> None:
    """Wait until all have ended well; none goes on after one that has not."""
    try:
        for number, process in enumerate(processes):
            process.join(timeout=_HANGS)
            # Those that are killed below make the others complain of a closed connection.
            assert process.exitcode is not None, f"process {number} is not done in {_HANGS} seconds"
            assert process.exitcode == 0, f"process {number} ended with {process.exitcode}"
    finally:
        for process in processes:
            process.kill()


def command(
    arguments: Sequence[str], said: str, folder: str = ".", encoding: str = "utf-8"
) -> None:
    """Be the command in a folder; its streams have an encoding and go to files that begin alike."""
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding=encoding)
    sys.argv = ["flatkit", *arguments]
    code = main(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve_calls(asked: Connection, answered: Connection, errors: Connection) -> None:
    """Be a process of `flatkit.comparison.workers`, which has these streams."""
    for number, stream in enumerate((asked, answered, errors)):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0)  # multiprocessing has closed it
    workers.serve()


def store_until_killed(path: Path, identity: dict[str, Any], count: int) -> None:
    """Keep so many records and blobs, and kill the process with the store open."""
    with Store(path, identity) as store:
        for number in range(count):
            store.put("record", str(number), number / 3)
            store.put_blob(str(number), bytes([number]) * 10_000)
        os.kill(os.getpid(), signal.SIGKILL)


def small_task() -> Objective:
    """Return the mean loss of a network of 131 weights over 40 samples, in four chunks."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    data = (torch.randn(40, 12, generator=draws), torch.randint(0, 3, (40,), generator=draws))
    return Objective(model, "cross_entropy", data, chunk_size=10, examine=False)


def eigenvalue_until_killed(path: Path, fatal: int) -> None:
    """Search an eigenvalue with every pass kept, and kill the process in product `fatal`."""
    products, prepared = 0, HessianOperator._prepared

    def count(self: HessianOperator, *arguments: Any, **options: Any) -> Any:
        nonlocal products
        products += 1
        if products == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepared(self, *arguments, **options)

    HessianOperator._prepared = count
    objective = small_task()
    with Store(path, {}) as store:
        objective.kept = Passes(store, digest_of(objective), least_seconds=0)
        lanczos(HessianOperator(objective), generator=torch.Generator().manual_seed(0))


def train_until_killed(settings: dict[str, Any], out: Path, fatal: int) -> None:
    """Train as a user would, and kill the process before the forward pass number `fatal`."""
    seen = 0

    def count(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal seen
        seen += isinstance(module, torch.nn.Flatten)
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.nn.modules.module.register_module_forward_pre_hook(count)
    train(TrainingConfig(**settings), out)


def study_until_killed(asked: Study, out: Path, fatal: int) -> None:
    """Carry a study out in this process, and kill it before the call number `fatal` of a layer."""
    seen = 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal seen
        seen += isinstance(module, nn.Linear)
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def here(self: Any, function: Any, calls: Any) -> Generator[tuple[int, Any]]:
        for number, arguments in enumerate(calls):
            yield number, function(*arguments)

    studies.Processes.map = here  # type: ignore[method-assign]
    nn.modules.module.register_module_forward_pre_hook(count)
    studies.study(asked, out, jobs=1, progress=False)


def measure_until_killed(checkpoint: Path, out: Path, settings: dict[str, Any], fatal: int) -> None:
    """Measure as the command does, and kill the process at the end of pass number `fatal`."""
    passes, values = 0, LandscapeJob.values_at

    def count(self: LandscapeJob, part: Any) -> Any:
        nonlocal passes
        passes += 1
        found = values(self, part)
        if passes == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    LandscapeJob.values_at = count
    (job,) = plan_landscapes([checkpoints.load(checkpoint)], LandscapeSettings(**settings))
    measure_into(out, job)


def landscape_until_killed(arguments: list[str], stuck: Event) -> None:
    """Run the command, and wait in the third pass until somebody kills it."""
    passes, values = 0, LandscapeJob.values_at

    def wait(self: LandscapeJob, part: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 3:
            stuck.set()
            signal.pause()
        return values(self, part)

    LandscapeJob.values_at = wait
    main(["landscape", *arguments])


def analyze_until_killed(path: Path, pieces: int) -> None:
    """Analyze a small network with a journal, and kill the process after so many pieces of work."""

    class Killing(Silent):
        left = pieces

        def look(self, schedule: Any) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    analyze_with_journal(path, Killing())


def analyze_with_journal(path: Path | None, watcher: Watcher | bool = False, **more: Any) -> Report:
    """Analyze a small network; every pass counts as dear."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    data = (torch.randn(40, 12, generator=draws), torch.randint(0, 3, (40,), generator=draws))
    dear, kept.LEAST_SECONDS = kept.LEAST_SECONDS, 0.0
    try:
        settings = {"budget": 40.0, "rho": [0.1], "slice_points": 5, "plane_points": 5, **more}
        given: dict[str, Any] = {"progress": watcher, "journal": path, **settings}
        return analyze(model, "cross_entropy", data, **given)
    finally:
        kept.LEAST_SECONDS = dear
