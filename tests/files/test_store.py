"""Stores: what was kept survives a kill, a full disk ends no work, other files are left alone."""

import math
import os
import resource
import shutil
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from flatkit.errors import OutputError, ResultError
from flatkit.files import Store
from flatkit.files.store import forget
from tests.processes import start, store_until_killed

JOB = {"samples": 10, "seed": 0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.journal"


def filled(path, count=3):
    with Store(path, JOB) as store:
        for number in range(count):
            store.put("record", str(number), number / 3)
            assert store.put_blob(str(number), bytes([number]) * 10_000)


def left(path):
    return sorted(file.name for file in path.parent.iterdir())


@contextmanager
def files_at_most(size):
    """Let the system refuse whatever makes a file longer, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_entries_come_back_bit_for_bit_and_one_file_is_left(path):
    values = [0.1 + 0.2, math.inf, -math.inf, 5e-324, None, {"a": [1, "λ"]}]
    data = os.urandom(100_000)
    with Store(path, JOB) as store:
        store.put("values", "b", "old")
        for key, value in (("a", 1), ("b", values), ("c", math.nan)):
            store.put("values", key, value)
        store.put("others", "b", 2)
        store.put_blob("b", data)
    with Store(path, JOB) as store:
        assert left(path) == ["a.journal", "a.journal-wal", "a.journal.lock"]
        assert store.get("values", "b") == values and math.isnan(store.get("values", "c"))
        assert store.blob("b") == data and store.blob("a") is None
        assert store.get("others", "a") is None and store.records("none") == {}
        assert store.records("others") == {"b": 2} and list(store.records("values")) == [*"abc"]
        assert store.failed == ""
    assert left(path) == ["a.journal"]


def test_a_kill_loses_nothing_and_its_lock_does_not_bind(path):
    process = start(store_until_killed, path, JOB, 5)
    process.join()
    assert process.exitcode == -signal.SIGKILL and "a.journal-wal" in left(path)
    with Store(path, JOB) as store:
        assert store.records("record") == {str(n): n / 3 for n in range(5)}
        assert store.blob("4") == b"\4" * 10_000
    assert left(path) == ["a.journal"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_writer_is_refused_at_once_and_takes_nothing(path, fresh):
    filled(path)
    with Store(path, JOB) as store:
        with pytest.raises(OutputError, match=r"a\.journal is being written by another process"):
            Store(path, JOB, fresh=fresh).__enter__()
        store.put("record", "0", 7)
    with Store(path, JOB) as store:
        assert list(store.records("record").values()) == [1 / 3, 2 / 3, 7]


def test_another_job_is_refused_with_what_differs_unless_it_begins_anew(path):
    filled(path)
    other = {**JOB, "samples": 20, "data": "x" * 80}
    with pytest.raises(ResultError, match=r"\(samples: 10 there, 20 here; data\); give the same"):
        Store(path, other).__enter__()
    with Store(path, JOB) as store:  # it was freed, and is untouched
        assert len(store.records("record")) == 3
    with Store(path, other, fresh=True) as store:
        assert store.records("record") == {} and store.blob("0") is None
    with Store(path, other):
        pass


def foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (a)")
    connection.close()


def of_another_format(path):
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()


def broken(path):
    """A page in the middle is overwritten."""
    filled(path)
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    path.write_bytes(content)


def cut_short(path):
    filled(path)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"my notes\n"), "is no journal of flatkit"),
        (foreign, "is no journal of flatkit"),
        (of_another_format, "is of another version"),
        (broken, "is damaged"),
        (cut_short, "is damaged"),
    ],
    ids=["text", "foreign", "another format", "broken", "cut short"],
)
def test_what_is_no_sound_store_is_refused_by_name_and_left_as_it_is(path, spoil, message):
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(ResultError, match=rf"a\.journal {message}.*; move it away"):
        Store(path, JOB).__enter__()
    assert left(path) == ["a.journal"] and path.read_bytes() == before
    if message == "is no journal of flatkit":
        with pytest.raises(ResultError, match=message):
            Store(path, JOB, fresh=True).__enter__()
        assert path.read_bytes() == before
    else:
        with Store(path, JOB, fresh=True) as store:
            assert store.records("record") == {}


def test_flipped_bits_of_a_blob_are_not_taken_for_an_answer(path):
    filled(path)
    content = path.read_bytes()
    at = content.index(b"\2" * 500)
    path.write_bytes(content[:at] + b"\3" + content[at + 1 :])
    with Store(path, JOB) as store:
        assert store.blob("1") == b"\1" * 10_000
        with pytest.raises(ResultError, match=r"damaged \(a checksum is wrong\); move it away"):
            store.blob("2")


def test_a_full_disk_ends_the_keeping_and_nothing_else(path):
    filled(path, 2)
    with Store(path, JOB) as store:
        with files_at_most(200_000):
            kept = [store.put_blob(f"more {n}", bytes(20_000)) for n in range(20)]
            store.put("record", "9", 1.0)
        assert kept[0] and not kept[-1]
        assert "cannot write" in store.failed and "a.journal" in store.failed
        first = store.failed
        assert not store.put_blob("later", b"")  # it has said so, and does not try again
        assert store.failed == first and store.get("record", "1") == 1 / 3
    with Store(path, JOB) as store:
        assert store.get("record", "9") is None and not store.failed
        assert [store.blob(f"more {n}") == bytes(20_000) for n in range(20)] == kept


def test_a_full_disk_at_opening_is_an_error_and_leaves_nothing(path):
    with files_at_most(5_000), pytest.raises(OutputError, match=r"cannot write .*a\.journal"):
        Store(path, JOB).__enter__()
    with Store(path, JOB):
        pass
    assert left(path) == ["a.journal"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.journal", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot"):
            Store(path, JOB).__enter__()


def test_blobs_beyond_the_limit_are_not_kept_also_after_a_restart(path):
    with Store(path, JOB, max_blob_bytes=250) as store:
        assert [store.put_blob(key, bytes(100)) for key in "abc"] == [True, True, False]
        assert store.put_blob("d", bytes(50)) and store.blob("c") is None
    with Store(path, JOB, max_blob_bytes=300) as store:
        assert [store.put_blob(key, bytes(50)) for key in "ef"] == [True, False]


def test_blobs_take_a_quarter_of_the_free_disk_at_most(path, monkeypatch):
    usage = shutil.disk_usage(path.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with Store(path, JOB) as store:
        assert [store.put_blob(key, bytes(150)) for key in "ab"] == [True, False]
        store.put("record", "0", 1.0)
        assert store.get("record", "0") == 1.0 and not store.failed


def test_another_thread_may_ask(path):
    with Store(path, JOB) as store, ThreadPoolExecutor(1) as pool:
        pool.submit(store.put, "record", "0", 1.0).result()
        assert pool.submit(store.get, "record", "0").result() == 1.0 and not store.failed


def test_what_a_kill_left_beside_a_store_that_is_gone_is_not_taken_for_the_next(path, tmp_path):
    with Store(path, JOB) as store:
        store.put("record", "0", 1.0)
        left_over = path.with_name("a.journal-wal").read_bytes()
    for begin in (path.unlink, lambda: None, lambda: forget(path)):
        begin()
        path.with_name("a.journal-wal").write_bytes(left_over)
        with Store(path, {"seed": 5}, fresh=path.exists()) as store:
            assert store.records("record") == {}
            store.put("record", "1", 2.0)
        with Store(path, {"seed": 5}) as store:
            assert store.records("record") == {"1": 2.0}


def test_a_store_that_has_served_is_removed(path):
    filled(path)
    with Store(path, JOB) as store:
        store.put("record", "9", 1.0)
        store.remove()
        assert left(path) == ["a.journal.lock"]
        store.put("record", "9", 1.0)  # it holds nothing now, and keeps nothing
        assert store.get("record", "9") is None and store.records("record") == {}
        assert not store.put_blob("9", b"1") and store.blob("0") is None
    assert left(path) == []
