"""The floors of ARCHITECTURE.md, held against the imports of the code."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_TORCH = {
    *("version", "errors", "checks", "files", "results", "registry", "render"),
    *(f"landscape/{name}" for name in ("export", "grids", "journal", "numbers", "refinement")),
    *("landscape/surface", "landscape/settings"),
    *(
        f"measures/{name}"
        for name in ("base", "reading", "registry", "settings", "shared_settings")
    ),
    *(f"comparison/{name}" for name in ("curves", "overlap")),
    "verify/claims",
}
DRAWING = {"matplotlib", "plotly", "seaborn", "rich"}
KNOW_MODULES = {
    "objective",
    "hessian/layers",
    "landscape/chain",
    "models",
    "checkpoints",
    "training",
    "integrations/lightning_callback",
    "measures",
}


@cache
def floors() -> dict[str, int]:
    rows = re.findall(
        r"^\| (\d+) \| ([^|]+) \|", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.M
    )
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}


def sources() -> list[Path]:
    return sorted([*(ROOT / "flatkit").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def room(path: Path) -> str:
    """Return the row of the table that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "flatkit_cli" if parts[0] == "cli" else parts[1]


def is_in(path: Path, rooms: set[str]) -> bool:
    """Return whether a file is one of the rooms or files, or lies in one."""
    name = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("flatkit/")
    return any(name == room or name.startswith(f"{room}/") for room in rooms)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms that a file imports; `from flatkit import Objective` is by the face."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "flatkit_cli":
            found.add("flatkit_cli")
        elif parts[0] == "flatkit" and len(parts) > 1 and parts[1] in floors():
            found.add(parts[1])
    return found


everything = pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))


def test_the_table_is_read_and_names_what_exists():
    rows = floors()
    assert rows["errors"] < rows["checks"] < rows["objective"] < rows["measures"]
    rooms = {room(path) for path in sources()} - {"__init__", "__main__"}
    assert rooms == set(rows)


@everything
def test_modules_import_only_from_lower_floors(path):
    own = room(path)
    if own in {"__init__", "__main__"}:
        return
    rows = floors()
    upward = {other for other in rooms_imported(path) if other != own and rows[other] >= rows[own]}
    assert not upward, f"{own} (floor {rows[own]}) imports {upward}"


@everything
def test_only_the_named_rooms_know_modules_and_drawing(path):
    own, names = room(path), imports(path)
    tops = {name.split(".")[0] for name in names}
    if is_in(path, NO_TORCH):
        assert "torch" not in tops
    if own not in {"render", "flatkit_cli"}:
        assert not tops & DRAWING
    if own != "flatkit_cli" and not is_in(path, KNOW_MODULES):
        assert not {n for n in names if n == "torch.nn" or n.startswith("torch.nn.modules")}


@everything
def test_no_file_is_too_long_or_ill_named(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_MODULE, "split it"


# The house stays small enough to find one's way in: these were 34, 21, 450 and 50 before.
MOST_NAMES, LONGEST_CHAIN, LONGEST_MODULE, LONGEST_BODY = 24, 15, 420, 50


def test_the_top_floor_has_few_names():
    places = (ROOT / "flatkit").iterdir()
    names = {p.stem for p in places if p.suffix in ("", ".py") and not p.stem.startswith("_")}
    assert len(names) <= MOST_NAMES, sorted(names)


def test_imports_run_in_no_circle_and_in_no_long_chain():
    modules = {module_name(path): path for path in sources()}
    imported = {name: imported_modules(path, modules) - {name} for name, path in modules.items()}
    order = graphlib.TopologicalSorter(imported).static_order()  # an error names a circle
    chains: dict[str, list[str]] = {}
    for name in order:
        below = max((chains[other] for other in imported[name]), key=len, default=[])
        chains[name] = [name, *below]
    longest = max((c for n, c in chains.items() if n.startswith("flatkit.")), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "cli" else parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: Iterable[str]) -> set[str]:
    """Return what is imported when a module is: not in functions, not for type checkers."""
    found: set[str] = set()
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found & set(modules)


@everything
def test_no_function_is_too_long(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert lines <= LONGEST_BODY, f"{node.name} has {lines} lines"


@pytest.mark.parametrize(
    "statement",
    [
        "import flatkit, flatkit.results, flatkit.registry, flatkit.render",
        "from flatkit.measures import MEASURES; assert all(MEASURES.values())",
        "import flatkit_cli.main; flatkit_cli.main.main(['--help'])",
        *(
            f"import flatkit_cli.main; flatkit_cli.main.main(['{command}', '--help'])"
            for command in (
                "analyze",
                "compare",
                "demo",
                "info",
                "landscape",
                "plot",
                "track",
                "train",
                "verify",
            )
        ),
    ],
)
def test_help_and_saved_results_do_not_import_torch(statement):
    code = f"import sys; sys.path[:0] = ['cli']; {statement}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_unpickles_more_than_weights():
    for path in sources():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", path
            assert called not in {"pickle.load", "pickle.loads", "eval", "exec"}, path
            assert not called.endswith("Unpickler"), path


def test_code_that_a_user_names_by_its_file_runs_in_task_files_alone():
    runs = {"exec_module", "spec_from_file_location", "run_path", "SourceFileLoader"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in runs
    }
    assert found == {"flatkit/checkpoints/task_file.py"}
