"""A file appears whole or not at all, for everybody whom the umask lets read it."""

import os
import signal
import subprocess
import sys

import pytest

from bench.ledger.atomic import write_atomically


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    (tmp_path / "file.txt").write_text("old")
    return tmp_path / "file.txt"


# The old file or the whole new one.


def test_the_new_file_takes_the_old_ones_place(path):
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_until_it_is_whole_readers_see_the_old_file(path):
    seen = []

    def write(temporary):
        temporary.write_text("half")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old"]


def test_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file.txt", lambda temporary: temporary.write_text("new"))
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["failure", "interruption"])
def test_a_write_that_ends_early_leaves_the_old_file_and_nothing_else(path, error):
    def half(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert names(path.parent) == ["file.txt"]


def test_a_kill_leaves_the_old_file(path):
    code = (
        "import sys, time; from pathlib import Path; from bench.ledger.atomic import write_atomically\n"
        "def half(temporary): temporary.write_text('ne'); print('half', flush=True); time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), half)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(path):
    def both(temporary):
        temporary.write_text("first")
        write_atomically(path, lambda other: other.write_text("second"))
        assert temporary.read_text() == "first"

    write_atomically(path, both)
    assert path.read_text() == "first"


# Durable: what was renamed is still there after a loss of power.


def test_the_file_is_flushed_before_the_rename_and_its_folder_after(path, monkeypatch):
    events = []
    flush, replace = os.fsync, type(path).replace

    def fsync(handle):
        target = os.readlink(f"/proc/self/fd/{handle}")
        events.append("folder" if target == str(path.parent) else "file")
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(type(path), "replace", lambda self, to: (events.append("rename"), replace(self, to))[1])
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert events == ["file", "rename", "folder"]


# Permissions: the user's umask decides, as for any other file.


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file.txt", lambda temporary: temporary.write_text("new"))
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode
