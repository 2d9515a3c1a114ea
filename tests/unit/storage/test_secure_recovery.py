"""SecureStorage: damage, recovery, deletion and format versions."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdnet_core.errors import StorageError
from sdnet_core.storage import NewerFormatError, SecureStorage
from sdnet_core.storage.envelope import READERS

pytestmark = pytest.mark.anyio

StorageAt = Callable[..., SecureStorage]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in below(folder) if path.is_file()}


async def test_a_file_swapped_for_another_is_refused(storage: SecureStorage, root: Path) -> None:
    await storage.store("devices/trusted", b"trusted")
    await storage.store("devices/revoked", b"revoked")
    (root / "devices/revoked").write_bytes((root / "devices/trusted").read_bytes())
    with pytest.raises(StorageError, match="another place"):
        await storage.load("devices/revoked")


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b""), Path.unlink])
async def test_a_damaged_file_is_restored_from_the_one_before_loudly(
    storage: SecureStorage,
    root: Path,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
    storage_at: StorageAt,
) -> None:
    await storage.store("devices/one", b"first")
    await storage.store("devices/one", b"second")
    damage(root / "devices/one")
    assert await storage.list() == ["devices/one"]
    with caplog.at_level(logging.WARNING):
        assert await storage.load("devices/one") == b"first"
    assert len(storage.recovered) == 1
    assert str(root / "devices/one") in storage.recovered[0]
    assert storage.recovered[0] in caplog.text
    assert await storage.load("devices/one") == b"first"
    assert len(storage.recovered) == 1
    assert await storage_at(root).load("devices/one") == b"first"


async def test_what_was_damaged_is_kept_to_look_at_until_deleted(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    (root / "one").write_bytes(b"rubbish")
    await storage.load("one")
    assert (root / "one.damaged").read_bytes() == b"rubbish"
    assert await storage.list() == ["one"]
    await storage.delete("one")
    assert os.listdir(root) == []


async def test_with_both_generations_damaged_it_fails_closed_and_says_how_to_recover(
    storage: SecureStorage, root: Path
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")
    flip(root / "one.prev")
    before = contents(root)
    with pytest.raises(StorageError, match=r"damaged .*Restore one from a backup, or remove it and one\.prev"):
        await storage.load("one")
    assert contents(root) == before


async def test_a_damaged_file_does_not_push_out_the_good_one_before_it(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")
    await storage.store("one", b"third")
    flip(root / "one")
    assert await storage.load("one") == b"first"


async def test_the_wrong_key_opens_and_changes_nothing(
    storage: SecureStorage, root: Path, storage_at: StorageAt
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    with pytest.raises(StorageError, match="another secret"):
        await storage_at(root, key=bytes(32)).load("one")
    assert await storage.load("one") == b"second"
    assert storage.recovered == []


async def test_a_passing_failure_to_read_is_no_reason_to_go_back(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    real = os.open

    def fail_for_the_current(path: Path, *rest: int) -> int:
        if Path(path) == root / "one":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail_for_the_current)
        with pytest.raises(StorageError, match="Too many open files"):
            await storage.load("one")
    assert await storage.load("one") == b"second"


async def test_a_disk_that_cannot_be_written_does_not_hinder_recovery(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.store("one", b"first")
    await storage.store("one", b"second")
    flip(root / "one")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert await storage.load("one") == b"first"
        with pytest.raises(StorageError, match=r"disk is full: .*nothing was changed"):
            await storage.store("one", b"third")
    assert await storage.load("one") == b"first"


async def test_both_generations_can_be_replaced_so_that_nothing_old_comes_back(
    storage: SecureStorage, root: Path
) -> None:
    await storage.store("devices/one", b"trusted")
    await storage.store("devices/one", b"trusted still")
    await storage.store("devices/one", b"revoked", both_generations=True)
    flip(root / "devices/one")
    assert await storage.load("devices/one") == b"revoked"


async def test_deleted_is_gone_with_all_generations(storage: SecureStorage, root: Path) -> None:
    for data in (b"first", b"second"):
        await storage.store("devices/one", data)
    await storage.delete("devices/one")
    await storage.delete("devices/one")
    assert await storage.load("devices/one") is None
    assert await storage.list() == []
    assert os.listdir(root / "devices") == []


async def test_a_delete_cut_short_leaves_the_file_and_not_an_older_one(
    storage: SecureStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (b"first", b"second"):
        await storage.store("one", data)
    real = os.unlink

    def fail_for_the_current(path: Path) -> None:
        if Path(path) == root / "one":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_for_the_current)
        with pytest.raises(StorageError):
            await storage.delete("one")
    assert os.listdir(root) == ["one"]
    assert await storage.load("one") == b"second"


async def test_recoveries_of_a_view_are_seen_by_the_storage(storage: SecureStorage, root: Path) -> None:
    view = storage.scoped("plugins/pairing")
    await view.store("one", b"1")
    await view.store("one", b"2")
    flip(root / "plugins/pairing/one")
    await view.load("one")
    assert len(storage.recovered) == 1


async def test_left_over_temporary_files_are_cleaned_at_the_start(
    storage: SecureStorage, root: Path, storage_at: StorageAt
) -> None:
    await storage.store("devices/one", b"1")
    for folder in (root, root / "devices"):
        (folder / ".tmp-0123").write_bytes(b"half")
    assert await storage_at(root).load("devices/one") == b"1"
    assert sorted(contents(root)) == ["devices/one"]


async def test_an_older_format_is_read_and_rewritten(root: Path, storage_at: StorageAt) -> None:
    def open_v0(data: bytes, *_: object) -> bytes:
        return data[10:-32]

    storage = storage_at(root, readers={0: open_v0, **READERS})
    body = b"sdnet\x00\x1a\n\x00\x00" + b"old contents"
    await storage.list()
    (root / "one").write_bytes(body + hashlib.sha256(body).digest())
    assert await storage.load("one") == b"old contents"
    assert await storage_at(root).load("one") == b"old contents"  # which knows the newest format only


async def test_a_newer_format_is_refused_and_not_overwritten(storage: SecureStorage, root: Path) -> None:
    await storage.store("one", b"1")
    await storage.store("one", b"2")
    body = bytearray((root / "one").read_bytes()[:-32])
    body[9] = 2
    (root / "one").write_bytes(bytes(body) + hashlib.sha256(body).digest())
    for attempt in (storage.load("one"), storage.store("one", b"3")):
        with pytest.raises(NewerFormatError, match="Update sdnet"):
            await attempt
    assert (root / "one").read_bytes()[9] == 2
