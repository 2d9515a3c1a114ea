"""Strangers, other kinds of lies, and the other side of a resume: what hostile peers try beyond `test_hostile`."""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import zstandard
from blake3 import blake3

from sdnet_core import NetworkingCore, PeerStream, PluginContext, ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.errors import NetworkingError, ProtocolError
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, check_protocol, linked_nodes, memory_node, pair
from sdnet_core.wire import encode
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, Transfer, TransferState
from sdnet_file_transfer import fetch_messages as f
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.shares import Entry

from .test_hostile import GOOD, attack, data, digest, segment

pytestmark = pytest.mark.anyio


def service(core: NetworkingCore) -> FileTransferService:
    return core.get_service(FileTransferService)


async def finish(core: NetworkingCore, transfer_id: uuid.UUID) -> Transfer:
    async for transfer in service(core).watch(transfer_id):
        last = transfer
    assert last.state.terminal
    return last


async def test_every_protocol_shrugs_off_hostile_peers() -> None:
    """As a stranger and as a paired device: garbage, floods, silence, huge lengths."""
    report = await check_protocol(FileTransferPlugin)
    assert {attempt.by for attempt in report.attempts} == {"paired device", "stranger"}


@pytest.mark.parametrize("protocol", [m.PROTOCOL_NAME, f.PROTOCOL_NAME, "file-content"])
async def test_a_stranger_cannot_even_offer_ask_or_list(tmp_path: Path, protocol: str) -> None:
    with anyio.fail_after(60):
        async with linked_nodes(2, plugins=[FileTransferPlugin], paired=False, home=tmp_path / "home") as (a, b):
            record = b"\0" + encode({"t": 1, "path": [], "after": ""})
            with pytest.raises((NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream)):  # noqa: PT012
                stream = await a.open_stranger_stream(b.identity.peer_id, b.addresses, protocol)
                async with stream:
                    await stream.send_record(record)
                    await stream.receive_record()
            assert not b.config.downloads_dir.exists()
            assert service(b).transfers() == []


@pytest.mark.parametrize("count", [m.MAX_ITEMS + 1, 1_000_000, 1 << 62])
async def test_more_items_than_any_transfer_may_have(tmp_path: Path, count: int) -> None:
    async with attack(tmp_path) as it:
        await it.send(it.request([GOOD], item_count=count))
        assert [type(message) for message in await it.answers()] == [m.TransferFailure]
        assert not it.place.exists()


async def test_nesting_beyond_the_limit_and_up_to_it(tmp_path: Path) -> None:
    names = [f"d{depth}" for depth in range(m.MAX_DEPTH - 1)]
    folders = [m.Item(tuple(names[: depth + 1]), True, 0, 0, False) for depth in range(len(names))]
    deepest = m.Item((*names, "good.txt"), False, 4, 0, False)
    async with attack(tmp_path) as it:
        await it.send(
            it.request([*folders, deepest]),
            data(segment(len(folders), 0, b"good", digest(b"good"))),
            m.encode_control(m.TransferComplete(failed=0)),
        )
        assert isinstance((await it.answers())[-1], m.TransferAck)
        assert (it.place.joinpath(*names) / "good.txt").read_bytes() == b"good"


async def test_names_that_differ_in_case_do_not_become_one_file(tmp_path: Path) -> None:
    items = [m.Item((name,), False, 4, 0, False) for name in ("Read.txt", "read.TXT", "READ.txt")]
    async with attack(tmp_path) as it:
        await it.send(
            it.request(items),
            data(*[segment(index, 0, text, digest(text)) for index, text in enumerate((b"one!", b"two!", b"six!"))]),
            m.encode_control(m.TransferComplete(failed=0)),
        )
        said = await it.answers()
        # Where the file system tells case apart all three arrive; elsewhere the second is refused, never put over it.
        found = sorted(path.read_bytes() for path in it.place.iterdir())
        assert found == ([b"one!", b"six!", b"two!"] if isinstance(said[-1], m.TransferAck) else [])


@pytest.mark.parametrize("pair", [("caf\u00e9", "cafe\u0301"), ("\uff21.txt", "\uff21.txt"), ("\u212b", "\u00c5")])
async def test_names_that_are_equal_once_they_are_normalised(tmp_path: Path, pair: tuple[str, str]) -> None:
    async with attack(tmp_path) as it:
        await it.send(it.request([m.Item((name,), False, 4, 0, False) for name in pair]))
        assert [type(message) for message in await it.answers()] == [m.TransferFailure]
        assert not it.place.exists()


ZEROS = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
PACKED = {
    "a bomb that admits to its size": struct.pack(">BI", m.PACKED, 1 << 30) + ZEROS,
    "a bomb that says it is small": struct.pack(">BI", m.PACKED, 1 << 20) + ZEROS,
    "a frame without a size": struct.pack(">BI", m.PACKED, 1 << 20)
    + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20)),
    "no frame": struct.pack(">BI", m.PACKED, 100) + os.urandom(100),
    "a control message inside": struct.pack(">BI", m.PACKED, 17) + zstandard.ZstdCompressor().compress(b"\0" * 17),
    "a compressed record inside": struct.pack(">BI", m.PACKED, len(ZEROS[:1000]) + 1)
    + zstandard.ZstdCompressor().compress(b"\2" + ZEROS[:1000]),
}


@pytest.mark.parametrize("name", PACKED)
async def test_compressed_records_that_are_not_what_they_say(tmp_path: Path, name: str) -> None:
    async with attack(tmp_path) as it:
        await it.send(it.request([GOOD]), PACKED[name])
        said = await it.answers()
        assert [type(message) for message in said] == [m.FileTransferResponse, m.TransferFailure]
        assert os.listdir(it.place) == []


async def test_a_compressed_record_does_not_get_more_into_a_file_than_was_declared(tmp_path: Path) -> None:
    inside = data(segment(0, 0, bytes(1 << 19)))
    record = struct.pack(">BI", m.PACKED, len(inside)) + zstandard.ZstdCompressor().compress(inside)
    async with attack(tmp_path) as it:
        await it.send(it.request([GOOD]), record)
        assert isinstance((await it.answers())[-1], m.TransferFailure)
        assert os.listdir(it.place) == []


Serve = Callable[[PeerStream], Awaitable[None]]


def hostile_plugin(protocol: str, serve: Serve) -> type:
    """A plugin that serves a protocol of the file transfer in its own way."""

    class Handler(ProtocolHandler):
        protocol_name = protocol

        async def handle_stream(self, stream: PeerStream) -> None:
            await serve(stream)

    class HostilePlugin:
        @hookimpl
        def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
            return [ProtocolSpec(protocol_name=protocol, version=1, handler=Handler())]

    return HostilePlugin


@asynccontextmanager
async def odd_pair(tmp_path: Path, protocol: str, serve: Serve) -> AsyncIterator[tuple[NetworkingCore, NetworkingCore]]:
    """An honest node, and one that is paired with it and serves a protocol in its own way."""
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    odd = hostile_plugin(protocol, serve)
    with anyio.fail_after(60):
        async with (
            memory_node(
                tmp_path, "honest", network=network, discovery=discovery, plugins=[FileTransferPlugin]
            ) as honest,
            memory_node(tmp_path, "hostile", network=network, discovery=discovery, plugins=[odd]) as hostile,
        ):
            await pair(honest, hostile, honest.randomness)
            yield honest, hostile


SOURCE = os.urandom(3 << 20)


@pytest.mark.parametrize(
    ("held", "comes"),
    [
        (m.ItemResume(0, 1 << 20, bytes(32), False), 0),
        (m.ItemResume(0, 1 << 20, blake3(SOURCE[: 1 << 20]).digest(), False), 1 << 20),
        (m.ItemResume(0, len(SOURCE), bytes(32), False), 0),
        (m.ItemResume(0, len(SOURCE) + 1, bytes(32), False), None),
        (m.ItemResume(1, 1, bytes(32), False), None),
        (m.ItemResume(0, 7, bytes(32), True), None),
    ],
)
async def test_a_receiver_that_claims_to_hold_what_it_does_not(
    tmp_path: Path, held: m.ItemResume, comes: int | None
) -> None:
    taken: list[tuple[int, bytes]] = []

    async def serve(stream: PeerStream) -> None:
        request = m.decode_control(await stream.receive_record())
        assert isinstance(request, m.FileTransferRequest)
        answer = m.FileTransferResponse(
            transfer_id=request.transfer_id,
            accepted=True,
            complete=False,
            code="",
            reason="",
            resume_count=1,
            resume=(held,),
        )
        await stream.send_record(m.encode_control(answer))
        while True:
            record = await stream.receive_record()
            if record[0] == m.DATA:
                taken.extend((chunk.offset, bytes(chunk.data)) for chunk in m.segments(record))
            elif isinstance(m.decode_control(record), m.TransferComplete):
                await stream.send_record(m.encode_control(m.TransferAck(failed=0)))

    path = tmp_path / "file"
    path.write_bytes(SOURCE)
    async with odd_pair(tmp_path, m.PROTOCOL_NAME, serve) as (honest, hostile):
        transfer = await service(honest).send(hostile.device_info.id, [path])
        done = await finish(honest, transfer.id)
        if comes is None:
            assert done.state is TransferState.FAILED
            assert taken == []
        else:
            assert done.state is TransferState.COMPLETED
            assert taken[0][0] == comes
            assert b"".join(piece for _, piece in taken) == SOURCE[comes:]


GIVEN: dict[str, tuple[dict[str, object], list[list[object]]]] = {
    "another transfer": ({"transfer_id": bytes(16)}, [[["wanted"], False, 4, 0, False]]),
    "another name": ({}, [[["other"], False, 4, 0, False]]),
    "another name beside it": ({}, [[["wanted"], False, 4, 0, False], [["other"], False, 4, 0, False]]),
    "a path that leads out": ({}, [[["wanted"], True, 0, 0, False], [["wanted", "..", "x"], False, 4, 0, False]]),
    "another purpose": ({"purpose": "send"}, [[["wanted"], False, 4, 0, False]]),
}


@pytest.mark.parametrize("name", GIVEN)
async def test_a_device_that_gives_something_else_than_it_was_asked_for(tmp_path: Path, name: str) -> None:
    changes, items = GIVEN[name]
    ends = anyio.Event()

    async def serve(stream: PeerStream) -> None:
        asked = f.decode_fetch(await stream.receive_record())
        assert isinstance(asked, f.FetchItems)
        request: dict[str, object] = {"t": 1, "transfer_id": asked.transfer_id, "purpose": "get", "items": items}
        request |= {"item_count": len(items), "total_bytes": sum(int(str(item[2])) for item in items)}
        await stream.send_record(b"\0" + encode({**request, **changes}))
        await stream.send_record(data(segment(0, 0, b"evil", digest(b"evil"))))
        await stream.send_record(m.encode_control(m.TransferComplete(failed=0)))
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive_record()
        ends.set()

    async with odd_pair(tmp_path, f.PROTOCOL_NAME, serve) as (honest, hostile):
        transfer = await service(honest).shared.get(hostile.device_info.id, ["share", "wanted"])
        done = await finish(honest, transfer.id)
        assert done.state in (TransferState.FAILED, TransferState.REJECTED)
        assert done.reason
        await ends.wait()
        place = honest.config.downloads_dir
        assert not place.exists() or os.listdir(place) == []


async def test_a_listing_that_lies_is_an_error(tmp_path: Path) -> None:
    listings = [
        f.FetchListing(entries=(Entry("b", False, 1, 0, False), Entry("a", False, 1, 0, False)), more=False),
        f.FetchListing(entries=(Entry("a", False, 1, 0, False),) * 2, more=False),
        f.FetchListing(entries=(Entry("a", False, 1, 0, False),), more=True),
    ]

    async def serve(stream: PeerStream) -> None:
        while True:
            await stream.receive_record()
            await stream.send_record(f.encode_fetch(listings[0]))

    async with odd_pair(tmp_path, f.PROTOCOL_NAME, serve) as (honest, hostile):
        while listings:
            with pytest.raises(ProtocolError):
                await service(honest).shared.list(hostile.device_info.id)
            del listings[0]
