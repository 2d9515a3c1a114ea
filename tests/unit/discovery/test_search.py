"""What a search beyond the local network is told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import anyio
import pytest

from sdnet_core.clock import SystemClock
from sdnet_core.discovery.candidates import Discovery
from sdnet_core.discovery.points import group_points, parse_point
from sdnet_core.discovery.search import Rendezvous, Way, WayState
from sdnet_core.discovery.source import Announcement, CandidateSink, DiscoverySource
from sdnet_core.errors import InvalidRequestError, NetworkingError

pytestmark = pytest.mark.anyio

PEER = "12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A"


class Far(DiscoverySource):
    """Notes what it is told, and says what the test wants."""

    name: ClassVar[str] = "far"

    def __init__(self, act: Callable[[CandidateSink], None] = lambda sink: sink.ready()) -> None:
        self.records: list[frozenset[Rendezvous]] = []
        self.sought: list[frozenset[bytes]] = []
        self._act = act

    def announce(self, announcement: Announcement) -> None:
        self.records.append(announcement.records)

    def seek(self, secrets: frozenset[bytes]) -> None:
        self.sought.append(secrets)

    async def run(self, sink: CandidateSink) -> None:
        self._act(sink)
        await anyio.sleep_forever()


def make(*sources: DiscoverySource, told: list[Way] | None = None) -> Discovery:
    return Discovery(
        sources, SystemClock(), peer_id="me", networks=lambda: (), on_progress=None if told is None else told.append
    )


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await anyio.sleep(0.01)


async def test_records_are_published_while_they_are_advertised() -> None:
    far = Far()
    discovery = make(far)
    async with discovery.run():
        first = discovery.advertise(b"a", record=bytes(32))
        second = discovery.advertise(b"b", record=bytes(32))
        discovery.advertise(b"c")
        assert far.records[-1] == {Rendezvous(bytes(32), frozenset({b"a", b"b"}))}
        discovery.withdraw(first)
        assert far.records[-1] == {Rendezvous(bytes(32), frozenset({b"b"}))}
        discovery.withdraw(second)
        assert far.records[-1] == frozenset()


async def test_secrets_are_sought_while_somebody_subscribes() -> None:
    far = Far()
    discovery = make(far)
    async with discovery.run():
        async with discovery.subscribe(record=bytes(32)), discovery.subscribe(record=bytes(32)):
            assert far.sought[-1] == {bytes(32)}
        assert far.sought[-1] == frozenset()
        async with discovery.subscribe():
            assert far.sought[-1] == frozenset()


async def test_where_each_way_stands_is_told_once() -> None:
    told: list[Way] = []
    unreachable = Far(lambda sink: sink.progress(WayState.UNREACHABLE, "No meeting point answers."))
    near = Far()
    near.__class__ = type("Near", (Far,), {"name": "near"})
    discovery = make(unreachable, near, told=told)
    assert {way.state for way in discovery.ways()} == {WayState.STARTING}
    async with discovery.run():
        await until(lambda: len(told) >= 2)
        assert set(discovery.ways()) == {
            Way("far", WayState.UNREACHABLE, "No meeting point answers."),
            Way("near", WayState.LOOKING),
        }


async def test_a_source_that_fails_says_why() -> None:
    def fail(sink: CandidateSink) -> None:
        raise NetworkingError("the antenna fell off")

    told: list[Way] = []
    discovery = make(Far(fail), told=told)
    async with discovery.run():
        await until(lambda: bool(told))
    assert told[0] == Way("far", WayState.FAILED, "the antenna fell off")


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)], ids=len)
async def test_a_secret_has_32_bytes(secret: bytes) -> None:
    discovery = make(Far())
    with pytest.raises(InvalidRequestError):
        discovery.advertise(b"a", record=secret)
    with pytest.raises(InvalidRequestError):
        async with discovery.subscribe(record=secret):
            pass


def test_points_are_grouped_by_peer() -> None:
    (point,) = group_points([f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", f"/dns4/example.org/tcp/4001/p2p/{PEER}"])
    assert point.peer_id == PEER
    assert point.addresses == ("/ip4/192.0.2.1/tcp/4001", "/dns4/example.org/tcp/4001")
    assert point.full_addresses[0] == f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org:4001",
        "/ip4/192.0.2.1/tcp/4001",
        f"/p2p/{PEER}",
        "/ip4/192.0.2.1/tcp/4001/p2p/nobody",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_what_is_no_meeting_point_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not the address of a meeting point"):
        parse_point(text)
