"""The list of revocations: what is on it stays on it, whatever becomes of its two copies on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.devices.records import PairedDevice
from sdnet_core.devices.revocations import Ended, RevocationList
from sdnet_core.errors import StorageError
from sdnet_core.storage import SecureStorage
from tests.unit.devices.test_registry import device

pytestmark = pytest.mark.anyio
T = TypeVar("T")
KEY = bytes(range(32))


async def inline(function: Callable[..., T], /, *args: Any) -> T:
    return function(*args)


class Disk:
    """A data directory with a list in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "revoked"
        self.copy = directory / "network" / "revocations"
        self.previous = directory / "network" / "revocations.prev"

    async def open(self, key: bytes = KEY) -> RevocationList:
        clock, randomness = SystemClock(), SystemRandomness()
        storage = SecureStorage(self.directory / "network", KEY, clock=clock, randomness=randomness, runner=inline)
        opened = RevocationList(self.directory, key, storage, clock=clock, randomness=randomness, runner=inline)
        await opened.load()
        return opened


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def filled(disk: Disk, count: int = 3) -> list[PairedDevice]:
    opened = await disk.open()
    devices = [device(f"device{number}", device_id=number + 1) for number in range(count)]
    for one in devices:
        await opened.add(one, Ended.REVOKED)
    return devices


async def test_what_was_added_is_there_again_after_a_restart(disk: Disk) -> None:
    first, second, third = await filled(disk)
    opened = await disk.open()
    assert opened.recovered == []
    assert all(one.pairing_id in opened for one in (first, second, third))
    assert opened.is_revoked(first.peer_id)
    assert not opened.is_revoked("somebody else")
    await opened.add(first, Ended.FORGOTTEN)
    for again in (opened, await disk.open()):
        assert first.pairing_id in again
        assert not again.is_revoked(first.peer_id)
        assert again.is_revoked(second.peer_id)
    assert disk.file.stat().st_mode & 0o777 == 0o600
    assert disk.file.read_bytes().count(b"\n") == 4


async def test_nothing_is_written_before_the_first_revocation(disk: Disk) -> None:
    opened = await disk.open()
    assert opened.recovered == []
    assert not disk.file.exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: data.rindex(b"\n", 0, -1) + 1], id="last line gone"),
        pytest.param(lambda data: data[:-20], id="last line cut"),
        pytest.param(lambda data: data[: data.index(b"\n") + 1], id="two lines gone"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data.replace(b'"revoked"', b'"forgotten"', 1), id="first line changed"),
        pytest.param(lambda data: data[:-3] + b"0}\n", id="last MAC changed"),
        pytest.param(lambda data: b"\n".join(reversed(data.splitlines())) + b"\n", id="lines in another order"),
        pytest.param(lambda data: data[data.index(b"\n") + 1 :], id="first line gone"),
        pytest.param(lambda data: data + data, id="twice"),
        pytest.param(lambda data: b"\x00" * len(data), id="zeros"),
    ],
)
async def test_a_damaged_list_is_put_right_from_its_copy_and_said(disk: Disk, damage: Callable[[bytes], bytes]) -> None:
    devices = await filled(disk)
    whole = disk.file.read_bytes()
    disk.file.write_bytes(damage(whole))
    opened = await disk.open()
    assert all(one.pairing_id in opened for one in devices)
    assert len(opened.recovered) == 1
    assert "revoked" in opened.recovered[0]
    assert disk.file.read_bytes() == whole
    assert (await disk.open()).recovered == []


async def test_a_missing_list_is_put_right_from_its_copy_and_said(disk: Disk) -> None:
    devices = await filled(disk)
    disk.file.unlink()
    opened = await disk.open()
    assert all(one.pairing_id in opened for one in devices)
    assert opened.recovered


async def test_a_damaged_or_missing_copy_is_written_anew(disk: Disk) -> None:
    devices = await filled(disk)
    for path in (disk.copy, disk.previous):
        path.write_bytes(b"garbage")
    opened = await disk.open()
    assert all(one.pairing_id in opened for one in devices)
    assert len(opened.recovered) == 1
    disk.copy.unlink()
    disk.previous.unlink()
    assert devices[0].pairing_id in await disk.open()
    assert disk.copy.exists()
    disk.file.write_bytes(b"")  # the new copy is good
    assert devices[2].pairing_id in await disk.open()


async def test_damage_to_both_stops_the_node(disk: Disk) -> None:
    await filled(disk)
    disk.file.write_bytes(disk.file.read_bytes()[:-30])
    for path in (disk.copy, disk.previous):
        path.write_bytes(b"garbage")
    with pytest.raises(StorageError, match="does not start") as caught:
        await disk.open()
    assert "Restore revoked from a backup" in str(caught.value)


async def test_an_older_copy_does_not_hide_a_damaged_end(disk: Disk) -> None:
    await filled(disk, 2)
    older = disk.copy.read_bytes()
    opened = await disk.open()
    for number in (7, 8):
        await opened.add(device(f"device{number}", device_id=number), Ended.REVOKED)
    disk.copy.write_bytes(older)
    disk.previous.write_bytes(older)
    lines = disk.file.read_bytes().splitlines(keepends=True)
    disk.file.write_bytes(b"".join(lines[:3]) + b"x" + lines[3])
    with pytest.raises(StorageError, match="does not start"):
        await disk.open()


async def test_an_unfinished_line_of_a_crash_is_taken_away(disk: Disk) -> None:
    devices = await filled(disk, 1)
    whole = disk.file.read_bytes()
    disk.file.write_bytes(whole + b'{"n":2,"at":17')
    opened = await disk.open()
    assert devices[0].pairing_id in opened
    assert disk.file.read_bytes() == whole
    await opened.add(device("next", device_id=9), Ended.REVOKED)
    assert (await disk.open()).recovered == []


async def test_the_list_of_another_vault_is_not_taken(disk: Disk) -> None:
    await filled(disk)
    disk.copy.unlink()
    disk.previous.unlink()
    with pytest.raises(StorageError, match="MAC is wrong"):
        await disk.open(key=bytes(32))


async def test_a_full_disk_changes_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(disk, 1)
    opened = await disk.open()
    whole = disk.file.read_bytes()
    real = os.write
    written = 0

    def half(descriptor: int, data: bytes) -> int:
        nonlocal written
        if written:
            raise OSError(28, "No space left on device")
        written = real(descriptor, bytes(data)[:10])
        return written

    late = device("late", device_id=5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="disk is full"):
            await opened.add(late, Ended.REVOKED)
    assert disk.file.read_bytes() == whole
    assert late.pairing_id not in opened
    await opened.add(late, Ended.REVOKED)
    assert late.pairing_id in await disk.open()
