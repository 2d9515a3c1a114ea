"""Senders that are not paired and do not keep to the protocol, and many of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import pytest

from sdnet_core import (
    NetworkingCore,
    PeerStream,
    PluginContext,
)
from sdnet_core.errors import NetworkingError, RefusedError
from sdnet_core.testing import check_protocol, linked_nodes, memory_node
from sdnet_core.wire import MessageStream, encode, encode_frame
from sdnet_file_transfer import FileTransferPlugin
from sdnet_spacedrop import SpacedropOffered, SpacedropPlugin, budget, finder
from sdnet_spacedrop import messages as m
from sdnet_spacedrop import nearby_messages as n
from sdnet_spacedrop.meeting import Inviter
from sdnet_spacedrop.oneoff import OneOffStream

from .conftest import PLUGINS, Pair, configure, run_pair, side
from .test_hostile import offer

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]
EVERYONE = 'visibility = "everyone"'
SMALL_ORDER = (1).to_bytes(32, "little")


@asynccontextmanager
async def strangers(home: Path) -> AsyncIterator[Pair]:
    configure(home, "node1", EVERYONE)
    async with run_pair(home, paired=False) as pair:
        yield pair


class Talk(NamedTuple):
    """A stranger's conversation with a victim, below any service."""

    stream: PeerStream
    messages: MessageStream
    inviter: Inviter
    ctx: PluginContext

    async def shake_hands(self) -> OneOffStream:
        """Keep to the protocol up to the sealed stream."""
        await self.messages.send(self.inviter.commit())
        await self.messages.send(self.inviter.receive(await self.messages.receive(n.NearbyKey)))
        assert self.inviter.met is not None
        sealed = self.ctx.seal_stream(
            self.stream, self.inviter.met.secret, opener=True, received=self.messages.take_pending()
        )
        talk = OneOffStream(sealed)
        await talk.hear(n.NearbyReady)
        return talk

    def offer(self, **changes: object) -> m.SpacedropRequest:
        """An offer under the id that the two have agreed upon."""
        assert self.inviter.met is not None
        return offer(**{"transfer_id": self.inviter.met.drop_id.bytes, **changes})


@asynccontextmanager
async def talk_to(victim: NetworkingCore, stranger: NetworkingCore, ctx: PluginContext) -> AsyncIterator[Talk]:
    peers = (stranger.identity.peer_id, victim.identity.peer_id)
    stream = await stranger.open_stranger_stream(peers[1], victim.addresses, n.PROTOCOL_NAME)
    try:
        inviter = Inviter(*peers, "Mallory\x1b[2J\u202e", seed=os.urandom(32), nonce=os.urandom(32))
        with anyio.fail_after(30):
            yield Talk(stream, stream.messages(max_bytes=n.MAX_HANDSHAKE_BYTES), inviter, ctx)
    finally:
        with anyio.move_on_after(1, shield=True):
            await stream.reset()


@asynccontextmanager
async def attack(pair: Pair) -> AsyncIterator[Talk]:
    """Speak to the receiver as a stranger; afterwards nothing of it is left, and honest people are served."""
    async with talk_to(pair.receiver.core, pair.sender.core, pair.sender.drops._ctx) as talk:
        yield talk
    with anyio.fail_after(30):
        async with pair.receiver.core.events.subscribe() as events:
            while pair.receiver.drops.pending():
                await events.receive()
    assert pair.receiver.received() == {}
    assert await pair.receiver.core.plugin_storage("spacedrop").list("drops") == []
    assert not [record.reason for record in pair.receiver.core.plugin_records() if record.reason]


async def serve_honest(pair: Pair, photo: Path) -> None:
    """An honest stranger's drop arrives."""
    drop = await pair.sender.drops.send_nearby(pair.receiver.core.identity.peer_id, [photo])
    await pair.sender.drops.confirm(drop.id)
    await pair.receiver.until(drop.id, "asking")
    await pair.receiver.drops.accept(drop.id)
    await pair.sender.until(drop.id, "completed")
    assert list(pair.receiver.received()) == [photo.name]


@pytest.fixture(autouse=True)
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "LOOK_S", 0.1)


async def test_every_attack_of_the_testing_kit_is_shrugged_off() -> None:
    settings = {"plugins": {"spacedrop": {"visibility": "everyone"}}}
    report = await check_protocol(SpacedropPlugin, plugins=[FileTransferPlugin], settings=settings)
    assert report.problems == ()


BEFORE_SEALING: dict[str, bytes] = {
    "garbage": os.urandom(300),
    "oversize": b"\xff\xff\xff\x7f",
    "another message": encode_frame(encode(n.NearbyReveal(ephemeral=bytes(32), nonce=bytes(32)))),
    "an offer": encode_frame(encode(offer())),
    "a long name": encode_frame(encode({"t": 3, "commitment": bytes(32), "name": "x" * 65})),
    "nothing": b"",
}


@pytest.mark.parametrize("what", BEFORE_SEALING)
@pytest.mark.parametrize("step", ["first", "reveal"])
async def test_nonsense_before_the_stream_is_sealed(home: Path, make_file: MakeFile, what: str, step: str) -> None:
    async with strangers(home) as pair:
        async with attack(pair) as talk:
            if step == "reveal":
                await talk.messages.send(talk.inviter.commit())
                await talk.messages.receive(n.NearbyKey)
            if BEFORE_SEALING[what]:
                await talk.stream.send(BEFORE_SEALING[what])
            await talk.stream.send_eof()
            with pytest.raises(NetworkingError):
                await talk.messages.receive_bytes()
            assert pair.receiver.drops.drops() == []  # no prompt, no trace
        await serve_honest(pair, make_file())


@pytest.mark.parametrize("what", ["another key", "another nonce", "small order"])
async def test_a_key_that_was_not_committed_to_shows_no_number(home: Path, make_file: MakeFile, what: str) -> None:
    async with strangers(home) as pair:
        async with attack(pair) as talk:
            await talk.messages.send(talk.inviter.commit())
            reveal = talk.inviter.receive(await talk.messages.receive(n.NearbyKey))
            changes = {
                "another key": {"ephemeral": os.urandom(32)},
                "another nonce": {"nonce": os.urandom(32)},
                "small order": {"ephemeral": SMALL_ORDER},
            }
            await talk.messages.send(msgspec.structs.replace(reveal, **changes[what]))
            with pytest.raises(NetworkingError):
                await talk.messages.receive_bytes()
            assert pair.receiver.drops.drops() == []
        await serve_honest(pair, make_file())


async def garbage(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.send_record(os.urandom(200))


async def too_long(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.send_record(bytes(1 << 20))


async def unsealed(talk: Talk, sealed: OneOffStream) -> None:
    await talk.stream.send(encode_frame(encode(talk.offer())))


async def the_end(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.send_eof()


async def another_drop(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.say(offer())  # as if replayed from another conversation


async def two_offers(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.say(talk.offer())
    await sealed.say(talk.offer(message="and another thing"))


async def out_of_bounds(talk: Talk, sealed: OneOffStream) -> None:
    values = msgspec.to_builtins(talk.offer(), builtin_types=(bytes,)) | {"item_count": 1 << 60}
    await sealed.send_record(encode(values))


async def an_answer(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.say(m.SpacedropResponse(transfer_id=talk.offer().transfer_id, accepted=True, code="", reason=""))


async def files_before_the_answer(talk: Talk, sealed: OneOffStream) -> None:
    await sealed.say(talk.offer())
    await sealed.send_record(b"\0" + encode({"t": 1}))


Move = Callable[[Talk, OneOffStream], Awaitable[None]]
MOVES: list[Move] = [
    garbage, too_long, unsealed, the_end, another_drop, two_offers, out_of_bounds, an_answer, files_before_the_answer,
]  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
async def test_nonsense_on_the_sealed_stream_ends_the_drop(home: Path, make_file: MakeFile, move: Move) -> None:
    async with strangers(home) as pair:
        async with attack(pair) as talk:
            sealed = await talk.shake_hands()
            (seen,) = await pair.receiver.offered()
            await move(talk, sealed)
            ended = await pair.receiver.until(seen.id, "failed", "cancelled")
            assert ended.reason
        await serve_honest(pair, make_file())


async def test_a_stranger_s_texts_cannot_control_a_terminal(home: Path) -> None:
    evil = "\x1b]0;owned\x07\u202egpj.exe\x9b2J"
    async with strangers(home) as pair, attack(pair) as talk:
        sealed = await talk.shake_hands()
        (seen,) = await pair.receiver.offered()
        assert seen.device_name.isprintable()
        item = m.SpacedropItem(evil, False, 10, 1)
        await sealed.say(talk.offer(sender_name=evil, message=f"{evil}\nbye", items=(item,)))
        shown = await pair.receiver.until(seen.id, "asking")
        assert shown.sender_name == seen.device_name  # not what the offer says, but what was bound to the number
        for text in (shown.device_name, shown.items[0].name, *shown.message.split("\n")):
            assert text.isprintable()
        await sealed.say(m.SpacedropCancel(transfer_id=uuid.UUID(seen.id).bytes, reason=evil))
        assert (await pair.receiver.until(seen.id, "cancelled")).reason.isprintable()


async def test_a_recorded_conversation_cannot_be_played_again(home: Path) -> None:
    async with strangers(home) as pair:
        async with attack(pair) as talk:
            sealed = await talk.shake_hands()
            await sealed.send_eof()
        said = [talk.inviter._commit, talk.inviter._reveal]
        async with attack(pair) as again:
            for message in said:
                assert message is not None
                await again.messages.send(message)
                await again.messages.receive_bytes() if message is said[0] else None
            # The number and the keys are others, so nothing that was recorded opens.
            (seen,) = await pair.receiver.offered()
            assert talk.inviter.met is not None
            assert seen.id != str(talk.inviter.met.drop_id)
            assert seen.check != talk.inviter.met.check
            await again.stream.send(os.urandom(100))
            await pair.receiver.until(seen.id, "failed")


@pytest.mark.parametrize("lie", ["larger", "more"])
async def test_what_changed_after_the_offer_does_not_come_in(home: Path, make_file: MakeFile, lie: str) -> None:
    folder = make_file("holiday/a.txt", 1000).parent
    async with strangers(home) as pair:
        drop = await pair.sender.drops.send_nearby(pair.receiver.core.identity.peer_id, [folder])
        await pair.sender.drops.confirm(drop.id)
        await pair.receiver.until(drop.id, "asking")
        if lie == "larger":
            make_file("holiday/a.txt", 100_000)
        else:
            (folder / "a.txt").write_bytes(b"")
            (folder / "b.txt").write_bytes(b"")
        await pair.receiver.drops.accept(drop.id)
        assert (await pair.sender.until(drop.id, "failed")).by_peer
        assert "agreed" in (await pair.receiver.until(drop.id, "failed")).reason
        assert pair.receiver.received() == {}


# Many


async def test_a_flood_of_strangers_leaves_the_person_and_paired_devices_in_peace(
    home: Path, make_file: MakeFile
) -> None:
    """50 strangers ask at once, again and again: few prompts, bounded memory, and a paired device is served."""
    configure(home, "node1", EVERYONE)
    refused = served = 0
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(linked_nodes(2, plugins=PLUGINS, home=home))
        sender, receiver = (side(node, nodes) for node in nodes)
        crowd = [
            await stack.enter_async_context(
                memory_node(home, f"stranger{number}", network=nodes.network, discovery=nodes.discovery)
            )
            for number in range(50)
        ]
        most = 0

        async def pester(stranger: NetworkingCore) -> None:
            nonlocal served, most

            def count_refusal() -> None:
                nonlocal refused
                refused += 1
                if refused == 100:
                    enough.set()

            for _ in range(3):
                try:
                    async with talk_to(receiver.core, stranger, sender.drops._ctx) as talk:
                        try:
                            await talk.shake_hands()
                        except NetworkingError:
                            count_refusal()
                            continue
                        served += 1
                        most = max(most, len(receiver.drops.pending()))
                        await done.wait()
                        return
                except NetworkingError:
                    count_refusal()

        done, enough = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            for stranger in crowd:
                tasks.start_soon(pester, stranger)
            photo = make_file()
            drop = await sender.drops.send(receiver.core.device_info.id, [photo], "from a friend")
            with anyio.fail_after(60):
                async with receiver.core.events.subscribe([SpacedropOffered.kind]) as events:
                    while drop.id not in {offer.id for offer in receiver.drops.pending()}:
                        await events.receive()
            await receiver.drops.accept(drop.id)
            await sender.until(drop.id, "completed")
            assert list(receiver.received()) == [photo.name]
            with anyio.fail_after(60):
                await enough.wait()
            assert len(receiver.drops.pending()) <= budget.MAX_PROMPTS
            done.set()
        assert served <= budget.MAX_MEETINGS_PER_MINUTE
        assert most <= budget.MAX_PROMPTS + 1  # with the paired device's
        assert len(receiver.drops.drops()) <= budget.MAX_MEETINGS_PER_MINUTE + 1
        # The flood has not pushed out what the person has answered.
        assert receiver.drops.inbox()[0].message == "from a friend"
        # He can end it.
        await receiver.drops.visibility.set("paired")
        async with talk_to(receiver.core, crowd[0], sender.drops._ctx) as talk:
            with pytest.raises(NetworkingError):
                await talk.shake_hands()


async def test_one_stranger_waits_once(home: Path) -> None:
    async with strangers(home) as pair, attack(pair) as talk:
        await talk.shake_hands()
        await pair.receiver.offered()
        peer_id = pair.receiver.core.identity.peer_id
        await pair.sender.drops.nearby()
        with pytest.raises(RefusedError, match="Too many"):
            await pair.sender.drops.send_nearby(peer_id, [Path(__file__)])
        assert len(pair.receiver.drops.pending()) == 1
