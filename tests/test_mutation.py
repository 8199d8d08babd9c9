"""The places that `make mutate` changes, and what it leaves alone."""

import ast
import subprocess
import sys

from benchmarks.mutation import ROOT, checks_of, count_places, mutated, places

SOURCE = '''
"""1 + 1"""
def step(x: int = 3) -> float:
    if x < 2 and not x == 1:
        raise ValueError(f"{x + 1}")
    return -x * 0.5 if x else True
'''


def test_every_place_is_changed_once_and_nothing_else():
    plain = ast.unparse(ast.parse(SOURCE))
    found = [mutated(SOURCE, number)[0] for number in range(count_places(SOURCE))]
    changes = [
        ("int=3", "int=4"),
        ("and (not", "or not"),
        ("x < 2", "x <= 2"),
        ("x < 2", "x < 3"),
        ("(not x == 1)", "x == 1"),
        ("x == 1", "x != 1"),
        ("x == 1", "x == 2"),
        ("-x * 0.5 if x else True", "True if x else -x * 0.5"),
        ("x * 0.5", "x / 0.5"),
        ("-x *", "x *"),
        ("0.5", "1.5"),
        ("True", "False"),
    ]
    expected = [plain.replace(old, new) for old, new in changes]
    expected[1] = expected[1].replace("x == 1)", "x == 1")
    assert found == expected  # the docstring, the annotations and the message are as they were


def test_the_order_is_seeded_and_each_module_has_tests():
    first, again = ([next(order) for _ in range(1)] for order in (places(0), places(0)))
    assert first == again
    path = ROOT / "flatkit" / "spectrum" / "lanczos.py"
    assert checks_of(path)[0] == "flatkit/spectrum/lanczos.py"
    assert "tests/spectrum/test_told_the_truth.py" in checks_of(path)


def test_a_fault_in_a_module_is_noticed_and_none_is_not():
    """In a process of its own, which has not imported the module yet."""
    code = (
        "import os, sys\n"
        "from benchmarks import mutation\n"
        "path = mutation.ROOT / 'flatkit' / 'objective' / 'losses.py'\n"
        "mutation.checks_of = lambda path: ['flatkit/objective/losses.py']\n"
        "source = path.read_text('utf-8')\n"
        "changed = source.replace('class CrossEntropy', 'class Wrong' , 1)\n"
        "print(*(mutation.outcome_of(path, text, 60) for text in (source, changed)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["survived", "killed"]
