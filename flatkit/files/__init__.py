"""Files that are written whole or not at all, and pickles that are read without being run."""

from flatkit.files.atomic import (
    check_writable,
    make_folder,
    sole_writer,
    write_atomically,
    write_text_atomically,
)

__all__ = [
    "check_writable",
    "make_folder",
    "sole_writer",
    "write_atomically",
    "write_text_atomically",
]
