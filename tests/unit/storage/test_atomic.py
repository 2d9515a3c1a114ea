"""Atomic files and the directory lock, on the real file system."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import AlreadyRunningError, StorageError
from sdnet_core.storage.atomic import (
    TEMPORARY_PREFIX,
    DamagedError,
    DirectoryLock,
    clean_temporary,
    ensure_private_directory,
    previous_path,
    read_bounded,
    remove_durably,
    write_atomic,
)

RANDOMNESS = SystemRandomness()


def write(path: Path, data: bytes, **options: bool) -> None:
    write_atomic(path, data, randomness=RANDOMNESS, **options)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_files_and_directories_are_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    ensure_private_directory(folder)
    write(folder / "file", b"one")
    write(folder / "file", b"two")
    assert [mode(level) for level in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert mode(folder / "file") == 0o600
    assert mode(previous_path(folder / "file")) == 0o600


def test_wide_directories_of_ours_are_tightened(tmp_path: Path) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top").chmod(0o755)
    (tmp_path / "top" / "sub").chmod(0o777)
    ensure_private_directory(tmp_path / "top" / "sub", below=tmp_path / "top")
    assert mode(tmp_path / "top") == mode(tmp_path / "top" / "sub") == 0o700


def test_a_directory_that_all_share_is_refused_and_left_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(StorageError, match="shared by all users"):
        ensure_private_directory(shared)
    assert mode(shared) == 0o1777


def test_a_link_or_a_file_in_the_way_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="not"):
        ensure_private_directory(tmp_path / "root" / "link" / "x", below=tmp_path / "root")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        ensure_private_directory(tmp_path / "file")
    with pytest.raises(StorageError):
        ensure_private_directory(tmp_path / "file" / "below")


def test_the_previous_generation_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"one")
    assert not previous_path(path).exists()
    for old, new in [(b"one", b"two"), (b"two", b"three"), (b"three", b"four")]:
        write(path, new)
        assert (path.read_bytes(), previous_path(path).read_bytes()) == (new, old)
    write(path, b"five", keep_previous=False)
    assert (path.read_bytes(), previous_path(path).read_bytes()) == (b"five", b"three")
    assert sorted(os.listdir(tmp_path)) == ["file", "file.prev"]


def test_a_crash_between_the_two_renames_leaves_no_rubbish_behind_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"one")
    os.link(path, previous_path(path))  # where a crash leaves it: both names are the same file
    write(path, b"two")
    assert (path.read_bytes(), previous_path(path).read_bytes()) == (b"two", b"one")
    assert sorted(os.listdir(tmp_path)) == ["file", "file.prev"]


def test_without_hard_links_the_previous_generation_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "file"
    write(path, b"one")
    monkeypatch.setattr(os, "link", refuse)
    write(path, b"two")
    assert (path.read_bytes(), previous_path(path).read_bytes()) == (b"two", b"one")


def test_exclusive_writes_only_where_nothing_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"one", exclusive=True, keep_previous=False)
    with pytest.raises(StorageError, match="exists already"):
        write(path, b"two", exclusive=True, keep_previous=False)
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    data = bytes(range(256)) * 4
    write(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


SYSTEM_CALLS = ["open", "write", "fsync", "link", "replace", "rename"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_a_failing_system_call_leaves_the_old_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, sentence: str
) -> None:
    path = tmp_path / "file"
    write(path, b"one")
    failed = []

    def fail(*_: object, **__: object) -> None:
        failed.append(call)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=sentence) as caught:
        write(path, b"two")
    monkeypatch.undo()
    assert failed
    assert str(caught.value).endswith("nothing was changed.")
    assert path.read_bytes() == b"one"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(TEMPORARY_PREFIX) and call != "replace"]


def test_an_unconfirmed_rename_is_not_called_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = os.fsync, tmp_path / "file"

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    with pytest.raises(StorageError, match="could not confirm"):
        write(path, b"one")
    assert path.read_bytes() == b"one"


def test_file_and_directory_are_synced_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that a killed process cannot show: that a power cut would find the data."""
    steps: list[str] = []
    sync, rename = os.fsync, os.rename

    def noting_sync(descriptor: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    def noting_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "rename", noting_rename)
    write(tmp_path / "file", b"one")
    assert steps == ["sync file", "rename", "sync directory"]


def test_reading_is_bounded_and_follows_no_link(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_bounded(path, 3) is None
    assert read_bounded(tmp_path, 3) is None
    path.write_bytes(b"abc")
    assert read_bounded(path, 3) == b"abc"
    assert read_bounded(path / "below", 3) is None
    path.write_bytes(b"abcd")
    with pytest.raises(DamagedError, match="at most 3"):
        read_bounded(path, 3)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DamagedError, match="regular"):
        read_bounded(tmp_path / "link", 10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedError, match="regular"):
        read_bounded(tmp_path / "pipe", 10)


@pytest.mark.parametrize(("number", "damaged"), [(errno.EIO, True), (errno.EMFILE, False), (errno.EACCES, False)])
def test_a_bad_medium_is_damage_and_a_passing_failure_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, damaged: bool
) -> None:
    (tmp_path / "file").write_bytes(b"abc")

    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(StorageError) as caught:
        read_bounded(tmp_path / "file", 10)
    assert isinstance(caught.value, DamagedError) is damaged


def test_removing_is_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    assert remove_durably(tmp_path / "a", tmp_path / "missing", tmp_path / "b")
    assert os.listdir(tmp_path) == ["c"]
    assert not remove_durably(tmp_path / "a", tmp_path / "no" / "folder")


def test_only_abandoned_temporary_files_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    abandoned = [tmp_path / f"{TEMPORARY_PREFIX}1", tmp_path / "sub" / f"{TEMPORARY_PREFIX}2"]
    for path in (*abandoned, tmp_path / "kept"):
        path.write_bytes(b"x")
    in_use = tmp_path / f"{TEMPORARY_PREFIX}3"
    descriptor = os.open(in_use, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert clean_temporary(tmp_path) == 2
    finally:
        os.close(descriptor)
    assert in_use.exists()
    assert (tmp_path / "kept").exists()
    assert not any(path.exists() for path in abandoned)


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from sdnet_core.storage.atomic import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_names_who_holds_it_and_falls_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunningError, match=rf"Process {holder.pid} .*{re.escape(str(tmp_path))}"):
            DirectoryLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
        with DirectoryLock(tmp_path) as lock:  # the dead one's process id is still in the file
            assert lock.path.read_text() == f"{os.getpid()}\n"
            assert mode(lock.path) == 0o600


def test_the_lock_is_exclusive_within_one_process_too(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "new"), DirectoryLock(tmp_path / "new")
    first.acquire()
    for lock in (first, second):
        with pytest.raises(AlreadyRunningError):
            lock.acquire()
    first.release()
    first.release()
    with second:
        assert second.held
    assert not second.held
