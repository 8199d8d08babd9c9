"""Break the mathematics in seeded places, one at a time, and see which faults no test notices.

`make mutate N=50` goes on where the last run stopped. The common tools start an interpreter for
each mutant, which takes four seconds of imports; here a process that has imported torch is forked,
and the changed module exists in the memory of the fork alone.

Each outcome is a line of .mutation/outcomes.jsonl. A survivor is looked at by a person, who adds
its `verdict` there: equivalent, or closed by which test. The table is made from these lines.
"""

import ast
import hashlib
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
ROOMS = ("objective", "spectrum", "hessian", "flatness", "optim")
OUTCOMES = ROOT / ".mutation" / "outcomes.jsonl"
SOUND = OUTCOMES.with_name("sound.txt")
"""Digests of rooms whose tests passed without a fault."""
REPORT = ROOT / "benchmarks" / "results" / "mutation.md"
# Their processes are started anew and do not see the changed module.
NOT_SEEN = ("tests/optim/test_data_parallel.py",)

_PAIRS = (
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE)),
    *((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or)),
)
_ONE_WAY = {ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.MatMult: ast.Mult}
_SWAPS: dict[Any, Any] = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}, **_ONE_WAY}


class Mutator(ast.NodeTransformer):
    r"""Changes the place of a given number, or counts the places where it is -1.

    >>> tree = ast.parse("def f(x):\n    return x + 1 if not x > 2 else -x")
    >>> counter = Mutator(-1)
    >>> _ = counter.visit(tree)
    >>> counter.seen
    7
    >>> print(ast.unparse(Mutator(1).visit(ast.parse("def f(x):\n    return x + 1"))))
    def f(x):
        return x + 2
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self.seen, self.line = wanted, 0, 0

    def _here(self, node: ast.AST) -> bool:
        self.seen += 1
        found = self.seen - 1 == self.wanted
        if found:
            self.line = getattr(node, "lineno", 0)
        return found

    def visit(self, node: ast.AST) -> Any:
        """Leave docstrings, annotations, messages of errors and what type checkers read alone."""
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arg):
            return node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return node
        if isinstance(node, ast.AnnAssign):
            node.value = self.visit(node.value) if node.value else None
            return node
        if isinstance(node, ast.FunctionDef):
            node.args = self.visit(node.args)
            node.body = [self.visit(statement) for statement in node.body]
            return node
        return super().visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Swap an operation for its counterpart."""
        if type(node.op) in _SWAPS and self._here(node):
            node.op = _SWAPS[type(node.op)]()
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """Swap it, too."""
        if type(node.op) in _SWAPS and self._here(node):
            node.op = _SWAPS[type(node.op)]()
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Swap `and` and `or`."""
        if self._here(node):
            node.op = _SWAPS[type(node.op)]()
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Move the boundary, or turn an equality round."""
        for place, operation in enumerate(node.ops):
            if self._here(node):
                node.ops[place] = _SWAPS[type(operation)]()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Drop a minus or a `not`."""
        if isinstance(node.op, ast.USub | ast.Not) and self._here(node):
            return self.generic_visit(node.operand)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """Exchange the two values."""
        if self._here(node):
            node.body, node.orelse = node.orelse, node.body
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Add 1 to a number, and turn a truth value round."""
        if isinstance(node.value, bool):
            return ast.Constant(not node.value) if self._here(node) else node
        if isinstance(node.value, int | float) and self._here(node):
            return ast.Constant(node.value + 1)
        return node


def mutated(source: str, number: int) -> tuple[str, int]:
    """Return a module with the place of a number changed, and its line."""
    mutator = Mutator(number)
    tree = ast.fix_missing_locations(mutator.visit(ast.parse(source)))
    return ast.unparse(tree), mutator.line


def count_places(source: str) -> int:
    """Return how many places of a module can be changed."""
    counter = Mutator(-1)
    counter.visit(ast.parse(source))
    return counter.seen


def places(seed: int) -> Iterator[tuple[Path, int]]:
    """Yield module and number of all places of all rooms in a seeded order."""
    files = [path for room in ROOMS for path in sorted((ROOT / "flatkit" / room).rglob("*.py"))]
    every = [(path, number) for path in files for number in range(count_places(path.read_text()))]
    random.Random(seed).shuffle(every)
    yield from every


def checks_of(path: Path) -> list[str]:
    """Return the doctests of a module and the tests of its room, the likeliest first."""
    room = path.relative_to(ROOT / "flatkit").parts[0]
    tests = (ROOT / "tests" / room).glob("test_*.py")
    tests = sorted(tests, key=lambda test: (path.stem not in test.stem, test.stat().st_size))
    found = [str(test.relative_to(ROOT)) for test in tests]
    return [str(path.relative_to(ROOT)), *(test for test in found if test not in NOT_SEEN)]


def check_sound(path: Path, seconds: int) -> None:
    """Refuse to go on where the tests of a room fail without a fault."""
    room = path.relative_to(ROOT / "flatkit").parts[0]
    files = [f for top in ("flatkit", "tests") for f in sorted((ROOT / top / room).rglob("*.py"))]
    digest = _digest("".join(file.read_text("utf-8") for file in files))
    known = SOUND.read_text("utf-8").split() if SOUND.exists() else []
    if digest in known:
        return
    if outcome_of(path, path.read_text("utf-8"), seconds) != "survived":
        raise click.ClickException(f"the tests of {room} fail, or take too long, as they are")
    SOUND.write_text("\n".join([*known, digest]), encoding="utf-8")


def outcome_of(path: Path, source: str, seconds: int) -> str:
    """Return whether the tests notice that a module is another: killed, survived or endless."""
    child = os.fork()
    if child == 0:
        _test(path, source, seconds)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "endless"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _test(path: Path, source: str, seconds: int) -> None:
    """Run the tests in this process, the module replaced, and end it."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    plain = SourceFileLoader.get_code

    def code_of(self: SourceFileLoader, fullname: str) -> Any:
        if Path(self.path) == path:
            return compile(source, str(path), "exec")
        return plain(self, fullname)

    SourceFileLoader.get_code = code_of  # type: ignore[method-assign]
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    code = 2
    try:
        # Its rewriting of assertions would read the module anew, past what stands in its place.
        options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
        code = pytest.main([*options, *checks_of(path)])
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
@click.option("--minutes", default=600.0, help="Begin no further mutant after so long.")
@click.option("--seconds", default=600, show_default=True, help="CPU time of a mutant at most.")
@click.option("--seed", default=0, show_default=True, help="Of the order of all places.")
def main(count: int, minutes: float, seconds: int, seed: int) -> None:
    """Try the next mutants and write the table."""
    import scipy.linalg  # imported once, for all forks
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    os.chdir(ROOT)
    OUTCOMES.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    done = {(row["module"], row["digest"], row["place"]) for row in _known()}
    for path, number in places(seed):
        if count == 0 or time.monotonic() - started > 60 * minutes:
            break
        source, name = path.read_text("utf-8"), str(path.relative_to(ROOT))
        if (name, _digest(source), number) in done:
            continue
        check_sound(path, seconds)
        changed, line = mutated(source, number)
        before = time.monotonic()
        was, became = _difference(source, changed)
        row = {"module": name, "digest": _digest(source), "place": number, "line": line}
        row |= {"was": was, "became": became, "outcome": outcome_of(path, changed, seconds)}
        row |= {"seconds": round(time.monotonic() - before, 1)}
        with OUTCOMES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        click.echo(f"{row['outcome']}: {name}:{line}: {row['was']} -> {row['became']}")
        count -= 1
    write_report(seed)


def _difference(source: str, changed: str) -> tuple[str, str]:
    """Return what differs with some characters around it, as it was and as it became."""
    plain = ast.unparse(ast.parse(source))
    first = _alike(plain, changed)
    last = _alike(plain[first:][::-1], changed[first:][::-1])
    start = max(plain.rfind("\n", 0, first) + 1, first - 40)
    return tuple(  # type: ignore[return-value]
        " ".join((text[start : len(text) - last] + text[len(text) - last :][:25]).split())
        for text in (plain, changed)
    )


def _alike(one: str, other: str) -> int:
    """Return how many characters at the beginning are alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def write_report(seed: int) -> None:
    """Write the table of what survived."""
    import platform

    import torch

    rows = _known()
    lines = [
        "# Faults that no test noticed",
        "",
        "`make mutate` changes one operator, comparison, constant or condition of "
        f"{', '.join(ROOMS)} at a time, in an order seeded by {seed}, and runs the doctests of the "
        "module and the tests of its room. `endless`: stopped after its CPU time, which counts as "
        "noticed.",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; {sum(row['seconds'] for row in rows) / 60:.0f} minutes in all.",
        "",
        "| room | tried | killed | endless | survived |",
        "|---|---|---|---|---|",
    ]
    for room in ROOMS:
        own = [row["outcome"] for row in rows if row["module"].split("/")[1] == room]
        numbers = [str(own.count(name)) for name in ("killed", "endless", "survived")]
        lines.append(f"| {room} | {len(own)} | {' | '.join(numbers)} |")
    lines += ["", "## Survivors", "", "| where | was | became | verdict |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["module"], row["line"])):
        if row["outcome"] == "survived":
            was, became = (row[name].replace("|", "\\|") for name in ("was", "became"))
            where = f"{row['module'].removeprefix('flatkit/')}:{row['line']}"
            lines.append(f"| {where} | `{was}` | `{became}` | {row.get('verdict', 'open')} |")
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
