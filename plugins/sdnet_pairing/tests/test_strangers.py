"""What somebody without the code can do to a node that shows one, and what is left lying about."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore, PeerStream
from sdnet_core.errors import ConnectionFailedError, NetworkingError
from sdnet_core.testing import linked_nodes
from sdnet_core.wire import decode, encode
from sdnet_pairing import PairingCode, SessionState
from sdnet_pairing.machine import JoinerMachine
from sdnet_pairing.messages import MAX_MESSAGE_BYTES, PairingRequest, Refusal
from sdnet_pairing.steps import Send, Start

from .nodes import PairingPlugin, asked, ended, pairing, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def stranger_stream(node: NetworkingCore, target: NetworkingCore) -> AsyncIterator[PeerStream]:
    stream = await node.open_stranger_stream(target.identity.peer_id, target.addresses, "pairing")
    try:
        yield stream
    finally:
        await stream.reset()


def request_of(node: NetworkingCore, target: NetworkingCore, code: PairingCode) -> PairingRequest:
    """What a joiner with this code says first."""
    side = pairing(node).local_side()
    (command,) = JoinerMachine(side, target.identity.peer_id, code.keys()).handle(Start())
    assert isinstance(command, Send)
    assert isinstance(command.message, PairingRequest)
    return command.message


async def test_everything_that_proves_nothing_gets_the_same_answer() -> None:
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        right = PairingCode.parse(shown.words)
        used = await pairing(a).start_pairing_as_initiator()
        pairing(a).cancel(str(used.status.id))
        request = request_of(b, a, right)
        answers = set()
        for message in (
            b"",
            b"garbage",
            b"\xff" * 4096,
            b"x" * (MAX_MESSAGE_BYTES + 1),
            encode(Refusal()),
            encode(request_of(b, a, PairingCode(bytes(16)))),
            encode(request_of(b, a, PairingCode.parse(used.words))),
            encode(request)[:-1] + bytes([encode(request)[-1] ^ 1]),
        ):
            async with stranger_stream(b, a) as stream:
                messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
                with anyio.fail_after(5):
                    await messages.send_bytes(message)
                    answers.add(await messages.receive_bytes())
        assert answers == {encode(Refusal())}
        assert pairing(a).get_session(str(shown.status.id)).state is SessionState.WAITING_FOR_CONNECTION


async def test_attempts_without_the_code_are_counted_and_audited() -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        shown = await pairing(a).start_pairing_as_initiator()
        for node in (b, b, c):
            async with stranger_stream(node, a) as stream:
                messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
                await messages.send(request_of(node, a, PairingCode(bytes(16))))
                assert decode(await messages.receive_bytes(), Refusal) == Refusal()
        await until(lambda: pairing(a).get_session(str(shown.status.id)).refused == 3)
        pairing(a).cancel(str(shown.status.id))
        await until(lambda: not {tag for peer in b.discovery.peers() for tag in peer.tags})
        await a.audit.flush()
        (line,) = (line for line in await a.audit.read() if line["kind"] == "pairing-attempts-refused")
        assert line["count"] == 3
        assert line["peer_ids"] == [b.identity.peer_id, c.identity.peer_id]


async def test_a_request_overheard_is_worthless_to_another_device() -> None:
    async with linked_nodes(3, plugins=[PairingPlugin], paired=False) as (a, b, c):
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        overheard = request_of(b, a, PairingCode.parse(shown.words))
        async with stranger_stream(c, a) as stream:
            messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
            await messages.send(overheard)
            assert decode(await messages.receive_bytes(), Refusal) == Refusal()


async def test_strangers_that_keep_streams_open_do_not_keep_the_joiner_out() -> None:
    async with linked_nodes(8, plugins=[PairingPlugin], paired=False) as nodes:
        a, b, *strangers = nodes
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        async with anyio.create_task_group() as tasks:

            async def hold(node: NetworkingCore) -> None:
                while True:
                    try:
                        async with stranger_stream(node, a) as stream:
                            await stream.send(b"\x05")
                            await stream.receive()
                    except (NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream):
                        await anyio.sleep(0.01)

            for node in strangers:
                for _ in range(3):
                    tasks.start_soon(hold, node)
            initiator = pairing(a)._initiator
            assert initiator is not None
            await until(lambda: len(initiator._unproven) == pairing(a).limits.max_unproven)
            joining = await pairing(b).start_pairing_as_joiner(shown.words)
            assert (await ended(pairing(b), joining)).state is SessionState.COMPLETED
            assert len(initiator._unproven) <= pairing(a).limits.max_unproven
            tasks.cancel_scope.cancel()


async def test_a_stranger_that_says_nothing_is_cut_off() -> None:
    class Hasty(PairingPlugin):
        limits = type(PairingPlugin.limits)(step_timeout_s=0.1)

    Hasty.__name__ = "PairingPlugin"
    async with linked_nodes(2, plugins=[Hasty], paired=False) as (a, b):
        async with stranger_stream(b, a) as stream:
            with anyio.fail_after(5), pytest.raises(ConnectionFailedError):
                await stream.messages().receive_bytes()


def assert_not_in_files(folder: Path, needles: list[bytes]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), path


async def test_the_code_is_neither_on_disk_nor_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False, home=tmp_path) as (a, b):
        shown = await pairing(a).start_pairing_as_initiator()
        joining = await pairing(b).start_pairing_as_joiner(shown.words)
        await asked(pairing(a), shown.status)
        pairing(a).accept(str(shown.status.id))
        await ended(pairing(b), joining)
        code = PairingCode.parse(shown.words)
        keys = code.keys()
        (state,) = a._registry.devices()
        secrets = [code.entropy, keys.psk, keys.discovery, keys.record, state.device.pairing_root]
        needles = [" ".join(shown.words), repr(shown.words), repr(list(shown.words))]
        needles += [form for secret in secrets for form in (secret.hex(), repr(secret))]
        lying_about = caplog.text + repr(pairing(a).get_pairing_status()) + repr(shown)
    assert not any(needle in lying_about for needle in needles)
    assert_not_in_files(tmp_path, [*secrets, *(needle.encode() for needle in needles)])
