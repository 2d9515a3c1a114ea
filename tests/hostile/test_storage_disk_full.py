"""A disk that is really full, and a limit on the size of files."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import NetworkIdentity, NetworkingCore, Trust
from sdnet_core.clock import SystemClock, SystemRandomness, run_in_thread
from sdnet_core.errors import StorageError
from sdnet_core.storage import KeyFile, Passphrase, SecureStorage, Vault
from sdnet_core.storage.envelope import Kdf, KdfParameters
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, memory_node

CLOCK, RANDOMNESS = SystemClock(), SystemRandomness()
DISK_BYTES = 1 << 20
PASSPHRASE = Passphrase("correct horse", KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000))


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, small_disks: Any, tmp_path: Path) -> Path:
    """A file system of its own with room for very little."""
    disk: Path = small_disks.mount(tmp_path / "disk", getattr(request, "param", DISK_BYTES))
    return disk


def storage_of(directory: Path, vault: Vault) -> SecureStorage:
    return SecureStorage(
        directory / "network",
        vault.subkey("network"),
        clock=CLOCK,
        randomness=RANDOMNESS,
        runner=run_in_thread,
    )


def call(function: Any, *args: Any) -> Any:
    return anyio.run(function, *args)


def test_a_full_disk_is_named_and_changes_nothing(small_disks: Any, small_disk: Path) -> None:
    directory = small_disk / "data"
    vault = Vault.create(directory, KeyFile(), CLOCK, RANDOMNESS)
    storage = storage_of(directory, vault)
    for data in (b"first", b"second"):
        call(storage.store, "identity", data)
    ballast = small_disks.fill(small_disk)
    full = r"The disk is full: .*; nothing was changed\."
    with pytest.raises(StorageError, match=full):
        call(storage.store, "identity", b"third")
    with pytest.raises(StorageError, match=full):
        call(storage.store, "identity", bytes(100_000))
    with pytest.raises(StorageError, match=full):
        vault.change_secret(PASSPHRASE)
    with pytest.raises(StorageError, match="disk is full"):
        Vault.create(small_disk / "other", KeyFile(), CLOCK, RANDOMNESS)
    assert call(storage.load, "identity") == b"second"
    assert not list(small_disk.rglob(".tmp-*"))

    reopened = Vault.open(directory, KeyFile(), CLOCK, RANDOMNESS)  # a restart on the full disk
    assert call(storage_of(directory, reopened).load, "identity") == b"second"

    call(storage.delete, "identity")
    ballast.unlink()
    call(storage.store, "identity", b"fourth")
    vault.change_secret(PASSPHRASE)
    assert call(storage.load, "identity") == b"fourth"


def test_a_store_that_runs_into_the_end_of_the_disk_keeps_its_last_state(small_disk: Path) -> None:
    storage = storage_of(small_disk, Vault.create(small_disk, KeyFile(), CLOCK, RANDOMNESS))
    stored = 0

    def store_on() -> None:
        nonlocal stored
        while stored < 1000:
            call(storage.store, f"history/{stored}", bytes([stored % 256]) * 3000)
            stored += 1

    with pytest.raises(StorageError, match="disk is full"):
        store_on()
    assert 10 < stored < 1000
    again = storage_of(small_disk, Vault.open(small_disk, KeyFile(), CLOCK, RANDOMNESS))
    names = call(again.list, "history")
    assert len(names) == stored
    for number in range(stored):
        assert call(again.load, f"history/{number}") == bytes([number % 256]) * 3000
    assert again.recovered == []


@pytest.mark.parametrize("small_disk", [4 << 20], indirect=True)
def test_a_node_on_a_full_disk_says_so_and_starts_again_as_it_was(small_disks: Any, small_disk: Path) -> None:
    def node() -> NetworkingCore:
        return memory_node(small_disk, "a", network=MemoryNetwork(), discovery=MemoryDiscovery())

    phone = NetworkIdentity.generate(RANDOMNESS).device_info(uuid.UUID(int=7), "phone", "0.1")
    tablet = NetworkIdentity.generate(RANDOMNESS).device_info(uuid.UUID(int=8), "tablet", "0.1")

    async def live() -> str:
        async with node() as core:
            await core.add_paired_device(phone, pairing_id=uuid.UUID(int=1), pairing_root=b"r" * 32)
            small_disks.fill(small_disk)
            with pytest.raises(StorageError, match="disk is full"):
                await core.rename_device(phone.id, "other")
            with pytest.raises(StorageError, match="disk is full"):
                await core.add_paired_device(tablet, pairing_id=uuid.UUID(int=2), pairing_root=b"s" * 32)
            with pytest.raises(StorageError, match="cut off and refused as long as this node runs"):
                await core.revoke_device(phone.id)
            with pytest.raises(StorageError, match="disk is full"):
                await core.change_protection(PASSPHRASE)
            return core.identity.peer_id

    async def live_again() -> None:
        async with node() as core:  # the disk is as full as before
            assert core.identity.peer_id == peer_id
            assert [device.name for device in core.remote_devices()] == ["phone"]
            assert core.status()["storage"]["recovered"] == []
            (small_disk / "ballast").unlink()
            await core.revoke_device(phone.id)
        async with node() as core:
            assert core.remote_device(phone.id).trust is Trust.REVOKED

    peer_id = call(live)
    call(live_again)


LIMITED = """
import resource, sys
from pathlib import Path
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import StorageError
from sdnet_core.storage import write_atomic
path = Path(sys.argv[1])
write_atomic(path, b"first", randomness=SystemRandomness())
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_atomic(path, bytes(20_000), randomness=SystemRandomness())
except StorageError as error:
    print(error)
"""


def test_a_limit_on_the_size_of_files_is_named_and_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert "limit for the size of a file; nothing was changed." in done.stdout
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]
