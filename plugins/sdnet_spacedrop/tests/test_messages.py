from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_spacedrop import messages as m

from . import test_meeting
from .conftest import GOLDEN

ID = bytes(range(16))
PHOTO = m.SpacedropItem("été.jpg", False, 70_000, 1)
FOLDER = m.SpacedropItem("holiday", True, 5_000_000_000, 12)
REQUEST = m.SpacedropRequest(
    transfer_id=ID,
    sender_name="Anna's laptop",
    message="from the lake",
    items=(PHOTO, FOLDER),
    more_items=0,
    item_count=13,
    total_bytes=5_000_070_000,
    answer_timeout_ms=60_000,
)
SAMPLES: dict[str, Message] = {
    "request": REQUEST,
    "asked": m.SpacedropAsked(transfer_id=ID, timeout_ms=59_900),
    "response": m.SpacedropResponse(transfer_id=ID, accepted=True, code="", reason=""),
    "response-rejected": m.SpacedropResponse(
        transfer_id=ID, accepted=False, code=m.Refusal.REJECTED, reason="Not now."
    ),
    "cancel": m.SpacedropCancel(transfer_id=ID, reason="The sender cancelled it."),
}
AnyMessage = m.FirstMessage | m.SenderMessage


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_on_the_wire_stay_what_they_are(name: str) -> None:
    path = GOLDEN / f"{name}.cbor"
    if os.environ.get("SDNET_WRITE_GOLDEN"):
        path.write_bytes(encode(SAMPLES[name]))
    assert encode(SAMPLES[name]) == path.read_bytes()
    assert decode(path.read_bytes(), AnyMessage) == SAMPLES[name]


def test_every_golden_file_is_a_sample() -> None:
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(SAMPLES) | set(test_meeting.SAMPLES)


@pytest.mark.parametrize(
    "change",
    [
        {"transfer_id": b"short"},
        {"sender_name": "x" * 65},
        {"message": "x" * 2001},
        {"items": []},
        {"items": [["x", False, 1, 1]] * 33, "item_count": 33, "total_bytes": 33},
        {"items": [["x" * 256, False, 70_000, 1]], "item_count": 1, "total_bytes": 70_000},
        {"items": [["", False, 1, 1]], "item_count": 1, "total_bytes": 1},
        {"items": [["x", False, -1, 1]], "item_count": 1, "total_bytes": -1},
        {"items": [["x", False, 1 << 63, 1]], "item_count": 1, "total_bytes": 1 << 63},
        {"items": [["x", False, 1, 2]], "item_count": 2, "total_bytes": 1},
        {"item_count": 0},
        {"item_count": 100_001},
        {"item_count": 1 << 70},
        {"item_count": 12},
        {"total_bytes": 1},
        {"more_items": 1},
        {"more_items": -1},
        {"answer_timeout_ms": 0},
        {"answer_timeout_ms": 3_600_001},
        {"answer_timeout_ms": 1.5},
        {"unknown": 1},
    ],
)
def test_an_offer_outside_its_bounds_is_refused(change: dict[str, Any]) -> None:
    values = msgspec.to_builtins(REQUEST, builtin_types=(bytes,)) | change
    with pytest.raises(SerializationError):
        decode(encode(values), m.FirstMessage)


def test_more_items_than_listed_are_counted_only() -> None:
    listed = tuple(m.SpacedropItem(f"{i}", False, 1, 1) for i in range(m.MAX_LISTED_ITEMS))
    request = msgspec.structs.replace(REQUEST, items=listed, more_items=68, item_count=100, total_bytes=1000)
    decoded: m.FirstMessage = decode(encode(request), m.FirstMessage)
    assert decoded == request
    with pytest.raises(SerializationError, match="more than"):
        decode(encode(msgspec.to_builtins(request, builtin_types=(bytes,)) | {"item_count": 99}), m.FirstMessage)


def test_the_longest_offer_fits_a_message() -> None:
    listed = tuple(m.SpacedropItem("\N{GRINNING FACE}" * 255, True, 2**56, 3000) for _ in range(m.MAX_LISTED_ITEMS))
    request = msgspec.structs.replace(
        REQUEST,
        sender_name="\N{GRINNING FACE}" * m.MAX_SENDER_NAME_LENGTH,
        message="\N{GRINNING FACE}" * m.MAX_MESSAGE_LENGTH,
        items=listed,
        more_items=4000,
        item_count=m.MAX_ITEMS,
        total_bytes=m.MAX_SIZE_BYTES,
    )
    assert decode(encode(request), m.FirstMessage, max_bytes=m.MAX_MESSAGE_BYTES) == request


@pytest.mark.parametrize("response", [(True, "rejected"), (False, ""), (False, "Not A Code"), (False, "x" * 33)])
def test_an_answer_says_either_yes_or_why_not(response: tuple[bool, str]) -> None:
    values = {"t": 3, "transfer_id": ID, "accepted": response[0], "code": response[1], "reason": ""}
    with pytest.raises(SerializationError):
        decode(encode(values), m.SenderMessage)


def test_an_answer_does_not_open_a_conversation() -> None:
    with pytest.raises(SerializationError):
        decode(encode(SAMPLES["response"]), m.FirstMessage)


@given(st.binary(max_size=300))
def test_garbage_is_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(SerializationError):
        decode(data, m.FirstMessage)
