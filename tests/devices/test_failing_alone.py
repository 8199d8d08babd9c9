"""A rank that fails alone outside of a pass, where the others wait for it or compute on."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from flatkit.devices import words
from flatkit.devices.joining import joined
from flatkit.devices.ranks import Ranks
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit.objective import Objective
from flatkit.objective.model.sharded import ShardedModel
from flatkit_cli import processes
from flatkit_cli.main import main
from tests.devices import sharded_models
from tests.devices.ports import free_port
from tests.devices.ranks_worker import CHUNK, data, network
from tests.processes import start

ALONE: dict[str, tuple[int, BaseException]] = {
    "data": (1, ValueError("no such file")),
    "memory": (1, MemoryError()),
    "exit": (1, SystemExit(3)),
    "first": (0, OSError("disk full")),
    "handed out": (1, ValueError("no such point")),
}
"""Which rank fails alone, and by what."""


def measure(rank: int, name: str) -> Any:
    """Measure in a block that one rank leaves by an error; return what is known after."""
    bad, error = ALONE.get(name, (None, None))
    with joined() as ranks:
        objective = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK)
        if rank == bad and error is not None:
            raise error
        if name == "handed out":
            list(ranks.hand_out(10, lambda number: time.sleep(0.05)))
            raise AssertionError("a point of the other rank was not waited for")
        found = [objective.loss()]
        while bad is not None:  # until the connection breaks
            found.append(objective.loss())
    return objective, found[0]


def fail(rank: int, port: int, folder: Path) -> None:
    """Fail alone in one block after the other, and at last be gone from one."""
    torch.set_num_threads(1)
    words._LOOK, words._BREAKS = 0.2, 1.0
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.dup2(os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
    distributed.init_process_group("gloo")
    said: dict[str, Any] = {}
    for name in ALONE:
        begin = time.monotonic()
        try:
            measure(rank, name)
        except BaseException as error:
            said[name] = [f"{type(error).__name__}: {error}", time.monotonic() - begin]
        distributed.barrier()
    objective, said["well"] = measure(rank, "well")
    try:
        objective.loss()
    except FlatkitError as error:
        said["parted"] = str(error)
    with joined() as ranks:
        said["share"] = partial_share(ranks) if sharded_models.KINDS else torch.full((3,), 1.5)
        torch.save(said, folder / f"{rank}.said")
        if rank == 1:
            os._exit(7)
        try:
            list(ranks.hand_out(10, lambda number: time.sleep(0.05)))
        except FlatkitError as error:
            said["died"] = f"{type(error).__name__}: {error}"
        torch.save(said, folder / f"{rank}.said")
        time.sleep(60)  # nothing that another rank would have a part in


def partial_share(ranks: Ranks) -> torch.Tensor:
    """Return what a rank has of a gradient that all still have to add up."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    mesh = init_device_mesh("cpu", (2,))
    gradient = DTensor.from_local(torch.full((3,), 0.5 + 0.5 * ranks.rank), mesh, [Partial()])
    parameter: Any = SimpleNamespace(
        shape=(3,), dtype=torch.float32, device=torch.device("cpu"), grad=gradient
    )
    holder: Any = SimpleNamespace(ranks=ranks)
    return ShardedModel._share_of(holder, parameter)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two ranks said, the exit codes, and the last lines on stderr."""
    folder, port = tmp_path_factory.mktemp("alone"), free_port()
    ranks = [start(fail, rank, port, folder) for rank in range(2)]
    try:
        for process in ranks:
            process.join(timeout=50)
        codes = [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    said = [torch.load(folder / f"{rank}.said", weights_only=True) for rank in range(2)]
    lines = [(folder / f"{rank}.err").read_text("utf-8").splitlines() for rank in range(2)]
    return [*said, codes, *lines]


@pytest.mark.distributed
@pytest.mark.parametrize("name", ALONE)
def test_where_one_rank_leaves_the_other_raises_and_names_it(ended, name):
    bad, error = ALONE[name]
    kind = type(error).__name__
    own, seconds = ended[bad][name]
    assert own == f"{kind}: {error}" and seconds < 20
    told, seconds = ended[1 - bad][name]
    text = f": {error}" if str(error) else ""
    assert told == f"LostRankError: rank {bad} of 2 failed: {kind}{text}"
    assert seconds < 20


@pytest.mark.distributed
def test_blocks_after_a_failed_one_are_as_before_and_end_with_their_own(ended):
    alone = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK).loss()
    for said in ended[:2]:
        assert said["well"] == pytest.approx(alone, rel=1e-12)
        assert said["parted"].startswith("the ranks have parted")


@pytest.mark.distributed
def test_a_rank_that_dies_is_named_where_points_are_handed_out_and_where_nobody_asks(ended):
    said, _, codes, lines, _ = ended
    lost = "rank 1 of 2 was lost: it died, was killed or ran out of memory"
    assert said["died"] == f"LostRankError: {lost}"
    assert codes == [1, 7]
    assert lines[-1] == f"error: {lost}"


@pytest.mark.distributed
def test_a_gradient_that_all_still_add_up_is_the_share_of_the_first(ended):
    shares = [said["share"] for said in ended[:2]]
    if not sharded_models.KINDS:
        pytest.skip("no DTensor in this torch")
    assert torch.equal(shares[0], torch.full((3,), 1.5))
    assert torch.equal(shares[1], torch.zeros(3))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be the first of two ranks of a launcher; return the folder of its notes."""
    monkeypatch.setenv("FLATKIT_PROCESSES", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return tmp_path


@pytest.mark.parametrize("code", [1, 2, 130])
def test_the_launcher_adds_nothing_to_what_a_rank_has_said(notes, code):
    assert processes._code_said(notes) == 0
    assert processes.as_rank(lambda: code) == code
    (notes / "1").write_text("3")
    (notes / "torch").mkdir()
    assert processes._code_said(notes) == code


def test_a_rank_that_waits_for_the_first_to_speak_has_said_nothing(notes, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    there: list[int] = []
    monkeypatch.setattr(processes.time, "sleep", lambda _: there.append(len(list(notes.iterdir()))))
    for said in ("--rho none", "rank 0 of 2 failed: OSError"):
        assert processes.as_rank(
            lambda said=said: print(f"plan\nerror: {said}", file=sys.stderr) or 1
        )
    assert there == [0, 1] and (notes / "1").exists()
    told = [line for line in capfd.readouterr().err.splitlines() if line != "plan"]
    assert told == ["error: rank 1: --rho none", "error: rank 0 of 2 failed: OSError"]


def test_a_rank_that_is_interrupted_leaves_it_to_the_first_to_say_so(notes, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert processes.as_rank(lambda: 130) == 130
    assert processes._code_said(notes) == 0


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (7, "ended itself with exit code 7"),
        (1, "ended itself"),
        (130, "was interrupted alone"),
        (-11, "was killed by SIGSEGV"),
    ],
)
def test_the_launcher_names_a_rank_that_ended_without_a_word(code, how):
    failures = {1: ProcessFailure(1, os.getpid(), code, "")}
    with pytest.raises(FlatkitError, match=f"^rank 1 of 2 {how}.*The same command goes on"):
        processes._unsaid(ChildFailedError("flatkit", failures), 2)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "error: ended by SIGTERM")],
)
@pytest.mark.parametrize("by_a_rank", [False, True])
def test_a_launcher_that_is_ended_says_so_once_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, number, said, by_a_rank
):
    def ended(config: LaunchConfig, python: str) -> Any:
        def run(*arguments: str) -> None:
            folder = Path(os.environ["FLATKIT_PROCESSES"])
            assert folder.parent == tmp_path and arguments[2:] == ("analyze",)
            if by_a_rank:
                (folder / "0").write_text("130")
            logging.getLogger("torch.distributed").warning("Received a death signal")
            raise SignalException("ended", number)

        return run

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", ended)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes.launch(2, ["analyze"]) == 128 + number
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("" if by_a_rank else said)
    assert printed.err.count("\n") == (0 if by_a_rank else 1)
    assert not list(tmp_path.iterdir()) and "FLATKIT_PROCESSES" not in os.environ
    assert logging.getLogger("torch").isEnabledFor(logging.CRITICAL)


def test_an_error_that_nobody_foresaw_names_the_rank(notes, monkeypatch, capsys):
    def fails(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("flatkit_cli.main.cli.main", fails)
    assert main(["analyze"]) == 1
    assert capsys.readouterr().err.startswith("error: rank 0 of 2 failed: MemoryError: no message")


def store_of_one() -> Any:
    """Return a store within this process."""
    return distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]


def test_a_process_is_missed_where_its_number_means_something_alone():
    """Two containers of one name number their processes each by itself."""
    past = start(print)  # its number is nobody's when it has ended
    past.join()
    store = store_of_one()
    here = words.Words(0, 2, store)
    for machine, missed in ((words._machine(), True), (words._machine() + ", another", False)):
        store.set("process/1", json.dumps([machine, past.pid]))
        with here.watching():
            assert (here.gone() is not None) == missed
            here._places.clear()
            store.set("through/1", b"")


def test_the_first_goes_when_no_other_asks_it_any_more(monkeypatch):
    """Its process may hold the store: asked then, torch prints a stack of frames."""
    monkeypatch.setattr(words, "_LOOK", 0.1)
    store = store_of_one()
    first, other = (words.Words(rank, 2, store) for rank in range(2))
    with other.watching():
        with first.watching():
            pass
        assert store.check(["through/1"])
        other._store = None  # that is, gone


class Gone:
    """A store whose process is gone."""

    def set(self, key: str, value: Any) -> None:
        pass

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("connection refused")


def test_a_rank_whose_launcher_is_gone_ends(monkeypatch):
    """Its connections to the others hold: it would go on alone, and nobody could stop it."""
    monkeypatch.setattr(words, "_LOOK", 0.02)
    monkeypatch.setattr(words, "_BREAKS", 0.02)
    ended: list[str] = []
    monkeypatch.setattr(words, "_end", ended.append)
    here = words.Words(0, 2, Gone())
    with here.watching():
        while not ended:
            time.sleep(0.01)
    assert ended == [here.lost]
    assert ended[0].startswith("the launcher, or ")
    assert here.missing() == ended[0]
    here._places[1] = [words._machine(), 2**22 + 1]  # the largest number of a process, and one
    assert here.missing().startswith("rank 1 of 2 was lost")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "MASTER_ADDR expected"),
        ({"WORLD_SIZE": "two"}, "invalid literal"),
        ({"RANK": "x"}, "x"),
    ],
)
def test_half_an_environment_of_a_launcher_is_refused(monkeypatch, given, said):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **given}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(InvalidArgumentError, match=f"{said}.*; start by torchrun, or unset both"),
        joined(),
    ):
        pass


def test_a_rank_that_the_watch_ends_has_said_why(notes, monkeypatch, capfd):
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    monkeypatch.setattr(words.os, "_exit", lambda code: None)
    words._end("rank 1 of 2\nwas lost")
    assert capfd.readouterr().err == "error: rank 1 of 2 was lost\n"
    assert processes._code_said(notes) == 1
