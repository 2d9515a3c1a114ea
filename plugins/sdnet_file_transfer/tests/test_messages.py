from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_file_transfer import messages as m

GOLDEN = Path(__file__).parent / "golden"
ID = bytes(range(16))
FILE = m.Item(("photos", "été.jpg"), False, 70_000, 1_700_000_000_123_456_789, True)
FOLDER = m.Item(("photos",), True, 0, -1, False)
HELD = m.ItemResume(1, 65_536, bytes(range(32)), False)

SAMPLES: dict[str, Message] = {
    "request": m.FileTransferRequest(
        transfer_id=ID, purpose="send", item_count=2, total_bytes=70_000, items=(FOLDER, FILE)
    ),
    "items": m.FileTransferItems(items=(FILE,)),
    "response": m.FileTransferResponse(
        transfer_id=ID, accepted=True, complete=False, code="", reason="", resume_count=1, resume=(HELD,)
    ),
    "response-refused": m.FileTransferResponse(
        transfer_id=ID,
        accepted=False,
        complete=False,
        code=m.Refusal.NO_SPACE,
        reason="There is no room.",
        resume_count=0,
        resume=(),
    ),
    "resume": m.FileTransferResume(resume=(HELD,)),
    "complete": m.TransferComplete(failed=1),
    "ack": m.TransferAck(failed=0),
    "cancel": m.TransferCancel(reason="Not now."),
    "failure": m.TransferFailure(code=m.Refusal.STORAGE, reason="The disk is full."),
    "heartbeat": m.TransferHeartbeat(),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_on_the_wire_stay_what_they_are(name: str) -> None:
    path = GOLDEN / f"{name}.cbor"
    if os.environ.get("SDNET_WRITE_GOLDEN"):
        path.write_bytes(encode(SAMPLES[name]))
    assert encode(SAMPLES[name]) == path.read_bytes()
    assert decode(path.read_bytes(), m.ControlMessage) == SAMPLES[name]


def test_every_golden_file_is_a_sample() -> None:
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(SAMPLES)


def test_the_bytes_of_a_segment_stay_what_they_are() -> None:
    record = bytes.fromhex("01" + "01" + "00000003" + "0000000000000100" + "00000002") + b"hi" + bytes(range(32))
    (chunk,) = m.segments(record)
    assert (chunk.item, chunk.offset, bytes(chunk.data), chunk.digest) == (3, 256, b"hi", bytes(range(32)))


@pytest.mark.parametrize(
    "change",
    [
        {"transfer_id": b"short"},
        {"purpose": "Send It"},
        {"purpose": ""},
        {"item_count": 0},
        {"item_count": m.MAX_ITEMS + 1},
        {"total_bytes": -1},
        {"total_bytes": 1 << 63},
        {"items": [[["a"], False, -1, 0, False]]},
        {"items": [[["a"], False, 1 << 63, 0, False]]},
        {"items": [[[], False, 0, 0, False]]},
        {"items": [[["a"] * 65, False, 0, 0, False]]},
        {"items": [[["a"], False, 0, 0, False, 1]]},
        {"items": [[["a"], False, 0, 0]]},
        {"items": [[[b"a"], False, 0, 0, False]]},
        {"items": [[["a"], 0, 0, 0, False]]},
        {"extra": 1},
    ],
)
def test_a_request_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    fields = {"t": 1, "transfer_id": ID, "purpose": "send", "item_count": 1, "total_bytes": 0}
    good = {**fields, "items": [[["a"], False, 0, 0, False]]}
    message: m.ControlMessage = decode(encode(good), m.ControlMessage)
    assert isinstance(message, m.FileTransferRequest)
    with pytest.raises(SerializationError):
        decode(encode({**good, **change}), m.ControlMessage)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_control_message_or_an_error(data: bytes) -> None:
    try:
        message = m.decode_control(data)
    except SerializationError:
        return
    assert m.encode_control(message) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_segments_or_an_error(data: bytes) -> None:
    try:
        chunks = list(m.segments(b"\x01" + data))
    except SerializationError:
        return
    assert sum(len(chunk.data) for chunk in chunks) <= len(data)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x01",
        b"\x00" + bytes(17),
        b"\x02" + bytes(18),
        b"\x01" + bytes(16),
        b"\x01" + bytes(17),  # an empty segment
        b"\x01" + m.SEGMENT_HEADER.pack(0, 0, 0, 5) + b"four",
        b"\x01" + m.SEGMENT_HEADER.pack(1, 0, 0, 0) + bytes(31),
        b"\x01" + m.SEGMENT_HEADER.pack(3, 0, 0, 1) + bytes(40),
        b"\x01" + m.SEGMENT_HEADER.pack(4, 0, 0, 1) + b"x",
        b"\x01" + m.SEGMENT_HEADER.pack(2, 0, 0, 2000) + bytes(2000),
        b"\x01" + m.SEGMENT_HEADER.pack(0, 0, 0, m.MAX_RECORD_BYTES) + bytes(m.MAX_RECORD_BYTES),
    ],
)
def test_a_malformed_data_record_is_refused(record: bytes) -> None:
    with pytest.raises(SerializationError):
        list(m.segments(record))


def test_a_manifest_is_cut_into_bounded_messages() -> None:
    items = [m.Item(("x" * 255,) * 15, False, 1, 0, False)] * 100 + [m.Item(("a",), False, 1, 0, False)] * 3000
    pieces = list(m.batches(items))
    assert [item for piece in pieces for item in piece] == items
    assert all(len(piece) <= m.BATCH_ITEMS for piece in pieces)
    for piece in pieces:
        record = m.encode_control(m.FileTransferItems(items=piece))
        assert m.decode_control(record) == m.FileTransferItems(items=piece)
