"""The places of the mathematics that `make mutate` changes, and the lines where a change shows."""

import ast
import random
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROOMS = ("objective", "spectrum", "hessian", "flatness", "optim")

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
    """Yield module and number of all places: the rooms in turn, each in a seeded order."""
    rooms: list[list[tuple[Path, int]]] = []
    for room in ROOMS:
        files = sorted((ROOT / "flatkit" / room).rglob("*.py"))
        own = [(path, n) for path in files for n in range(count_places(path.read_text("utf-8")))]
        random.Random(seed).shuffle(own)
        rooms.append(own)
    yield from (place for place in chain(*zip_longest(*rooms)) if place)


def lines_of(source: str, line: int) -> range:
    r"""Return the lines that run where a change at a line shows.

    They are those of its statement, and for the default of an argument the function. There are none
    for what a module or a class computes, as it shows wherever it is used.

    >>> source = "A = 1\ndef f(x=2):\n    if x > 1:\n        return x\n    return -x"
    >>> [list(lines_of(source, line)) for line in (1, 2, 3, 5)]
    [[], [3, 4, 5], [3], [5]]
    """
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in statements if node.lineno <= line <= (node.end_lineno or 0)]
    inner = around[-1]  # the walk goes from outside to inside
    if isinstance(inner, ast.FunctionDef):
        return range(inner.body[0].lineno, (inner.end_lineno or 0) + 1)
    if not any(isinstance(node, ast.FunctionDef) for node in around):
        return range(0)
    body = getattr(inner, "body", None)
    return range(inner.lineno, body[0].lineno if body else (inner.end_lineno or 0) + 1)


def difference(source: str, changed: str) -> tuple[str, str]:
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
