"""Which connection goes first when there are as many as allowed, and how many that may be."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from sdnet_core.config import load_config
from sdnet_core.devices.connection import DeviceConnection
from sdnet_core.devices.pool import ConnectionPool
from sdnet_core.errors import ConfigurationError
from sdnet_core.session import Traffic


class _Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


class _Session:
    """As much of a session as a pool looks at."""

    def __init__(self) -> None:
        self.traffic = Traffic(0.0, 0.0)
        self.streams: tuple[object, ...] = ()
        self.rotations = 0


class Pool:
    """A pool of connections with sessions of which only the traffic counts."""

    def __init__(self, max_connections: int) -> None:
        self.clock = _Clock()
        self.with_messages: set[uuid.UUID] = set()
        self.pool = ConnectionPool(self.clock, max_connections, self.with_messages.__contains__)

    def connect(self, number: int) -> DeviceConnection:
        session: Any = _Session()
        control: Any = None
        live = DeviceConnection(uuid.UUID(int=number), session, control, None, used_at=self.clock.time)
        self.pool.add(live)
        return live

    def use(self, live: DeviceConnection) -> None:
        """Have a stream come and go."""
        live.session.traffic.streams_opened += 1
        live.look(self.clock.time)

    def ways_out(self) -> Iterator[DeviceConnection]:
        """The connections, in the order in which they make room."""
        while (least := self.pool.least_useful()) is not None:
            yield least
            self.pool.remove(least)


def test_fifty_by_default_and_thousands_if_wanted(tmp_path: Any) -> None:
    def limit(text: str | None) -> int:
        environ = {"SDNET_HOME": str(tmp_path)}
        if text is not None:
            environ["SDNET_CONNECTIONS_MAX_CONNECTIONS"] = text
        return load_config(environ=environ).connections.max_connections

    assert limit(None) == 50
    assert limit("5000") == 5000
    for wrong in ("0", "-1", "many", "1000000000"):
        with pytest.raises(ConfigurationError, match="SDNET_CONNECTIONS_MAX_CONNECTIONS"):
            limit(wrong)


@pytest.mark.parametrize("most", [50, 5000])
def test_as_many_as_allowed_have_room_and_no_more(most: int) -> None:
    made = Pool(most)
    for number in range(most):
        assert made.pool.has_room(uuid.UUID(int=number))
        made.connect(number)
    assert len(made.pool) == most
    assert not made.pool.has_room(uuid.UUID(int=most))
    assert not made.pool.has_room(None)
    assert made.pool.has_room(uuid.UUID(int=7)), "one that connects anew takes its own place"
    made.pool.wait_for_room(uuid.UUID(int=most))
    assert made.pool.next_waiting() is None
    made.pool.remove(made.pool.of_device(uuid.UUID(int=3))[0])
    assert made.pool.next_waiting() == uuid.UUID(int=most)
    assert made.pool.next_waiting() is None


def test_the_least_useful_goes_first() -> None:
    made = Pool(50)
    lives = [made.connect(number) for number in range(6)]
    for number in (4, 1, 5, 0):  # from the one that was used first; 2 and 3 never were
        made.clock.time += 10
        made.use(lives[number])
    made.with_messages |= {lives[3].device_id, lives[4].device_id}
    busy = lives[5]
    busy.session.streams = ("a stream",)  # type: ignore[misc, assignment]
    assert [int(live.device_id) for live in made.ways_out()] == [2, 1, 0, 3, 4]
    assert made.pool.least_useful() is None, "one that is in use does not go"
    busy.session.streams = ()  # type: ignore[misc, assignment]
    assert made.pool.least_useful() is busy
    assert made.pool.least_useful(but=busy) is None


def test_one_that_is_replaced_or_over_takes_no_place() -> None:
    made = Pool(2)
    old, other = made.connect(1), made.connect(2)
    old.retiring = True
    other.end("gone")
    assert len(made.pool) == 0
    assert made.pool.has_room(uuid.UUID(int=3))
    assert made.pool.least_useful() is None
