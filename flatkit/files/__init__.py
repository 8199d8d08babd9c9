"""Files that are whole or absent, stores that survive a kill, and pickles that are not run."""

from flatkit.files.atomic import (
    check_writable,
    make_folder,
    sole_writer,
    write_atomically,
    write_text_atomically,
)
from flatkit.files.store import Store

__all__ = [
    "Store",
    "check_writable",
    "make_folder",
    "sole_writer",
    "write_atomically",
    "write_text_atomically",
]
