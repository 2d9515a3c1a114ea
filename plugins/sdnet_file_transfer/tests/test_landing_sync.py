"""What was written is brought to the disk while more of it comes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdnet_core.errors import StorageError
from sdnet_file_transfer.landing import SYNC_FILES

from .test_landing import file, folder, landing, whole, write


def test_many_small_files_are_brought_to_the_disk_while_more_of_them_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("sdnet_file_transfer.beneath.sync_filesystem", synced.append)
    before = len(os.listdir("/proc/self/fd"))
    number = 2 * SYNC_FILES + 1
    made, _ = landing(tmp_path, folder("d"), *[file(f"d/{index}", b"1") for index in range(number)])
    for index in range(1, SYNC_FILES):
        made.write(whole(index, b"1"))
    assert made.take_sync() is None
    for index in range(SYNC_FILES, number + 1):
        made.write(whole(index, b"1"))
        assert made.take_sync(busy=True) is None
        if (sync := made.take_sync()) is not None:
            assert len(synced) == index // SYNC_FILES - 1
            sync()
    assert len(synced) == 2
    made.finish()
    assert len(synced) == 3  # what came since, before it is exposed
    made.discard()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_fails_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sdnet_file_transfer.beneath.sync_filesystem", fail)
    before = len(os.listdir("/proc/self/fd"))
    made, _ = landing(tmp_path, folder("d"), *[file(f"d/{index}", b"1") for index in range(SYNC_FILES)])
    write(made, [whole(index, b"1") for index in range(1, SYNC_FILES + 1)])
    sync = made.take_sync()
    assert sync is not None
    with pytest.raises(StorageError, match=r"could not be brought to the disk .*Input/output error"):
        sync()
    made.discard()
    assert len(os.listdir("/proc/self/fd")) == before
