"""Strangers whose drop a person has accepted, and whose files are not what files are."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from sdnet_core.wire import encode
from sdnet_file_transfer import messages as f
from sdnet_spacedrop import budget, finder
from sdnet_spacedrop import messages as m

from .test_hostile_guests import serve_honest, strangers, talk_to

pytestmark = pytest.mark.anyio

ITEMS, BYTES = 10, 1 << 20
"""What the offer said."""
OFFERED = m.SpacedropItem("holiday", True, BYTES, ITEMS)
GOOD = f.Item(("good.txt",), False, 4, 0, False)


@pytest.fixture(autouse=True)
def many_meetings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "LOOK_S", 0.1)
    monkeypatch.setattr(budget, "MAX_MEETINGS_PER_MINUTE", 1000)
    monkeypatch.setattr(budget, "MAX_MEETINGS_PER_PEER", 1000)


def request(items: Sequence[f.Item], **changes: object) -> Callable[[bytes], bytes]:
    fields: dict[str, object] = {
        "t": 1,
        "purpose": "spacedrop",
        "item_count": len(items),
        "total_bytes": sum(item.size for item in items),
        "items": [[list(i.path), i.directory, i.size, i.mtime_ns, i.executable] for i in items],
    }
    return lambda transfer_id: b"\0" + encode({**fields, "transfer_id": transfer_id, **changes})


def named(*path: str) -> Callable[[bytes], bytes]:
    return request([f.Item(path, False, 4, 0, False)])


def data(contents: bytes, *, offset: int = 0, digest: bytes | None = None) -> bytes:
    header = f.SEGMENT_HEADER.pack(1 if digest is not None else 0, 0, offset, len(contents))
    return b"\x01" + header + contents + (digest or b"")


EVIL = data(b"evil", digest=blake3(b"evil").digest())
BOMB = struct.pack(">BI", f.PACKED, BYTES) + zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))

CASES: dict[str, tuple[Callable[[bytes], bytes], list[bytes]]] = {
    "traversal": (named("..", "escape"), [EVIL]),
    "traversal in a component": (named("../escape"), [EVIL]),
    "an absolute path": (named("/tmp/escape"), [EVIL]),
    "traversal once it is normalised": (named("\uff0e\uff0e", "escape"), [EVIL]),
    "the name of a device": (named("CON"), [EVIL]),
    "a name that shows as another": (named("\u202egpj.exe"), [EVIL]),
    "a name that is too long": (named("x" * 256), [EVIL]),
    "nesting without end": (named(*["d"] * 65), [EVIL]),
    "a private folder": (named(".sdnet-partial-" + "0" * 32), [EVIL]),
    "names that become one": (request([f.Item((n,), False, 4, 0, False) for n in ("caf\u00e9", "cafe\u0301")]), []),
    "a million items": (request([GOOD], item_count=1_000_000), []),
    "more items than agreed": (request([f.Item((str(n),), False, 0, 0, False) for n in range(ITEMS + 1)]), []),
    "more bytes than agreed": (request([f.Item(("a",), False, BYTES + 1, 0, False)]), []),
    "another purpose": (request([GOOD], purpose="send"), [EVIL]),
    "another transfer": (request([GOOD], transfer_id=uuid.uuid4().bytes), [EVIL]),
    "more than declared": (request([GOOD]), [data(b"evil!")]),
    "another hash": (request([GOOD]), [data(b"evil", digest=bytes(32))]),
    "a gap": (request([GOOD]), [data(b"e"), data(b"il", offset=2)]),
    "a compressed bomb": (request([GOOD]), [BOMB]),
    "an unknown record": (request([GOOD]), [b"\x07evil"]),
    "complete with nothing sent": (request([GOOD]), [f.encode_control(f.TransferComplete(failed=0))]),
}


async def test_a_strangers_files_that_lie_leave_nothing(
    home: Path, make_file: Callable[..., Path], tmp_path: Path
) -> None:
    photo = make_file()
    before = set(os.listdir("/tmp"))
    async with strangers(home) as pair:
        for name, (asked, records) in CASES.items():
            async with talk_to(pair.receiver.core, pair.sender.core, pair.sender.drops._ctx) as talk:
                sealed = await talk.shake_hands()
                (seen,) = await pair.receiver.offered()
                await sealed.say(talk.offer(items=(OFFERED,), item_count=ITEMS, total_bytes=BYTES))
                await pair.receiver.until(seen.id, "asking")
                await pair.receiver.drops.accept(seen.id)
                while not isinstance(answer := await sealed.hear(m.SenderMessage), m.SpacedropResponse):
                    pass
                assert answer.accepted
                for record in [asked(uuid.UUID(seen.id).bytes), *records]:
                    await sealed.send_record(record)
                await sealed.send_eof()
                ended = await pair.receiver.until(seen.id, "failed")
                assert ended.reason, name
                assert pair.receiver.received() == {}, name
                assert not pair.receiver.downloads.exists() or os.listdir(pair.receiver.downloads) == [], name
        assert not any("escape" in entry for _, folders, files in os.walk(tmp_path) for entry in (*folders, *files))
        assert "escape" not in set(os.listdir("/tmp")) - before
        await serve_honest(pair, photo)
