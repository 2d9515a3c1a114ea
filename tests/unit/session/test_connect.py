"""The handshake over streams: it ends in a session or in one of the documented errors, and in time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import (
    AuthenticationFailedError,
    ConnectionFailedError,
    NetworkTimeoutError,
    ProtocolError,
    SerializationError,
)
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session import (
    PROTOCOL_ID,
    PeerSecret,
    RefusalReason,
    Role,
    SessionRefusedError,
    SessionTable,
    Suite,
    initiate,
    read_preamble,
    respond,
)
from sdnet_core.wire import MessageStream, encode_frame

pytestmark = pytest.mark.anyio

SUITES = tuple(Suite)


async def dial(identity: NetworkIdentity, secret: PeerSecret, stream: Any, **more: Any) -> Any:
    return await initiate(stream, identity, secret, SUITES, SystemClock(), SystemRandomness(), **more)


async def answer(identity: NetworkIdentity, secret: PeerSecret | None, stream: Any, **more: Any) -> Any:
    return await respond(stream, identity, lambda _: secret, SUITES, SystemClock(), SystemRandomness(), **more)


async def test_a_session_with_streams_both_ways(linked: Any, alice: NetworkIdentity, bob: NetworkIdentity) -> None:
    alices, bobs = await linked.sessions()
    assert (alices.role, bobs.role) == (Role.INITIATOR, Role.RESPONDER)
    assert (alices.peer_id, bobs.peer_id) == (bob.peer_id, alice.peer_id)
    assert alices.keys.epoch_id == bobs.keys.epoch_id
    assert alices.keys.send_key == bobs.keys.receive_key != alices.keys.receive_key
    assert alices.pairing_id == bobs.pairing_id == b"p" * 16
    for identity, opener, other in ((alice, alices, bobs), (bob, bobs, alices)):
        ours, theirs = await linked.open(identity, "/sdnet/test/1")
        async with opener.open_stream(ours) as sealed:
            await sealed.send(b"hello")
            incoming = other.accept(theirs, await read_preamble(theirs))
            assert await incoming.receive() == b"hello"
            await incoming.send(b"good day")
            assert await sealed.receive() == b"good day"
            await incoming.aclose()
            with pytest.raises(anyio.EndOfStream):
                await sealed.receive()


async def test_the_control_stream_is_sealed_both_ways(linked: Any) -> None:
    alices, bobs = await linked.sessions()
    for ours, theirs in ((alices, bobs), (bobs, alices)):
        await ours.control_stream.send_record(b"hello")
        assert await theirs.control_stream.receive_record() == b"hello"


async def test_what_follows_the_handshake_at_once_is_not_lost(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret, bobs_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)

    async def answer_and_speak() -> None:
        session, proven = await answer(bob, bobs_secret, theirs)
        assert proven == bobs_secret
        await session.control_stream.send_record(b"first")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer_and_speak)
        send, gate = ours.send, anyio.Event()

        async def slow_send(item: bytes) -> None:
            await send(item)
            if not gate.is_set():
                gate.set()

        ours.send = slow_send
        session = await dial(alice, alices_secret, ours)
    assert await session.control_stream.receive_record() == b"first"


async def test_a_stream_may_overtake_the_end_of_the_handshake(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret, bobs_secret: PeerSecret
) -> None:
    # Bob opens a stream at once; Alice has not seen his Ready yet, and can take it all the same.
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    bobs_end, alices_end = await linked.open(bob, "/sdnet/test/1")
    tables = {"alice": SessionTable(), "bob": SessionTable()}
    send = theirs.send
    accepted: list[bytes] = []

    async def before_ready(item: bytes) -> None:
        for session in tables["bob"]:
            await session.open_stream(bobs_end).send(b"early")
            preamble = await read_preamble(alices_end)
            found = tables["alice"].find(bob.peer_id, preamble.epoch_id)
            assert found is not None
            accepted.append(await found.accept(alices_end, preamble).receive())
        await send(item)

    theirs.send = before_ready
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: answer(bob, bobs_secret, theirs, table=tables["bob"]))
        await dial(alice, alices_secret, ours, table=tables["alice"])
    assert accepted == [b"early"]


@pytest.mark.parametrize("reason", [RefusalReason.NOT_PAIRED, RefusalReason.BUSY])
async def test_a_refusal_reaches_the_dialler(
    linked: Any,
    alice: NetworkIdentity,
    bob: NetworkIdentity,
    alices_secret: PeerSecret,
    bobs_secret: PeerSecret,
    reason: RefusalReason,
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    secret = None if reason is RefusalReason.NOT_PAIRED else bobs_secret
    refused: list[RefusalReason] = []

    async def refuse() -> None:
        with pytest.raises(SessionRefusedError) as caught:
            await answer(bob, secret, theirs, admit=lambda _: False)
        refused.append(caught.value.reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refuse)
        with pytest.raises(SessionRefusedError) as caught:
            await dial(alice, alices_secret, ours)
    assert caught.value.reason is reason
    assert refused == [reason]


async def test_a_failed_handshake_leaves_no_session(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    tables = [SessionTable(), SessionTable()]
    other = PeerSecret(b"p" * 16, b"R" * 32, alice.peer_id)

    async def answer_with_another_root() -> None:
        with pytest.raises(ConnectionFailedError):
            await answer(bob, other, theirs, table=tables[1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer_with_another_root)
        with pytest.raises(AuthenticationFailedError):
            await dial(alice, alices_secret, ours, table=tables[0])
    assert [list(table) for table in tables] == [[], []]


async def test_a_responder_that_goes_before_ready_leaves_no_session(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret, bobs_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    table, seen = SessionTable(), []
    send = theirs.send

    async def give_up(item: bytes) -> None:
        if list(table):
            seen.extend(table)
            await theirs.reset()
        await send(item)

    theirs.send = give_up

    async def answer_until_ready() -> None:
        with pytest.raises(ConnectionFailedError):
            await answer(bob, bobs_secret, theirs)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer_until_ready)
        with pytest.raises(ConnectionFailedError):
            await dial(alice, alices_secret, ours, table=table)
    assert list(table) == []
    assert seen
    assert seen[0].closed


async def test_the_connection_must_lead_to_the_device_meant(
    linked: Any, alice: NetworkIdentity, alices_secret: PeerSecret
) -> None:
    stranger = NetworkIdentity(b"s" * 32)
    ours, _ = await linked.open(alice, PROTOCOL_ID)
    with pytest.raises(AuthenticationFailedError):
        await dial(alice, PeerSecret(b"p" * 16, b"r" * 32, stranger.peer_id), ours)


async def test_a_silent_side_is_given_up(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret, bobs_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    with pytest.raises(NetworkTimeoutError):
        await dial(alice, alices_secret, ours, timeout_s=0.01)
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    with pytest.raises(NetworkTimeoutError):
        await answer(bob, bobs_secret, theirs, timeout_s=0.01)
    with pytest.raises(anyio.BrokenResourceError):
        await ours.receive()


@pytest.mark.parametrize("payload", [b"", b"\xa0", b"GET / HTTP/1.1\r\n", bytes(1024)])
async def test_garbage_is_refused_and_the_stream_reset(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, bobs_secret: PeerSecret, payload: bytes
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    await ours.send(encode_frame(payload))
    with pytest.raises(SerializationError):
        await answer(bob, bobs_secret, theirs)
    with pytest.raises(anyio.BrokenResourceError):
        await ours.receive()


async def test_an_overlong_message_is_refused_by_its_length(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, bobs_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    await ours.send(b"\x81\x08")  # 1,025 bytes will follow
    with pytest.raises(SerializationError):
        await answer(bob, bobs_secret, theirs)


async def test_a_dialler_that_hangs_up_is_a_lost_connection(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, bobs_secret: PeerSecret
) -> None:
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    await ours.aclose()
    with pytest.raises(ConnectionFailedError):
        await answer(bob, bobs_secret, theirs)


async def test_a_second_answer_is_not_taken(
    linked: Any, alice: NetworkIdentity, bob: NetworkIdentity, alices_secret: PeerSecret, bobs_secret: PeerSecret
) -> None:
    # What is sent behind Ready is part of the sealed control stream; a plain message there does not open.
    ours, theirs = await linked.open(alice, PROTOCOL_ID)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: answer(bob, bobs_secret, theirs))
        session = await dial(alice, alices_secret, ours)
    await MessageStream(theirs, max_bytes=1024).send_bytes(b"\1" * 40)
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await session.control_stream.receive_record()
    assert isinstance(caught.value.__cause__, ProtocolError)
