"""Break the mathematics in seeded places, one at a time, and see which faults no test notices.

`make mutate N=50` goes on where the last run stopped. The common tools start an interpreter for
each mutant, which takes four seconds of imports; here a process that has imported torch is forked,
and the changed module exists in the memory of the fork alone.

The tests of a room run once as it is, which records the lines that each of them executes. A mutant
meets only the tests that execute its line, as no other can notice it. Where a value is cached, the
first test that asks for it counts as the only one: such a mutant may survive too easily.

Each outcome is a line of benchmarks/results/mutation.jsonl. A survivor is looked at by a person,
who adds its `verdict` there: equivalent, closed by which new test, or noticed by which of another
room. The table is made from these lines.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.mutants import ROOMS, ROOT, difference, lines_of, mutated, places

OUTCOMES = ROOT / "benchmarks" / "results" / "mutation.jsonl"
RECORDS = ROOT / ".mutation"
REPORT = ROOT / "benchmarks" / "results" / "mutation.md"
# Their processes are started anew and do not see the changed module.
NOT_SEEN = ("tests/optim/test_data_parallel.py",)
# The rewriting of assertions would read a module anew, past what stands in its place. Tests marked
# `long` belong to it: some faults one case of a hundred alone notices.
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "-m", "not slow and not gpu")
KINDS = ("killed", "endless", "survived", "not-run")
# Before the forks, so that none of them has to.
IMPORTED_ONCE = ("hypothesis", "scipy.optimize", "torch._dynamo")
MEMORY = 8 << 30
"""Bytes that a mutant may take: a wrong size must not fill the machine."""


class Recorder:
    """A plugin of pytest that keeps the seconds of each test, and the tests that run each line."""

    def __init__(self, room: str) -> None:
        import coverage

        include = [str(ROOT / "flatkit" / room / "*")]
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=include)
        self.seconds: dict[str, float] = {}
        self.coverage.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Ascribe what fixtures run to the whole file, as they may serve several tests."""
        self.coverage.switch_context(item.nodeid.split("::")[0])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Ascribe what runs from here to the test."""
        self.coverage.switch_context(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Keep the processor time of a test."""
        before = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - before
        return result

    def write(self, file: Path, digest: str) -> None:
        """Write {module: {line: numbers of tests}} and {test: seconds}."""
        self.coverage.stop()
        data, lines = self.coverage.get_data(), {}
        number = {test: n for n, test in enumerate(self.seconds)}
        for name in data.measured_files():
            found = {
                line: sorted({number[test] for test in self._tests(contexts)})
                for line, contexts in data.contexts_by_lineno(name).items()
            }
            lines[str(Path(name).relative_to(ROOT))] = found
        known = {"digest": digest, "lines": lines, "seconds": self.seconds}
        file.write_text(json.dumps(known), encoding="utf-8")

    def _tests(self, contexts: list[str]) -> Iterator[str]:
        for context in filter(None, contexts):
            yield from (test for test in self.seconds if f"{test}::".startswith(f"{context}::"))


class Chosen:
    """A plugin of pytest that leaves the tests of a list, in its order, and names what failed."""

    def __init__(self, tests: list[str], failed: Path) -> None:
        self.rank = {test: n for n, test in enumerate(tests)}
        self.failed = failed

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drop and sort."""
        items[:] = [item for item in items if item.nodeid in self.rank]
        items.sort(key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the name of a test that failed."""
        if report.failed:
            self.failed.write_text(report.nodeid, encoding="utf-8")


def recorded(room: str) -> dict[str, Any]:
    """Return what the tests of a room run, recorded anew where the room or its tests changed."""
    files = [f for top in ("flatkit", "tests") for f in sorted((ROOT / top / room).rglob("*.py"))]
    digest = _digest("".join(file.read_text("utf-8") for file in files))
    store = RECORDS / f"{room}.json"
    if not store.exists() or json.loads(store.read_text("utf-8"))["digest"] != digest:
        tests = [str(f.relative_to(ROOT)) for f in files if f.stem.startswith("test_")]

        def record() -> int:
            recorder = Recorder(room)
            wanted = [f"flatkit/{room}", *(test for test in tests if test not in NOT_SEEN)]
            code = pytest.main([*OPTIONS, *wanted], plugins=[recorder])
            recorder.write(store, digest if code == 0 else "")
            return code

        if forked(record, 3600) != 0:
            raise click.ClickException(f"the tests of {room} fail, or take an hour, as they are")
    return json.loads(store.read_text("utf-8"))


def checks_at(path: Path, line: int, known: dict[str, Any]) -> list[str]:
    """Return the tests that can notice a change at a line, the quickest files first.

    All of the room for what a module or a class computes, those that run the module before others.
    """
    own = known["lines"].get(str(path.relative_to(ROOT)), {})
    lines = lines_of(path.read_text("utf-8"), line)
    anywhere = len(lines) == 0
    seconds: dict[str, float] = known["seconds"]
    names = list(seconds)
    rows = [tests for row, tests in own.items() if anywhere or int(row) in lines]
    reached = {names[number] for tests in rows for number in tests}
    names = [name for name in names if anywhere or name in reached]
    total: dict[str, float] = defaultdict(float)
    for name in names:
        total[name.split("::")[0]] += seconds[name]

    def rank(name: str) -> tuple[Any, ...]:
        file = name.split("::")[0]
        return name not in reached, total[file], file, seconds[name]

    return sorted(names, key=rank)


def outcome_of(path: Path, source: str, tests: list[str], seconds: int) -> tuple[str, str]:
    """Return how tests take a module that is another, and the test that noticed it.

    The outcome is killed, survived, endless, or "not-run" where there is no test.
    """
    if not tests:
        return "not-run", ""
    failed = RECORDS / "failed.txt"
    failed.unlink(missing_ok=True)

    def test() -> int:
        plain = SourceFileLoader.get_code

        def code_of(self: SourceFileLoader, fullname: str) -> Any:
            if Path(self.path) == path:
                return compile(source, str(path), "exec")
            return plain(self, fullname)

        SourceFileLoader.get_code = code_of  # type: ignore[method-assign]
        files = dict.fromkeys(name.split("::")[0] for name in tests)
        return pytest.main([*OPTIONS, *files], plugins=[Chosen(tests, failed)])

    code = forked(test, seconds)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise click.ClickException(f"none of the tests that run {path} was found again")
    by = failed.read_text("utf-8") if failed.exists() else ""
    return {0: "survived", -1: "endless"}.get(code, "killed"), by


def forked(run: Callable[[], int], seconds: int) -> int:
    """Return what a function answers in a fork, in silence; -1 where that takes too long."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return -1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    code = 2
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.dup2(nothing, sys.stderr.fileno())
        code = run()
    finally:
        os._exit(int(code))


def _known() -> list[dict[str, Any]]:
    if not OUTCOMES.exists():
        return []
    return [json.loads(line) for line in OUTCOMES.read_text("utf-8").splitlines()]


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@click.command()
@click.option("--count", default=20, show_default=True, help="Mutants of this run.")
@click.option("--minutes", default=600.0, help="Begin no further mutant after so long (CPU).")
@click.option("--seed", default=0, show_default=True, help="Of the order of all places.")
def main(count: int, minutes: float, seed: int) -> None:
    """Try the next mutants and write the table."""
    import torch

    for name in IMPORTED_ONCE:
        import_module(name)
    torch.set_num_threads(1)  # threads do not survive a fork
    os.chdir(ROOT)
    RECORDS.mkdir(exist_ok=True)
    done = {(row["module"], row["digest"], row["place"]) for row in _known()}
    for path, number in places(seed):
        if count == 0 or _seconds() > 60 * minutes:
            break
        source, name = path.read_text("utf-8"), str(path.relative_to(ROOT))
        if (name, _digest(source), number) in done:
            continue
        row = {"module": name, "digest": _digest(source), "place": number}
        row |= _tried(path, source, number)
        with OUTCOMES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        click.echo(f"{row['outcome']}: {name}:{row['line']}: {row['was']} -> {row['became']}")
        count -= 1
    write_report(seed)


def _tried(path: Path, source: str, number: int) -> dict[str, Any]:
    """Return what was changed and what came of it."""
    known = recorded(path.relative_to(ROOT / "flatkit").parts[0])
    before = _seconds()
    changed, line = mutated(source, number)
    was, became = difference(source, changed)
    tests = checks_at(path, line, known)
    limit = 60 + 3 * sum(known["seconds"][test] for test in tests)
    outcome, by = outcome_of(path, changed, tests, int(limit))
    row = {"line": line, "was": was, "became": became, "outcome": outcome, "by": by}
    return {**row, "tests": len(tests), "seconds": round(_seconds() - before, 1)}


def _seconds() -> float:
    """Return the processor time of the forks that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_report(seed: int) -> None:
    """Write the table of what survived."""
    import platform

    import torch

    rows = _known()
    minutes = sum(row["seconds"] for row in rows) / 60
    own = {room: [row for row in rows if row["module"].split("/")[1] == room] for room in ROOMS}
    columns = ["room", "tried", *KINDS, "noticed", "equivalent", "closed", "now"]
    lines = [
        "# Faults that no test noticed",
        "",
        "`make mutate` changes one operator, comparison, constant or condition of "
        f"{', '.join(ROOMS)} at a time: the rooms take turns, each in an order seeded by {seed}. "
        "It runs those doctests and tests of the room that execute the changed line. `endless` was "
        "stopped after three times the time of its tests and a minute, and counts as noticed; the "
        "line of a `not-run` is executed by no test of its room. An `equivalent` mutant computes "
        "the same, or nothing that flatkit promises; `now` leaves these out and counts as "
        "noticed what is `closed`: by a new test, by one of another room, or as the line went.",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; {minutes:.0f} minutes of one core.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" + "|--:" * (len(columns) - 1) + "|",
        *(_score(room, rows) for room, rows in [*own.items(), ("all", rows)]),
        "",
        "## Survivors",
        "",
        "| where | was | became | verdict |",
        "|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["module"], row["line"])):
        if row["outcome"] in ("survived", "not-run"):
            was, became = (row[name].replace("|", "\\|") for name in ("was", "became"))
            where = f"{row['module'].removeprefix('flatkit/')}:{row['line']}"
            verdict = row.get("verdict", "open")
            verdict = f"(not run) {verdict}" if row["outcome"] == "not-run" else verdict
            lines.append(f"| {where} | `{was}` | `{became}` | {verdict} |")
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _score(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a row of the table: what came of the mutants, and what is left."""
    outcomes = [row["outcome"] for row in rows]
    counts = [outcomes.count(name) for name in KINDS]
    verdicts = [row.get("verdict", "") for row in rows]
    equivalent = sum(verdict.startswith("equivalent") for verdict in verdicts)
    closed = sum(verdict.startswith(("closed", "noticed")) for verdict in verdicts)
    noticed = sum(counts[:2])
    then, now = noticed / max(len(rows), 1), (noticed + closed) / max(len(rows) - equivalent, 1)
    cells = [name, len(rows), *counts, f"{then:.0%}", equivalent, closed, f"{now:.0%}"]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    main()
