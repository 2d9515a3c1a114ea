"""A paired device that does not keep to the protocol: nothing outside the folder, nothing shown, a clear error."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from blake3 import blake3

from sdnet_core import NetworkingCore, PeerStream
from sdnet_core.testing import linked_nodes
from sdnet_core.wire import encode
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, TransferState
from sdnet_file_transfer import messages as m

pytestmark = pytest.mark.anyio

GOOD = m.Item(("good.txt",), False, 4, 0, False)
BIG = m.Item(("big.bin",), False, 3 << 20, 0, False)


class Attack(NamedTuple):
    victim: NetworkingCore
    stream: PeerStream
    transfer_id: uuid.UUID

    @property
    def place(self) -> Path:
        return self.victim.config.downloads_dir

    def request(self, items: Sequence[m.Item], /, **changes: object) -> bytes:
        fields: dict[str, object] = {
            "t": 1,
            "transfer_id": self.transfer_id.bytes,
            "purpose": "send",
            "item_count": len(items),
            "total_bytes": sum(item.size for item in items),
            "items": [[list(i.path), i.directory, i.size, i.mtime_ns, i.executable] for i in items],
        }
        return b"\0" + encode({**fields, **changes})

    async def answers(self) -> list[m.ControlMessage]:
        """Everything the victim says until it ends the conversation."""
        said: list[m.ControlMessage] = []
        with anyio.fail_after(10):
            while True:
                try:
                    said.append(m.decode_control(await self.stream.receive_record()))
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return said

    async def send(self, *records: bytes) -> None:
        try:
            for record in records:
                await self.stream.send_record(record)
            await self.stream.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it had enough


@asynccontextmanager
async def attack(tmp_path: Path) -> AsyncIterator[Attack]:
    with anyio.fail_after(40):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=tmp_path / "home") as (attacker, victim):
            stream = await attacker.open_stream(victim.device_info.id, m.PROTOCOL_NAME)
            async with stream:
                yield Attack(victim, stream, uuid.uuid4())
            # It goes on serving.
            (tmp_path / "honest.txt").write_text("hello")
            service = attacker.get_service(FileTransferService)
            honest = await service.send(victim.device_info.id, [tmp_path / "honest.txt"])
            async for transfer in service.watch(honest.id):
                last = transfer
            assert last.state is TransferState.COMPLETED
            assert (victim.config.downloads_dir / "honest.txt").read_text() == "hello"


def segment(item: int, offset: int, data: bytes, digest: bytes | None = None) -> bytes:
    return m.SEGMENT_HEADER.pack(1 if digest is not None else 0, item, offset, len(data)) + data + (digest or b"")


def data(*segments: bytes) -> bytes:
    return b"\x01" + b"".join(segments)


def digest(contents: bytes) -> bytes:
    return blake3(contents).digest()


PATHS = [
    ("..", "escape"),
    ("../escape",),
    ("/tmp/escape",),
    ("a/../../escape",),
    ("good.txt", "..", "..", "escape"),
    (".",),
    ("nul\0byte",),
    ("back\\slash",),
    ("CON",),
    ("trailing.",),
    ("\u202egpj.exe",),
    ("\uff0e\uff0e", "escape"),
    (".sdnet-partial-00000000000000000000000000000000",),
    ("x" * 256,),
    ("d",) * 65,
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_that_leads_elsewhere(tmp_path: Path, path: tuple[str, ...]) -> None:
    async with attack(tmp_path) as it:
        await it.send(it.request([m.Item(path, False, 4, 0, False)]), data(segment(0, 0, b"evil", digest(b"evil"))))
        said = await it.answers()
        assert [type(message) for message in said] == [m.TransferFailure]
        assert os.listdir(tmp_path) == ["home"]
        assert not any("escape" in name for _, _, names in os.walk(tmp_path) for name in names)
        assert "escape" not in os.listdir("/tmp")
        assert not it.place.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"item_count": m.MAX_ITEMS + 1},
        {"item_count": 1_000_000},
        {"total_bytes": 5},
        {"total_bytes": (1 << 63)},
        {"items": []},
        {"items": [[["a"], False, -4, 0, False]]},
        {"items": [[["a"], False, 4, 0, False], [["a"], False, 4, 0, False]], "item_count": 2, "total_bytes": 8},
        {"item_count": 1, "items": [[["a"], False, 4, 0, False], [["b"], False, 0, 0, False]]},
        {"purpose": "x" * 33},
        {"surprise": 1},
    ],
)
async def test_a_request_that_lies(tmp_path: Path, changes: dict[str, object]) -> None:
    async with attack(tmp_path) as it:
        await it.send(it.request([GOOD], **changes))
        said = await it.answers()
        assert [type(message) for message in said if not isinstance(message, m.TransferHeartbeat)] in (
            [m.TransferFailure],
            [],  # more of the manifest could have followed; the stream ended instead
        )
        assert not it.place.exists()


async def test_a_manifest_without_end(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        more = m.encode_control(m.FileTransferItems(items=(m.Item(("x",), False, 0, 0, False),) * m.BATCH_ITEMS))
        await it.send(it.request([GOOD], item_count=m.MAX_ITEMS), *[more] * 98)
        assert [type(message) for message in await it.answers()] in ([m.TransferFailure], [])
        assert not it.place.exists()


LIES = {
    "more than declared": [data(segment(0, 0, b"evil!"))],
    "less than declared": [data(segment(0, 0, b"evi", digest(b"evi")))],
    "another hash": [data(segment(0, 0, b"evil", digest(b"good")))],
    "another hash, in pieces": [data(segment(0, 0, b"ev")), data(segment(0, 2, b"il", digest(b"good")))],
    "a file that was not named": [data(segment(7, 0, b"evil", digest(b"evil")))],
    "a gap": [data(segment(0, 0, b"e")), data(segment(0, 2, b"il", digest(b"evil")))],
    "an offset beyond all": [data(segment(0, 2**63, b"evil"))],
    "the same file twice": [data(segment(0, 0, b"evil", digest(b"evil")))] * 2,
    "complete with nothing sent": [m.encode_control(m.TransferComplete(failed=0))],
    "complete with all failed": [m.encode_control(m.TransferComplete(failed=1))],
    "an unknown kind of record": [b"\x07evil"],
    "unknown flags": [b"\x01" + m.SEGMENT_HEADER.pack(0x80, 0, 0, 4) + b"evil"],
    "a torn segment": [b"\x01" + m.SEGMENT_HEADER.pack(0, 0, 0, 400) + b"evil"],
    "the request again": [m.encode_control(m.FileTransferItems(items=(GOOD,)))],
    "garbage": [os.urandom(1000)],
    "an acknowledgement": [m.encode_control(m.TransferAck(failed=0))],
}


@pytest.mark.parametrize("name", LIES)
async def test_contents_that_lie(tmp_path: Path, name: str) -> None:
    async with attack(tmp_path) as it:
        other = m.Item(("other.txt",), False, 1, 0, False)
        await it.send(it.request([GOOD, other]), *LIES[name])
        said = await it.answers()
        assert [type(message) for message in said] == [m.FileTransferResponse, m.TransferFailure]
        service = it.victim.get_service(FileTransferService)
        with anyio.fail_after(5):
            async for transfer in service.watch(it.transfer_id):
                last = transfer
        assert last.state is TransferState.FAILED
        assert last.reason
        assert os.listdir(it.place) == []


async def test_a_large_file_that_lies_leaves_nothing(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        piece = bytes(1 << 19)
        pieces = [data(segment(0, index << 19, piece)) for index in range(5)]
        await it.send(it.request([BIG]), *pieces, data(segment(0, 5 << 19, piece, bytes(32))))
        said = await it.answers()
        assert isinstance(said[-1], m.TransferFailure)
        assert said[-1].code == m.Refusal.MISMATCH
        assert os.listdir(it.place) == []


async def test_contents_before_the_answer(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        await it.send(data(segment(0, 0, b"evil", digest(b"evil"))), it.request([GOOD]))
        assert [type(message) for message in await it.answers()] == [m.TransferFailure]
        assert not it.place.exists()


async def test_a_link_in_the_place_of_a_private_folder(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        outside = tmp_path / "outside"
        outside.mkdir()
        it.place.mkdir(parents=True)
        os.symlink(outside, it.place / f".sdnet-partial-{it.transfer_id.hex}")
        await it.send(
            it.request([GOOD]),
            data(segment(0, 0, b"good", digest(b"good"))),
            m.encode_control(m.TransferComplete(failed=0)),
        )
        said = await it.answers()
        assert isinstance(said[-1], m.TransferAck)
        assert os.listdir(outside) == []
        assert (it.place / "good.txt").read_bytes() == b"good"
        assert os.listdir(it.place) == ["good.txt"]


async def test_an_id_of_another_transfer(tmp_path: Path) -> None:
    async with attack(tmp_path) as it:
        (tmp_path / "mine").write_text("x")
        service = it.victim.get_service(FileTransferService)
        peer = it.stream.require_device()
        attacker_id = next(d.device_id for d in it.victim.remote_devices())
        assert peer.device_id == it.victim.device_info.id
        granted = await service.grant(attacker_id, it.transfer_id, tmp_path / "granted", 3)
        assert granted.state is TransferState.WAITING
        await it.send(it.request([GOOD], purpose="spacedrop"))
        [answer] = await it.answers()
        assert isinstance(answer, m.FileTransferResponse)
        assert (answer.accepted, answer.code) == (False, m.Refusal.TOO_LARGE)
        assert not (tmp_path / "granted").exists()
