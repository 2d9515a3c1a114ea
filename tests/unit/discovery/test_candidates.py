"""The race between sources, the table of what they found, and the streams from it."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

import anyio
import pytest

from sdnet_core.clock import Clock, SystemClock
from sdnet_core.discovery.candidates import (
    MAX_PEERS,
    MAX_TAGS,
    Announcement,
    Candidate,
    CandidateSink,
    CandidateStream,
    Discovery,
    DiscoverySource,
)
from sdnet_core.errors import InvalidRequestError

pytestmark = pytest.mark.anyio

A1, A2, A3 = (f"/ip4/192.0.2.1/tcp/{port}" for port in (1, 2, 3))


class Scripted(DiscoverySource):
    """A source that does as it is told: one list of steps per run, then it waits."""

    name: ClassVar[str] = "scripted"

    def __init__(self, *runs: list[Any]) -> None:
        self.runs = list(runs)
        self.started = 0
        self.announcements: list[Announcement] = []
        self.sink: CandidateSink | None = None
        self.ended = 0
        self.refreshed = 0

    async def run(self, sink: CandidateSink) -> None:
        steps = self.runs[min(self.started, len(self.runs) - 1)] if self.runs else []
        self.started += 1
        self.sink = sink
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if step == "hang":
                    await anyio.sleep_forever()
                if step == "end":
                    return
                sink.found(step)
            sink.ready()
            await anyio.sleep_forever()
        finally:
            self.ended += 1

    def announce(self, announcement: Announcement) -> None:
        self.announcements.append(announcement)

    def refresh(self) -> None:
        self.refreshed += 1


class Other(Scripted):
    name: ClassVar[str] = "other"


class Impatient(Scripted):
    name: ClassVar[str] = "impatient"
    start_timeout_s: ClassVar[float] = 0.01


def candidate(peer_id: str, *addresses: str, tags: frozenset[bytes] = frozenset()) -> Candidate:
    return Candidate(peer_id, addresses or (A1,), "?", tags)


def discovery(*sources: DiscoverySource, clock: Clock | None = None, own: str = "me") -> Discovery:
    return Discovery(sources, clock or SystemClock(), peer_id=own, networks=lambda: (), restart_delay_s=0.005)


async def eventually(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - polled, whatever the condition is
            await anyio.sleep(0.001)


async def waiting(stream: CandidateStream) -> list[Candidate]:
    """Everything that can be taken without anything new happening."""
    taken = []
    with anyio.move_on_after(0.02):
        while True:
            taken.append(await stream.receive())
    return taken


async def test_a_source_that_fails_is_restarted_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    failing = Scripted([ValueError("no such device")], [ExceptionGroup("", [OSError("gone")])], [candidate("late")])
    healthy = Other([candidate("early")])
    found = discovery(failing, healthy)
    with caplog.at_level(logging.WARNING):
        async with found.run(), found.subscribe() as candidates:
            with anyio.fail_after(5):
                assert [(await candidates.receive()).peer_id for _ in range(2)] == ["early", "late"]
            assert (failing.started, healthy.started) == (3, 1)
    assert "no such device" in caplog.text
    assert healthy.ended == 1


async def test_a_source_that_hangs_at_the_start_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    source = Impatient(["hang"], [candidate("late")])
    found = discovery(source)
    async with found.run(), found.subscribe() as candidates:
        with anyio.fail_after(5):
            assert (await candidates.receive()).peer_id == "late"
        assert "did not start" in caplog.text
        await anyio.sleep(0.03)
        assert source.started == 2


async def test_a_source_that_ends_is_not_restarted() -> None:
    source = Scripted([candidate("one"), "end"])
    found = discovery(source, Other([]))
    async with found.run():
        await eventually(lambda: source.ended)
        await anyio.sleep(0.03)
        assert source.started == 1
        assert found.known("one")


async def test_leaving_waits_for_the_sources_to_withdraw() -> None:
    class Polite(Scripted):
        withdrawn = False

        async def run(self, sink: CandidateSink) -> None:
            try:
                await super().run(sink)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                    self.withdrawn = True

    source = Polite([])
    found = discovery(source)
    async with found.run():
        await eventually(lambda: source.started)
    assert source.withdrawn


async def test_a_new_subscriber_hears_first_what_is_known_and_then_what_is_new() -> None:
    source = Scripted([candidate("one"), candidate("two")])
    found = discovery(source)
    async with found.run():
        await eventually(lambda: found.known("two"))
        async with found.subscribe() as candidates:
            assert source.sink is not None
            source.sink.found(candidate("three"))
            assert [c.peer_id for c in await waiting(candidates)] == ["one", "two", "three"]


async def test_a_subscriber_chooses_and_a_broken_choice_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Candidate) -> bool:
        raise KeyError("x")

    source = Scripted([candidate("one"), candidate("two", tags=frozenset({b"t"}))])
    found = discovery(source)
    async with (
        found.run(),
        found.subscribe(lambda c: b"t" in c.tags) as tagged,
        found.subscribe(broken) as nothing,
    ):
        assert [c.peer_id for c in await waiting(tagged)] == ["two"]
        assert await waiting(nothing) == []
    assert "choice of candidates failed" in caplog.text


async def test_a_slow_subscriber_loses_the_oldest_and_hears_only_the_latest_of_a_peer() -> None:
    source = Scripted([])
    found = discovery(source)
    async with found.run(), found.subscribe(buffer=3) as slow, found.subscribe() as quick:
        await eventually(lambda: source.sink)
        assert source.sink is not None
        for number in range(5):
            source.sink.found(candidate(f"p{number}"))
        source.sink.found(candidate("p3", A1, A2))
        assert [(c.peer_id, c.addresses) for c in await waiting(slow)] == [
            ("p2", (A1,)),
            ("p4", (A1,)),
            ("p3", (A1, A2)),
        ]
        assert len(await waiting(quick)) == 5


async def test_news_are_new_addresses_new_tags_or_a_fresh_sign_of_life() -> None:
    source = Scripted([candidate("p", A1, A2)])
    found = discovery(source)
    async with found.run(), found.subscribe() as candidates:
        assert len(await waiting(candidates)) == 1
        sink = source.sink
        assert sink is not None
        sink.found(candidate("p", A2, A1))
        sink.found(candidate("p", A2))
        assert await waiting(candidates) == []
        assert found.known("p")[0].addresses == (A2,)
        sink.found(candidate("p", A2, A3))
        assert (await waiting(candidates))[0].addresses == (A2, A3)
        sink.found(candidate("p", A2, A3, tags=frozenset({b"x"})))
        assert (await waiting(candidates))[0].tags == {b"x"}
        sink.found(candidate("p", A2, A3, tags=frozenset({b"x"})), fresh=True)
        assert len(await waiting(candidates)) == 1
        sink.lost("p")
        assert found.known("p") == ()
        sink.found(candidate("p", A2, A3))
        assert len(await waiting(candidates)) == 1


async def test_the_table_expires_and_keeps_the_order_of_the_sources(clock: Any) -> None:
    first, second = Scripted([]), Other([candidate("p", A2)])
    found = discovery(first, second, clock=clock)
    async with found.run():
        await eventually(lambda: first.sink and found.known("p"))
        assert first.sink is not None
        first.sink.found(candidate("p", A1), ttl_s=10)
        assert [(c.source, c.addresses, c.seen_at) for c in found.known("p")] == [
            ("scripted", (A1,), clock.time),
            ("other", (A2,), clock.time),
        ]
        clock.time += 10
        assert [c.source for c in found.known("p")] == ["other"]
        assert [c.source for c in found.peers()] == ["other"]
        async with found.subscribe() as candidates:
            assert [c.source for c in await waiting(candidates)] == ["other"]
            first.sink.found(candidate("p", A1), ttl_s=10)
            assert [c.source for c in await waiting(candidates)] == ["scripted"]


async def test_we_are_no_candidate_and_neither_is_who_has_no_useful_address() -> None:
    source = Scripted(
        [candidate("me"), candidate("p", "/ip4/0.0.0.0/tcp/1", "rubbish"), candidate("q", "/ip4/192.0.2.1/tcp/1/p2p/q")]
    )
    found = discovery(source, own="me")
    async with found.run():
        await eventually(lambda: found.known("q"))
        assert [(c.peer_id, c.addresses) for c in found.peers()] == [("q", (A1,))]


async def test_the_table_is_bounded() -> None:
    source = Scripted([candidate(f"p{number}") for number in range(MAX_PEERS + 10)])
    found = discovery(source)
    async with found.run():
        await eventually(lambda: found.known(f"p{MAX_PEERS + 9}"))
        assert len(found.peers()) == MAX_PEERS
        assert not found.known("p0")


async def test_addresses_and_tags_are_announced_to_every_source_also_after_a_restart() -> None:
    class Deaf(Other):
        name = "deaf"

        def announce(self, announcement: Announcement) -> None:
            raise RuntimeError("not now")

    source = Scripted([OSError("x")], [])
    found = discovery(Deaf([]), source)
    found.set_addresses([A1, "/ip4/0.0.0.0/tcp/9", A2])
    async with found.run():
        await eventually(lambda: source.started == 2)
        assert source.announcements[-1] == Announcement((A1, A2))
        one, same, two = found.advertise(b"one"), found.advertise(b"one"), found.advertise(b"two")
        assert source.announcements[-1].tags == {b"one", b"two"}
        found.withdraw(one)
        found.withdraw(one)
        assert source.announcements[-1].tags == {b"one", b"two"}
        count = len(source.announcements)
        found.set_addresses([A1, A2])
        assert len(source.announcements) == count
        found.withdraw(same)
        found.withdraw(two)
        assert source.announcements[-1] == Announcement((A1, A2))


@pytest.mark.parametrize("tag", [b"", b"x" * 65])
async def test_a_tag_has_1_to_64_bytes(tag: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        discovery().advertise(tag)


async def test_the_number_of_tags_is_limited() -> None:
    found = discovery()
    tokens = [found.advertise(bytes([number])) for number in range(MAX_TAGS)]
    found.advertise(bytes([0]))
    with pytest.raises(InvalidRequestError):
        found.advertise(b"more")
    found.withdraw(tokens[1])
    found.advertise(b"more")


async def test_streams_end_with_discovery() -> None:
    found = discovery(Scripted([candidate("one")]))
    seen = []

    async def follow() -> None:
        async with found.subscribe() as candidates:
            async for c in candidates:
                seen.append(c.peer_id)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        async with found.run():
            await eventually(lambda: seen)
    async with found.subscribe() as late:
        assert [c.peer_id async for c in late] == ["one"]


async def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        discovery(Scripted([]), Scripted([]))


async def test_what_never_expires_stays(clock: Any) -> None:
    source = Scripted([candidate("one")])
    found = discovery(source, clock=clock)
    async with found.run():
        await eventually(lambda: found.known("one"))
        clock.time = math.nextafter(1e15, math.inf)
        assert found.known("one")


async def test_every_source_is_asked_to_look_again(caplog: pytest.LogCaptureFixture) -> None:
    class Lazy(Other):
        def refresh(self) -> None:
            raise RuntimeError("not now")

    source = Scripted([])
    discovery(Lazy([]), source).refresh()
    assert source.refreshed == 1
    assert "does not look again" in caplog.text
