"""Receivers that are not paired and do not keep to the protocol: the sender is told in one line and nothing hangs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from sdnet_core import Access, Capability, PeerStream, PluginContext, ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.errors import NetworkingError
from sdnet_core.testing import linked_nodes, memory_node
from sdnet_core.wire import Message, MessageStream, encode, encode_frame
from sdnet_spacedrop import finder, guests_out
from sdnet_spacedrop import messages as m
from sdnet_spacedrop import nearby_messages as n
from sdnet_spacedrop.meeting import Invitee
from sdnet_spacedrop.oneoff import OneOffStream

from .conftest import PLUGINS, Side, side

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]
SMALL_ORDER = (1).to_bytes(32, "little")


class EvilReceiver:
    """A plugin that answers strangers as a test says."""

    name = "evil"
    behave: Callable[[PluginContext, PeerStream, MessageStream], Awaitable[None]]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        behave = type(self).behave

        class Handler(ProtocolHandler):
            protocol_name = n.PROTOCOL_NAME

            async def handle_stream(self, stream: PeerStream) -> None:
                await behave(ctx, stream, stream.messages(max_bytes=n.MAX_HANDSHAKE_BYTES))

        return [
            ProtocolSpec(
                protocol_name=n.PROTOCOL_NAME,
                version=1,
                handler=Handler(),
                access=Access.STRANGER,
                capabilities=frozenset({Capability.STRANGERS}),
            )
        ]


def evil(behave: Callable[..., Awaitable[None]]) -> type[EvilReceiver]:
    return type("Evil", (EvilReceiver,), {"behave": staticmethod(behave)})


@asynccontextmanager
async def evil_receiver(home: Path, behave: Callable[..., Awaitable[None]]) -> AsyncIterator[tuple[Side, str]]:
    """An honest sender that has found an evil receiver; gives its peer id."""
    async with linked_nodes(1, plugins=PLUGINS, home=home) as nodes:
        node = memory_node(home, "evil", network=nodes.network, discovery=nodes.discovery, plugins=[evil(behave)])
        async with node as other:
            sender = side(nodes[0], nodes)
            peer_id = other.identity.peer_id
            sender.drops._finder.strangers[peer_id] = finder.Stranger(peer_id, other.addresses, "Ben")
            with anyio.fail_after(40):
                yield sender, peer_id


def says(*messages: Message | bytes) -> Callable[..., Awaitable[None]]:
    async def behave(ctx: PluginContext, stream: PeerStream, talk: MessageStream) -> None:
        await talk.receive_bytes()
        for message in messages:
            await stream.send(message if isinstance(message, bytes) else encode_frame(encode(message)))
        await anyio.sleep(5)

    return behave


async def leaves(ctx: PluginContext, stream: PeerStream, talk: MessageStream) -> None:
    await talk.receive_bytes()


KEY = n.NearbyKey(ephemeral=b"\t" + bytes(31), nonce=bytes(32), name="Ben")
BEHAVIOURS: dict[str, Callable[..., Awaitable[None]]] = {
    "garbage": says(os.urandom(100)),
    "oversize": says(b"\xff\xff\xff\x7f"),
    "leaves": leaves,
    "a key of small order": says(msgspec.structs.replace(KEY, ephemeral=SMALL_ORDER)),
    "a presence": says(n.NearbyPresence(name="Ben")),
    "garbage that is not sealed": says(KEY, os.urandom(400)),
    "two keys": says(KEY, KEY),
    "a refusal that controls the terminal": says(n.NearbyRefusal(code="policy", reason="\x1b[31mno\u202e")),
    "nothing": says(),
}


@pytest.mark.parametrize("what", BEHAVIOURS)
async def test_a_receiver_that_talks_nonsense_is_told_in_one_line(
    home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(guests_out, "HANDSHAKE_TIMEOUT_S", 1.0)
    async with evil_receiver(home, BEHAVIOURS[what]) as (sender, peer_id):
        with pytest.raises(NetworkingError) as raised:
            await sender.drops.send_nearby(peer_id, [make_file()])
        assert raised.value.detail
        assert raised.value.detail.isprintable()
        assert sender.drops.drops() == []


def answers(*messages: Message | bytes, before: bool) -> Callable[..., Awaitable[None]]:
    """Shake hands like an honest one, then say something before or after the offer. ``bytes`` is a raw record."""

    async def behave(ctx: PluginContext, stream: PeerStream, talk: MessageStream) -> None:
        own = ctx.local_device.peer_id
        invitee = Invitee(stream.peer_id, own, "Ben", seed=os.urandom(32), nonce=os.urandom(32))
        await talk.send(invitee.receive_commit(await talk.receive(n.NearbyCommit)))
        invitee.receive_reveal(await talk.receive(n.NearbyReveal))
        met = invitee.met
        assert met is not None
        sealed = OneOffStream(ctx.seal_stream(stream, met.secret, opener=False, received=talk.take_pending()))
        await sealed.say(n.NearbyReady())
        if not before:
            await sealed.hear(m.SpacedropRequest)
        for message in messages:
            if isinstance(message, bytes):
                await sealed.send_record(message)
            else:
                own_id = getattr(message, "transfer_id", b"") == bytes(16)
                await sealed.say(
                    msgspec.structs.replace(message, transfer_id=met.drop_id.bytes) if own_id else message  # type: ignore[call-overload]
                )
        await sealed.aclose()

    return behave


YES = m.SpacedropResponse(transfer_id=bytes(16), accepted=True, code="", reason="")
ASKED = m.SpacedropAsked(transfer_id=bytes(16), timeout_ms=1)
AFTERWARDS: dict[str, Callable[..., Awaitable[None]]] = {
    "accepts what was not offered": answers(YES, before=True),
    "asks before there is an offer": answers(ASKED, before=True),
    "garbage before the offer": answers(os.urandom(50), before=True),
    "the end before the offer": answers(before=True),
    "garbage after the offer": answers(os.urandom(50), before=False),
    "asks twice": answers(ASKED, ASKED, before=False),
    "the end after the offer": answers(ASKED, before=False),
    "answers another drop": answers(msgspec.structs.replace(YES, transfer_id=b"x" * 16), before=False),
    "accepts and leaves": answers(YES, before=False),
    "accepts and talks nonsense": answers(YES, os.urandom(50), before=False),
}


@pytest.mark.parametrize("what", AFTERWARDS)
async def test_a_receiver_that_breaks_the_rules_later_ends_the_drop(home: Path, make_file: MakeFile, what: str) -> None:
    async with evil_receiver(home, AFTERWARDS[what]) as (sender, peer_id):
        drop = await sender.drops.send_nearby(peer_id, [make_file()])
        try:
            await sender.drops.confirm(drop.id)
        except NetworkingError:
            assert "before" in what
        ended = await sender.until(drop.id, "failed")
        assert ended.reason
        assert ended.reason.isprintable()
