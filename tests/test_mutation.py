"""The places that `make mutate` changes, and what it leaves alone."""

import ast
import os
import subprocess
import sys

from benchmarks.mutants import ROOMS, ROOT, count_places, lines_of, mutated, places
from benchmarks.mutation import checks_at

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


def test_the_rooms_take_turns_in_a_seeded_order():
    first, again = ([next(order) for order in [places(0)] * 10] for _ in range(2))
    assert first == again
    rooms = [path.relative_to(ROOT / "flatkit").parts[0] for path, _ in first]
    assert rooms == list(ROOMS) * 2


def test_a_change_shows_where_its_statement_runs_and_a_default_in_the_function():
    lines = [list(lines_of(SOURCE, line)) for line in (3, 4, 5, 6)]
    assert lines == [[4, 5, 6], [4], [5], [6]]
    assert list(lines_of("A = 1\nclass B:\n    c = 2", 1)) == []
    assert list(lines_of("A = 1\nclass B:\n    c = 2", 3)) == []


def test_a_change_meets_the_tests_that_run_its_line_the_quickest_files_first():
    path = ROOT / "flatkit" / "objective" / "losses.py"
    seconds = {"a::1": 9.0, "a::2": 1.0, "b::1": 3.0, "c::1": 1.0}
    source = path.read_text("utf-8").splitlines()
    inside = next(n for n, text in enumerate(source, start=1) if text.startswith("        return"))
    outside = next(n for n, text in enumerate(source, start=1) if text.startswith("class "))
    known = {"seconds": seconds, "lines": {"flatkit/objective/losses.py": {str(inside): [0, 1, 2]}}}
    assert checks_at(path, inside, known) == ["b::1", "a::2", "a::1"]
    assert checks_at(path, outside, known) == ["b::1", "a::2", "a::1", "c::1"]
    assert checks_at(path, inside, {"seconds": seconds, "lines": {}}) == []


def test_a_fault_is_noticed_by_the_tests_that_were_seen_to_run_its_line(tmp_path):
    """In a process of its own, which has not imported the package yet."""
    files = {
        "flatkit/__init__.py": "",
        "flatkit/toy/one.py": "def f(x, y=2):\n    if x:\n        return x + y\n    return x - 1\n",
        "tests/toy/test_one.py": (
            "from flatkit.toy.one import f\n"
            "def test_sum():\n    assert f(1) == 3\n"
            "def test_wide():\n    assert f(1, 2) < 9\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = (
        "from pathlib import Path\n"
        "from benchmarks import mutation\n"
        "from benchmarks.mutants import count_places\n"
        "mutation.ROOT = Path.cwd()\n"
        "mutation.RECORDS = mutation.ROOT\n"
        "path = mutation.ROOT / 'flatkit' / 'toy' / 'one.py'\n"
        "known = mutation.recorded('toy')\n"
        "for number in range(count_places(path.read_text())):\n"
        "    row = mutation._tried(path, path.read_text(), number)\n"
        "    print(row['line'], row['outcome'], row['tests'], row['by'].split('::')[-1], sep=',')\n"
    )
    path = f"{tmp_path}:{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = ["1,killed,2,test_sum", "3,killed,2,test_sum", "4,not-run,0,", "4,not-run,0,"]
    assert done.stdout.split() == outcomes
