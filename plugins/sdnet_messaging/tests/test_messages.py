"""Every wire message, and what lies in the inbox, has the bytes it always had; everything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_messaging import inbox, messages
from sdnet_messaging.inbox import StoredMessage
from sdnet_messaging.messages import (
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SEQUENCE,
    MAX_TEXT_BYTES,
    Ack,
    Action,
    AnyMessage,
    Data,
    Delivered,
    Notification,
    Outcome,
    Ping,
    Pong,
    Priority,
    Reply,
    Text,
)

GOLDEN = Path(__file__).parent / "golden"
TOKEN = bytes(range(16))

TEXT = Text(sequence=7, token=TOKEN, below=5, priority=Priority.HIGH, sent_ms=1_700_000_000_123, text="Grüße, 妈妈 👋")
NOTIFICATION = Notification(
    sequence=8,
    token=TOKEN,
    below=8,
    sent_ms=1_700_000_000_123,
    title="Doorbell",
    body="Somebody is at the door.",
    actions=(Action(id="open", label="Open"), Action(id="ignore", label="Not now")),
)
EXAMPLES: dict[str, Message] = {
    "ping": Ping(nonce=3),
    "pong": Pong(nonce=3),
    "data": Data(
        sequence=9, token=TOKEN, below=1, protocol="shopping-list", version=2, payload=b"\x00\xff", metadata={"a": "b"}
    ),
    "text": TEXT,
    "notification": NOTIFICATION,
    "action": NOTIFICATION.actions[0],
    "ack": Ack(sequence=7, outcome=Outcome.DELIVERED),
    "ack-stale": Ack(sequence=7, outcome=Outcome.STALE, next_sequence=1025),
    "ack-response": Ack(sequence=9, outcome=Outcome.DELIVERED, response=b"done"),
    "stored-text": StoredMessage(
        device_id=bytes([1] * 16), device_name="phone", received_ms=1_700_000_000_456, message=TEXT
    ),
    "stored-notification": StoredMessage(
        device_id=bytes([1] * 16), device_name="phone", received_ms=1_700_000_000_456, message=NOTIFICATION
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    pinned = (GOLDEN / f"{name}.cbor").read_bytes()
    assert encode(EXAMPLES[name]) == pinned
    assert decode(pinned, type(EXAMPLES[name])) == EXAMPLES[name]


def test_every_message_is_pinned() -> None:
    defined = [*vars(messages).values(), *vars(inbox).values()]
    known = {value for value in defined if isinstance(value, type) and issubclass(value, Message)}
    assert known - {Message, Delivered} == {type(example) for example in EXAMPLES.values()}
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(EXAMPLES)


def test_a_short_text_costs_little() -> None:
    text = Text(sequence=1000, token=TOKEN, below=990, sent_ms=1_700_000_000_123, text="hello")
    assert len(encode(text)) - len("hello") <= 60


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_too_many_or_another_tag_is_refused(name: str) -> None:
    plain = msgspec.to_builtins(EXAMPLES[name], builtin_types=(bytes,))
    for wrong in ({**plain, "more": 1}, {**plain, "t": 99}, {"t": plain["t"]}):
        with pytest.raises(SerializationError):
            decode(encode(wrong), type(EXAMPLES[name]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text", {"text": ""}),
        ("text", {"text": "x" * (MAX_TEXT_BYTES + 1)}),
        ("text", {"text": "é" * (MAX_TEXT_BYTES // 2 + 1)}),
        ("text", {"i": TOKEN[:15]}),
        ("text", {"s": 0}),
        ("text", {"s": MAX_SEQUENCE + 1}),
        ("text", {"s": -1}),
        ("text", {"b": 8}),
        ("text", {"p": 3}),
        ("text", {"at": -1}),
        ("text", {"at": 1.5}),
        ("notification", {"title": ""}),
        ("notification", {"body": "é" * (MAX_BODY_BYTES // 2 + 1)}),
        ("notification", {"actions": [{"t": 16, "id": f"a{i}", "label": "A"} for i in range(9)]}),
        ("notification", {"actions": [{"t": 16, "id": "a", "label": "A"}] * 2}),
        ("notification", {"actions": [{"t": 16, "id": "a b", "label": "A"}]}),
        ("data", {"protocol": "Shopping"}),
        ("data", {"protocol": "shopping\n"}),
        ("data", {"protocol": "../etc"}),
        ("data", {"version": 0}),
        ("data", {"payload": bytes(MAX_PAYLOAD_BYTES + 1)}),
        ("data", {"payload": "text"}),
        ("data", {"metadata": {f"k{i}": "" for i in range(17)}}),
        ("data", {"metadata": {"": ""}}),
        ("data", {"metadata": {"k": "x" * 257}}),
        ("data", {"metadata": {"k": 1}}),
        ("ping", {"nonce": -1}),
    ],
)
def test_what_is_out_of_bounds_is_refused(name: str, change: dict[str, Any]) -> None:
    plain = msgspec.to_builtins(EXAMPLES[name], builtin_types=(bytes,))
    with pytest.raises(SerializationError):
        decode(encode({**plain, **change}), AnyMessage)


def test_the_longest_messages_fit_into_the_limit() -> None:
    metadata = {f"{i:064}": "é" * 256 for i in range(16)}
    longest = Data(
        sequence=MAX_SEQUENCE,
        token=TOKEN,
        below=MAX_SEQUENCE,
        protocol="p" * 64,
        version=65535,
        payload=bytes(MAX_PAYLOAD_BYTES),
        metadata=metadata,
    )
    assert decode(encode(longest), AnyMessage, max_bytes=MAX_MESSAGE_BYTES) == longest
    answer = Ack(sequence=MAX_SEQUENCE, outcome=Outcome.DELIVERED, response=bytes(MAX_PAYLOAD_BYTES))
    assert decode(encode(answer), Reply, max_bytes=MAX_MESSAGE_BYTES) == answer


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        message: AnyMessage = decode(data, AnyMessage)
    except SerializationError:
        return
    assert encode(message) == data


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), st.sampled_from(Priority))
def test_any_text_comes_back(text: str, priority: Priority) -> None:
    message = Text(sequence=2, token=TOKEN, below=1, priority=priority, sent_ms=0, text=text)
    assert decode(encode(message), AnyMessage) == message
