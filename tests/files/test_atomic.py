"""Where the target of a whole file is no plain file: links, pipes and devices stay such."""

import os
import threading
from pathlib import Path

import pytest

from flatkit.errors import OutputError
from flatkit.files.atomic import check_writable, write_text_atomically


def test_a_link_stays_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "real" / "a.json", tmp_path / "a.json"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_text_atomically(check_writable(link), "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in target.parent.iterdir()) == ["a.json"]


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text_atomically(check_writable(pipe), "words")
    reader.join(10)
    assert read == ["words"] and pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_device_is_written_into_and_stays_one(tmp_path):
    # By a device of the test's own, as that of the system would be gone for all if this failed.
    device = tmp_path / "full"
    try:
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 7))
        device.open("wb").close()
    except OSError:
        pytest.skip("no permission to make a device")
    with pytest.raises(OutputError, match="No space left"):
        write_text_atomically(check_writable(device), "words")
    assert device.is_char_device()
