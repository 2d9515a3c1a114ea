"""The control stream: pings, keepalive, goodbye, new keys under traffic, and bad peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session import (
    ControlChannel,
    ControlEnd,
    ControlSettings,
    EndReason,
    GoodbyeReason,
    Session,
    SessionLimits,
    read_preamble,
)
from sdnet_core.session.control import Goodbye, Keepalive, Ping, Pong
from sdnet_core.session.rekey import RekeyAnswer, RekeyConfirm, RekeyDone, RekeyRequest
from sdnet_core.wire import encode

pytestmark = pytest.mark.anyio

CALM = ControlSettings()
QUICK = ControlSettings(keepalive_interval_s=0.05, goodbye_timeout_s=0.2)
BRISK = ControlSettings(keepalive_interval_s=1.0)
# Patient enough for a busy machine, with keepalives far more often than needed.
OFTEN = ControlSettings(keepalive_interval_s=0.02, keepalive_misses=25)


def channel(session: Session, settings: ControlSettings = CALM) -> ControlChannel:
    return ControlChannel(session, SystemClock(), SystemRandomness(), settings)


@asynccontextmanager
async def running(*channels: ControlChannel) -> AsyncIterator[list[ControlEnd]]:
    """Run control channels; the list fills as they end."""
    ends: list[ControlEnd] = []

    async def run(item: ControlChannel) -> None:
        ends.append(await item.run())

    async with anyio.create_task_group() as tasks:
        for item in channels:
            tasks.start_soon(run, item)
        yield ends
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that other tasks bring about."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - there is no event for everything that a test waits for
            await anyio.sleep(0.002)


async def test_pings_are_answered(linked: Any) -> None:
    alices, bobs = map(channel, await linked.sessions())
    async with running(alices, bobs) as ends:
        for item in (alices, bobs):
            assert 0 < await item.ping(timeout_s=5) < 5
        assert ends == []


async def test_the_round_trip_is_measured(linked: Any, alice: NetworkIdentity, bob: NetworkIdentity) -> None:
    alices, bobs = map(channel, await linked.sessions())
    linked.network.link(alice.peer_id, bob.peer_id).delay_s = 0.02
    async with running(alices, bobs):
        assert 0.04 <= await alices.ping() < 0.5


async def test_an_unanswered_ping_ends_nothing_else(linked: Any) -> None:
    one, two = await linked.sessions()
    alices, bobs = channel(one), channel(two)
    async with running(alices):
        with pytest.raises(NetworkTimeoutError):
            await alices.ping(timeout_s=0.01)
        async with running(bobs):
            assert await alices.ping(timeout_s=5) > 0


async def test_goodbye_reaches_the_other_side_with_its_reason(linked: Any) -> None:
    one, two = await linked.sessions()
    alices, bobs = channel(one), channel(two)
    async with running(alices, bobs) as ends:
        await alices.goodbye(GoodbyeReason.SHUTDOWN)
        await until(lambda: len(ends) == 2)
        assert alices.end == ControlEnd(EndReason.OUR_GOODBYE, GoodbyeReason.SHUTDOWN)
        assert bobs.end == ControlEnd(EndReason.PEER_GOODBYE, GoodbyeReason.SHUTDOWN)
        with pytest.raises(ConnectionFailedError):
            await alices.ping()
        await alices.goodbye(GoodbyeReason.SHUTDOWN)
    assert one.closed
    assert two.closed


async def test_both_may_say_goodbye_at_once(linked: Any) -> None:
    alices, bobs = map(channel, await linked.sessions())
    async with running(alices, bobs) as ends:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alices.goodbye, GoodbyeReason.IDLE)
            tasks.start_soon(bobs.goodbye, GoodbyeReason.SHUTDOWN)
        await until(lambda: len(ends) == 2)
    assert {end.reason for end in ends} <= {EndReason.OUR_GOODBYE, EndReason.PEER_GOODBYE}


async def test_goodbye_to_a_side_that_is_gone_ends_soon(linked: Any) -> None:
    one, _ = await linked.sessions()
    alices = channel(one, QUICK)
    async with running(alices) as ends:
        with anyio.fail_after(2):
            await alices.goodbye(GoodbyeReason.SHUTDOWN)
            await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.OUR_GOODBYE


async def test_keepalives_keep_a_quiet_session_alive(linked: Any) -> None:
    alices, bobs = (channel(item, OFTEN) for item in await linked.sessions())
    async with running(alices, bobs) as ends:
        await anyio.sleep(1.2 * OFTEN.stale_after_s)
        assert ends == []
        assert await alices.ping() > 0


async def test_silence_is_noticed(linked: Any) -> None:
    one, two = await linked.sessions()
    alices = channel(one, QUICK)
    async with running(alices) as ends:
        start = anyio.current_time()
        await until(lambda: len(ends) == 1)
        assert 0.9 * QUICK.stale_after_s <= anyio.current_time() - start
    assert ends[0].reason is EndReason.STALE
    assert one.closed
    del two


async def test_traffic_on_any_stream_is_a_sign_of_life(linked: Any, alice: NetworkIdentity) -> None:
    one, two = await linked.sessions()
    ours, theirs = await linked.open(alice, "/sdnet/test/1")
    sending = one.open_stream(ours)
    await sending.send(b"x")
    receiving = two.accept(theirs, await read_preamble(theirs))
    # Bob runs a control channel, Alice runs none: only her stream tells that she is there.
    async with running(channel(two, OFTEN)) as ends:
        deadline = anyio.current_time() + 1.2 * OFTEN.stale_after_s
        while anyio.current_time() < deadline:
            await sending.send(b"x")
            await receiving.receive()
            await anyio.sleep(0.01)
        assert ends == []
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.STALE


async def test_a_lost_connection_ends_the_session(linked: Any, alice: NetworkIdentity, bob: NetworkIdentity) -> None:
    alices, bobs = map(channel, await linked.sessions())
    async with running(alices, bobs) as ends:
        pinging_failed = []

        async def ping() -> None:
            with pytest.raises(ConnectionFailedError):
                await alices.ping(timeout_s=30)
            pinging_failed.append(True)

        linked.network.cut(alice.peer_id, bob.peer_id, silent=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ping)
            await anyio.wait_all_tasks_blocked()
            linked.network.cut(alice.peer_id, bob.peer_id)
        await until(lambda: len(ends) == 2)
    assert [end.reason for end in ends] == [EndReason.LOST, EndReason.LOST]
    assert pinging_failed


async def test_the_streams_of_an_ended_session_end(linked: Any, alice: NetworkIdentity) -> None:
    one, two = await linked.sessions()
    alices, bobs = channel(one), channel(two)
    ours, theirs = await linked.open(alice, "/sdnet/test/1")
    stream = one.open_stream(ours)
    await stream.send(b"x")
    two.accept(theirs, await read_preamble(theirs))
    async with running(alices, bobs):
        woken = anyio.Event()

        async def read() -> None:
            with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
                await stream.receive()
            woken.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await bobs.goodbye(GoodbyeReason.SHUTDOWN)
            with anyio.fail_after(2):
                await woken.wait()


BAD_MESSAGES = [
    b"\xff",
    b"\xa0",
    encode(Ping(number=1)) + b"\0",
    encode(Ping(number=1)) * 200,
    encode(RekeyDone()),
    encode(RekeyConfirm(confirmation=b"c" * 32)),
    encode(RekeyAnswer(nonce=b"n" * 32, ephemeral=b"e" * 32, confirmation=b"c" * 32)),
    encode(RekeyRequest(nonce=b"n" * 32, ephemeral=bytes(32))),
]


@pytest.mark.parametrize("payload", BAD_MESSAGES)
async def test_a_bad_message_ends_the_session(linked: Any, payload: bytes) -> None:
    one, two = await linked.sessions()
    async with running(channel(one)) as ends:
        await two.control_stream.send_record(payload)
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.VIOLATION


async def test_a_changed_record_ends_the_session(linked: Any) -> None:
    one, two = await linked.sessions()
    async with running(channel(one)) as ends:
        await two.control_stream._inner.send(b"\1\0\0\x15" + bytes(21))
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.VIOLATION


async def test_a_late_pong_is_no_matter(linked: Any) -> None:
    one, two = await linked.sessions()
    alices = channel(one)
    async with running(alices) as ends:
        await two.control_stream.send_record(encode(Pong(number=77)))
        async with running(channel(two)):
            assert await alices.ping() > 0
        assert ends == []


async def test_a_flood_of_pings_is_answered_at_the_other_side_s_pace(linked: Any) -> None:
    one, two = await linked.sessions()
    async with running(channel(one)) as ends:
        async with anyio.create_task_group() as tasks:

            async def flood() -> None:
                for number in range(2000):
                    await two.control_stream.send_record(encode(Ping(number=number)))

            tasks.start_soon(flood)
            for number in range(2000):
                assert await two.control_stream.receive_record() == encode(Pong(number=number))
        assert ends == []


async def talk(opener: Session, other: Session, linked: Any, identity: NetworkIdentity) -> bytes:
    """One stream, there and back, in the epochs that both use now."""
    ours, theirs = await linked.open(identity, "/sdnet/test/1")
    sealed = opener.open_stream(ours)
    await sealed.send(b"hello")
    incoming = other.accept(theirs, await read_preamble(theirs))
    await incoming.send(await incoming.receive())
    return await sealed.receive()


async def test_new_keys_while_streams_go_on(linked: Any, alice: NetworkIdentity, bob: NetworkIdentity) -> None:
    one, two = await linked.sessions()
    alices, bobs = channel(one), channel(two)
    ours, theirs = await linked.open(alice, "/sdnet/old/1")
    old = one.open_stream(ours)
    await old.send(b"before")
    old_theirs = two.accept(theirs, await read_preamble(theirs))
    async with running(alices, bobs) as ends:
        known = {one.keys.epoch_id}
        for number, starter in enumerate((alices, bobs, alices)):
            starter.rotate()
            await until(lambda: one.keys.epoch_id not in known and one.keys.epoch_id == two.keys.epoch_id)
            known.add(one.keys.epoch_id)
            assert one.keys.send_key == two.keys.receive_key
            # The control stream speaks under the new keys, streams of all living epochs go on.
            assert await alices.ping() > 0
            assert await bobs.ping() > 0
            assert await talk(one, two, linked, alice) == b"hello"
            assert await talk(two, one, linked, bob) == b"hello"
            await old.send(b"still %d" % number)
        assert old.draining
        assert await old_theirs.receive_record() == b"before"
        for number in range(3):
            assert await old_theirs.receive_record() == b"still %d" % number
        assert ends == []
    assert len(known) == 4


async def test_both_may_ask_for_new_keys_at_once(linked: Any, alice: NetworkIdentity) -> None:
    one, two = await linked.sessions()
    alices, bobs = channel(one), channel(two)
    first = one.keys.epoch_id
    alices.rotate()
    bobs.rotate()
    async with running(alices, bobs) as ends:
        await until(lambda: one.keys.epoch_id == two.keys.epoch_id != first)
        assert await alices.ping() > 0
        assert await bobs.ping() > 0
        assert await talk(one, two, linked, alice) == b"hello"
        # There was one change of keys, not two.
        assert len(one._epochs) == len(two._epochs) == 2
        second = one.keys.epoch_id
        bobs.rotate()
        await until(lambda: one.keys.epoch_id == two.keys.epoch_id != second)
        assert ends == []


async def test_keys_are_renewed_in_time_under_traffic(linked: Any, alice: NetworkIdentity) -> None:
    limits = SessionLimits(lifetime_s=2.0, rotate_after_s=0.15, rotate_jitter_s=0.02, old_epoch_s=0.1)
    one, two = await linked.sessions(limits=limits)
    alices, bobs = channel(one, BRISK), channel(two, BRISK)
    epochs = set()
    async with running(alices, bobs) as ends:
        ours, theirs = await linked.open(alice, "/sdnet/old/1")
        old = one.open_stream(ours)
        await old.send(b"x")
        two.accept(theirs, await read_preamble(theirs))

        async def enough() -> None:
            with anyio.fail_after(10):
                while len(epochs) < 4:
                    epochs.add(one.keys.epoch_id)
                    assert await talk(one, two, linked, alice) == b"hello"

        await enough()
        assert ends == []
        # The stream of the first epoch ends with it.
        await until(lambda: old.ended)


async def test_keys_are_renewed_when_half_used(linked: Any, alice: NetworkIdentity) -> None:
    one, two = await linked.sessions(limits=SessionLimits(max_bytes=1000))
    first = one.keys.epoch_id
    async with running(channel(one, BRISK), channel(two, BRISK)) as ends:
        ours, _ = await linked.open(alice, "/sdnet/test/1")
        await one.open_stream(ours).send(bytes(600))
        await until(lambda: one.keys.epoch_id == two.keys.epoch_id != first)
        assert ends == []


async def test_a_session_whose_keys_are_not_renewed_expires(linked: Any) -> None:
    one, two = await linked.sessions(limits=SessionLimits(lifetime_s=0.1))
    async with running(channel(one, QUICK), channel(two, QUICK)) as ends:
        await until(lambda: len(ends) == 2)
    assert EndReason.EXPIRED in {end.reason for end in ends}
    assert one.closed
    assert two.closed


async def test_a_peer_that_asks_for_keys_too_often_is_cut(linked: Any) -> None:
    one, two = await linked.sessions()
    async with running(channel(one)) as ends:
        for _ in range(2):
            request = RekeyRequest(nonce=b"n" * 32, ephemeral=b"\x09" + bytes(31))
            await two.control_stream.send_record(encode(request))
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.VIOLATION


async def test_wrong_new_keys_are_noticed(linked: Any) -> None:
    one, two = await linked.sessions()
    async with running(channel(one)) as ends:
        request = RekeyRequest(nonce=b"n" * 32, ephemeral=b"\x09" + bytes(31))
        await two.control_stream.send_record(encode(request))
        await two.control_stream.receive_record()
        await two.control_stream.send_record(encode(RekeyConfirm(confirmation=b"c" * 32)))
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.VIOLATION


async def test_closing_the_session_ends_its_control_channel(linked: Any) -> None:
    one, _ = await linked.sessions()
    async with running(channel(one, QUICK)) as ends:
        one.close()
        await until(lambda: len(ends) == 1)
    assert ends[0].reason is EndReason.LOST


async def test_a_cancelled_control_channel_closes_its_session(linked: Any) -> None:
    one, _ = await linked.sessions()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel(one).run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert one.closed


def test_wire_forms() -> None:
    assert encode(Ping(number=5)).hex() == "a261741066" + b"number".hex() + "05"
    assert encode(Pong(number=5)).hex() == "a261741166" + b"number".hex() + "05"
    assert encode(Keepalive()).hex() == "a1617412"
    assert encode(Goodbye(reason=GoodbyeReason.MOVED)).hex() == "a261741366" + b"reason".hex() + "656d6f766564"
    assert encode(RekeyRequest(nonce=b"n" * 32, ephemeral=b"e" * 32)).hex() == (
        "a3617414656e6f6e6365" + "5820" + "6e" * 32 + "69657068656d6572616c" + "5820" + "65" * 32
    )
    assert encode(RekeyDone()).hex() == "a1617417"
