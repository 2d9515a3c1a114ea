"""The history of a device's connections: what it holds, how it is bounded, and what is left of it after a crash."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemRandomness, run_in_thread
from sdnet_core.devices.connection import DeviceConnection
from sdnet_core.devices.history import ConnectionHistory
from sdnet_core.devices.past import (
    CUT_SHORT,
    MAX_AGE_S,
    MAX_BYTES,
    MAX_ENTRIES,
    OPEN,
    FailedAttempts,
    PastConnection,
    PastConnections,
)
from sdnet_core.storage import SecureStorage
from sdnet_core.testing import linked_nodes
from sdnet_core.wire import decode, encode

PHONE, LAPTOP = uuid.UUID(int=1), uuid.UUID(int=2)
NOW = 1_700_000_000.0


class SetClock:
    """A clock that tests set."""

    time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - 1_000_000


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def storage(tmp_path: Path, clock: SetClock) -> SecureStorage:
    root = tmp_path / "network"
    return SecureStorage(root, bytes(32), clock=clock, randomness=SystemRandomness(), runner=run_in_thread)


def live(clock: SetClock, device_id: uuid.UUID = PHONE, address: str = "/ip4/192.0.2.7/tcp/4001") -> DeviceConnection:
    """A connection that has just come about; nothing runs over it."""
    nothing: Any = None
    return DeviceConnection(
        device_id=device_id,
        session=nothing,
        control=nothing,
        address=address,
        dialled_address=address,
        opened_at=clock.monotonic(),
        began_at=clock.now(),
    )


def end(history: ConnectionHistory, connection: DeviceConnection, reason: str) -> None:
    connection.reason = reason
    history.ended(connection)


@pytest.mark.anyio
async def test_what_it_holds(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock)
    assert (await history.read(PHONE)).to_dict()["entries"] == []
    for _ in range(3):
        history.failed(PHONE, "no answer in time")
        clock.time += 10
    connection = live(clock)
    history.began(connection)
    await history.write(PHONE)
    (now, before) = (await history.read(PHONE)).to_dict()["entries"]
    assert (now["kind"], now["open"], now["dialled_by"], now["transport"]) == ("connection", True, "us", "tcp")
    assert (before["kind"], before["count"], before["ended_at"] - before["began_at"]) == ("failures", 3, 20)
    clock.time += 3600
    end(history, connection, "the other device fell silent")
    found = (await ConnectionHistory(storage, clock).read(PHONE)).to_dict()
    assert found["entries"][0]["open"] is True  # not written yet
    await history.write(PHONE)
    found = (await ConnectionHistory(storage, clock).read(PHONE)).to_dict()
    ended = found["entries"][0]
    assert (ended["lasted_s"], ended["reason"], ended["open"]) == (3600, "the other device fell silent", False)
    assert (found["connections"], found["failures"], found["connected_s"], found["since"]) == (1, 3, 3600, int(NOW))


@pytest.mark.anyio
async def test_a_crash_costs_the_end_of_a_connection_and_nothing_more(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock)
    history.began(live(clock))
    await history.write(PHONE)
    clock.time += 100
    after = ConnectionHistory(storage, clock)  # the one before was killed
    after.began(live(clock))
    await after.write(PHONE)
    now, before = (await after.read(PHONE)).to_dict()["entries"]
    assert now["open"] is True
    assert (before["open"], before["lasted_s"]) == (False, None)
    assert "without a word" in before["reason"]


@pytest.mark.anyio
async def test_writes_at_the_same_time_lose_nothing(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            clock.time += 60
            connection = live(clock)
            history.began(connection)
            tasks.start_soon(history.write, PHONE)
            end(history, connection, f"reason {number}")
            tasks.start_soon(history.write, PHONE)
            await anyio.lowlevel.checkpoint()
            found = await history.read(PHONE)
            assert found.connections == number + 1
    assert (await ConnectionHistory(storage, clock).read(PHONE)).connections == 20


@pytest.mark.anyio
async def test_it_is_pruned_by_count_and_age(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock)
    for _ in range(MAX_ENTRIES * 2):
        connection = live(clock, address="")
        history.began(connection)
        clock.time += 10
        end(history, connection, "")
    await history.write(PHONE)
    found = await history.read(PHONE)
    assert len(found.entries) == MAX_ENTRIES
    assert (found.connections, found.connected_s) == (2 * MAX_ENTRIES, 20 * MAX_ENTRIES)  # totals stay
    clock.time += MAX_AGE_S + 1
    assert (await history.read(PHONE)).entries == ()
    assert (await history.read(PHONE)).connections == 2 * MAX_ENTRIES


@pytest.mark.anyio
async def test_all_together_are_pruned(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock, max_total_bytes=2000)
    devices = [uuid.UUID(int=number) for number in range(1, 21)]
    for device_id in devices:
        connection = live(clock, device_id)
        history.began(connection)
        clock.time += 60
        end(history, connection, "the other device stopped")
        await history.write(device_id)
    await history.prune(devices[:-1])  # the last one is not paired any more
    names = await storage.list("history")
    assert f"history/{devices[-1]}" not in names
    assert sum((await storage.sizes("history")).values()) <= 2000
    # The ones that were connected last are kept.
    assert names == [f"history/{device_id}" for device_id in devices[-1 - len(names) : -1]]
    clock.time += MAX_AGE_S + 1
    await history.prune(devices)
    assert await storage.list("history") == []


@pytest.mark.anyio
async def test_a_damaged_history_is_lost_and_nothing_else(storage: SecureStorage, clock: SetClock) -> None:
    history = ConnectionHistory(storage, clock)
    history.began(live(clock))
    await history.write(PHONE)
    path = storage.root / "history" / str(PHONE)
    path.write_bytes(path.read_bytes()[:-1])
    assert (await history.read(PHONE)).entries == ()
    history.began(live(clock))
    await history.write(PHONE)
    assert (await history.read(PHONE)).connections == 1


PASTS = st.one_of(
    st.builds(
        PastConnection,
        st.integers(0, 2**40),
        st.integers(CUT_SHORT, 2**40),
        st.booleans(),
        st.text(max_size=128),
        st.text(max_size=100),
    ),
    st.builds(
        FailedAttempts, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**40), st.text(max_size=100)
    ),
)


@given(st.lists(PASTS, max_size=120), st.integers(0, 2**40))
def test_whatever_happens_it_stays_small_and_can_be_read(pasts: list[Any], now: int) -> None:
    history = PastConnections()
    for past in pasts:
        history = history.with_past(past)
    history = history.pruned(now)
    data = encode(history)
    assert len(data) <= MAX_BYTES + 16
    assert len(history.entries) <= MAX_ENTRIES
    assert decode(data, PastConnections) == history
    assert sum(isinstance(one, PastConnection) and one.lasted_s == OPEN for one in history.entries) <= max(
        1, sum(isinstance(one, PastConnection) and one.lasted_s == OPEN for one in pasts)
    )
    assert history.failures == sum(one.count for one in pasts if isinstance(one, FailedAttempts))
    history.to_dict()


@pytest.mark.anyio
async def test_a_node_writes_it(tmp_path: Path) -> None:
    async with linked_nodes(2, home=tmp_path) as nodes:
        a, b = nodes
        other = b.device_info.id
        with anyio.fail_after(60):
            async with a.subscribe_events(["connection-lost", "connection-established"]) as events:
                nodes.cut(a, b)
                assert (await anext(aiter(events))).kind == "connection-lost"
                nodes.heal(a, b)
                assert (await anext(aiter(events))).kind == "connection-established"
        found = await a.device_history(other)
        assert found["connections"] == 2
        assert [entry["open"] for entry in found["entries"] if entry["kind"] == "connection"] == [True, False]
        assert "lost" in found["entries"][-1]["reason"]
        store = tmp_path / "node0" / "data" / "network" / "history"
        await b.forget_device(a.device_info.id)
        assert not (tmp_path / "node1" / "data" / "network" / "history" / str(a.device_info.id)).exists()
    assert [path.name for path in store.iterdir()] == [str(other)]


@pytest.mark.anyio
async def test_a_device_takes_one_to_five_kilobytes_on_the_disk(tmp_path: Path) -> None:
    """Paired, connected many times, its history full: everything below ``network`` that names it."""
    async with linked_nodes(2, home=tmp_path) as (a, b):
        other = b.device_info.id
        await a.rename_device(other, "the laptop in the living room")
        history = a._connections.history
        reason = "the connection was lost" * 4
        for number in range(100):
            connection = DeviceConnection(
                device_id=other,
                session=a._registry.get(other).live.session,  # type: ignore[union-attr]
                control=a._registry.get(other).live.control,  # type: ignore[union-attr]
                address=f"/ip6/2001:db8:1234:5678:9abc:def0:1234:{number:x}/tcp/4001",
                began_at=NOW + number,
            )
            history.began(connection)
            end(history, connection, reason)
            history.failed(other, "No address of the device answers: " + reason)
        await history.write(other)
    files = [path for path in (tmp_path / "node0" / "data" / "network").rglob(f"*{other}*") if path.is_file()]
    assert len({path.parent.parent.name + path.parent.name for path in files}) == 3
    assert 1024 <= sum(path.stat().st_size for path in files) <= 5 * 1024
