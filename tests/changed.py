"""Print the tests of what changed since the merge base with main: `make quick` runs them.

A room's tests are `tests/ROOM` (or `tests/test_ROOM.py`) and the doctests of its modules. What
depends on the room is left to `make test`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALWAYS = ["flatkit", "tests/test_architecture.py"]
"""The doctests of all rooms, and the floors."""


def tests_of(path: str) -> str | None:
    """Return the tests of a changed file, relative to the root; None if it has none of its own.

    >>> tests_of("flatkit/spectrum/lanczos.py"), tests_of("tests/optim/test_sam.py")
    ('tests/spectrum', 'tests/optim/test_sam.py')
    """
    parts = Path(path).with_suffix("").parts
    if parts[0] == "tests" and Path(path).name.startswith("test_"):
        return path
    if parts[0] == "cli":
        return "tests/cli"
    if parts[0] == "flatkit" and len(parts) > 1:
        candidates = [f"tests/{parts[1]}", f"tests/test_{parts[1]}.py"]
        return next((name for name in candidates if (ROOT / name).exists()), None)
    return None


def changed_files() -> list[str]:
    """Return the files that differ from the merge base with main, also the uncommitted ones."""
    base = _git("merge-base", "HEAD", "main") or ["HEAD"]
    return _git("diff", "--name-only", base[0]) + _git("ls-files", "--others", "--exclude-standard")


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def main() -> None:
    """Print paths for pytest, those inside another one left out."""
    found = {test for path in changed_files() if (test := tests_of(path))}
    found = {test for test in found if (ROOT / test).exists()}
    inside = {test for test in found if any(str(p) in found for p in Path(test).parents)}
    print(*ALWAYS, *sorted(found - inside))


if __name__ == "__main__":
    sys.exit(main())
