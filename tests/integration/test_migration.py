"""A home that an older version wrote is brought up to date and kept as it was, never half one and half the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import NetworkingCore, Trust
from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.devices.formats import CURRENT_FORMAT, STEPS
from sdnet_core.errors import StorageError
from sdnet_core.storage import KeyFile, NewerFormatError, SecureStorage, Vault
from sdnet_core.storage.migration import mark_format, migrate
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, memory_node
from tests.hostile.storage_writer import die_at, inline
from tests.store_fixture import DATA, describe

FIXTURES = sorted(path.name for path in DATA.glob("home-v*"))
MAX_STEPS = 400


@pytest.fixture(params=FIXTURES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The home of a node of an older version, and what is in it."""
    source: Path = DATA / request.param
    shutil.copytree(source / "alice", tmp_path / "alice")
    return tmp_path, json.loads((source / "expected.json").read_text())


def node(home: Path) -> NetworkingCore:
    return memory_node(home, "alice", network=MemoryNetwork(), discovery=MemoryDiscovery())


def storage_of(home: Path, runner: Any = inline) -> SecureStorage:
    data = home / "alice" / "data"
    key = Vault.open(data, KeyFile(), SystemClock(), SystemRandomness()).subkey("network")
    return SecureStorage(data / "network", key, clock=SystemClock(), randomness=SystemRandomness(), runner=runner)


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_every_format_before_this_one_is_tried() -> None:
    assert [f"home-v{number}" for number in range(1, CURRENT_FORMAT)] == FIXTURES
    assert sorted(STEPS) == list(range(1, CURRENT_FORMAT))


@pytest.mark.anyio
async def test_it_holds_afterwards_what_it_held(stored: tuple[Path, dict[str, Any]]) -> None:
    home, expected = stored
    network = home / "alice" / "data" / "network"
    before = contents(network)
    async with node(home) as alice:
        assert describe(alice) == expected
        assert alice.status()["storage"]["recovered"] == []
    (kept,) = network.parent.glob("network.v*")
    assert contents(kept) == before  # to go back to with the older version
    assert not list(network.parent.rglob("*.partial"))
    assert not list(network.parent.rglob("*.damaged"))
    # The second start has nothing to do.
    stamps = {path: path.stat().st_mtime_ns for path in (network / "connections").rglob("*") if path.is_file()}
    async with node(home) as alice:
        assert describe(alice) == expected
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


@pytest.mark.anyio
async def test_both_generations_are_brought_up_to_date(stored: tuple[Path, dict[str, Any]]) -> None:
    home, expected = stored
    async with node(home):
        pass
    network = home / "alice" / "data" / "network"
    assert list((network / "connections").rglob("*.prev"))
    for previous in (network / "connections").rglob("*.prev"):
        previous.with_suffix("").write_bytes(b"damaged")
    async with node(home) as alice:
        devices = {name: device["known_addresses"] for name, device in describe(alice)["devices"].items()}
        assert devices == {name: device["known_addresses"] for name, device in expected["devices"].items()}


@pytest.mark.anyio
async def test_of_a_device_revoked_later_nothing_is_kept(stored: tuple[Path, dict[str, Any]]) -> None:
    home, expected = stored
    async with node(home) as alice:
        phone = uuid.UUID(expected["devices"]["phone"]["device_id"])
        tablet = uuid.UUID(expected["devices"]["tablet"]["device_id"])
        await alice.revoke_device(phone)
        await alice.forget_device(tablet)
        assert alice.remote_device(phone).trust is Trust.REVOKED
    (kept,) = (home / "alice" / "data").glob("network.v*")
    assert not list((kept / "devices").glob(f"{phone}*"))
    assert not list(kept.rglob(f"{tablet}*"))
    assert list((kept / "devices").iterdir())


@pytest.mark.anyio
async def test_a_newer_format_is_refused_and_nothing_touched(stored: tuple[Path, dict[str, Any]]) -> None:
    home, _ = stored
    async with node(home):
        pass
    await mark_format(storage_of(home), CURRENT_FORMAT + 1)
    before = contents(home)
    with pytest.raises(NewerFormatError, match=r"format \d+; this version of sdnet reads up to \d+\. Update sdnet\."):
        async with node(home):
            pass
    assert contents(home) == before


@pytest.mark.anyio
async def test_a_new_home_has_the_current_format(tmp_path: Path) -> None:
    async with node(tmp_path):
        assert await storage_of(tmp_path).load("format") is not None
        assert not list((tmp_path / "alice" / "data").glob("network.v*"))


def in_child(work: Callable[[], object]) -> int:
    """Do something in a child process.

    :returns: its exit code; negative for a signal.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_every_step(stored: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Whenever it dies, the next start goes on to the same end, and what is kept is what was there before."""
    home, expected = stored
    before = contents(home / "alice" / "data" / "network")
    plain = {name: anyio.run(storage_of(home).load, name) for name in anyio.run(storage_of(home).list)}
    results = set()
    for step in range(1, MAX_STEPS):
        place = tmp_path / f"step{step}"
        shutil.copytree(home / "alice", place / "alice")
        storage = storage_of(place)

        def work(storage: SecureStorage = storage, step: int = step) -> None:
            die_at(step)
            anyio.run(migrate, storage, CURRENT_FORMAT, STEPS)

        code = in_child(work)
        storage = storage_of(place)
        anyio.run(migrate, storage, CURRENT_FORMAT, STEPS)
        after = {name: anyio.run(storage.load, name) for name in anyio.run(storage.list)}
        assert storage.recovered == []
        assert {n: d for n, d in after.items() if n.startswith("devices/")} == {
            n: d for n, d in plain.items() if n.startswith("devices/")
        }
        results.add(tuple(sorted(after.items())))
        (kept,) = (place / "alice" / "data").glob("network.v*")
        assert contents(kept) == before
        assert not list(place.rglob(".tmp-*"))
        shutil.rmtree(place)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 30
    assert len(results) == 1
    assert expected["devices"]


def test_a_disk_that_cannot_be_written_leaves_the_old_store(
    stored: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = stored
    before = contents(home / "alice" / "data" / "network")
    real = os.link

    def no_room(source: Any, target: Any, **options: Any) -> None:
        if ".v" in str(target):
            raise OSError(28, "No space left on device")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", no_room)
    with pytest.raises(StorageError, match="disk is full"):
        anyio.run(migrate, storage_of(home), CURRENT_FORMAT, STEPS)
    assert contents(home / "alice" / "data" / "network") == before
    monkeypatch.undo()
    assert anyio.run(migrate, storage_of(home), CURRENT_FORMAT, STEPS) == 1
