"""Every wire message, and what lies in the inbox, has the bytes it always had; everything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core import Priority
from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_messaging import inbox, messages
from sdnet_messaging.inbox import StoredMessage
from sdnet_messaging.messages import (
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_TEXT_BYTES,
    MAX_TITLE_BYTES,
    Action,
    Answer,
    Chosen,
    Data,
    Notification,
    Outcome,
    Ping,
    Pong,
    Text,
)

GOLDEN = Path(__file__).parent / "golden"
AT = 1_700_000_000_123
ID = bytes(range(16))

TEXT = Text(sent_ms=AT, text="Grüße, 妈妈 👋")
NOTIFICATION = Notification(
    sent_ms=AT,
    title="Doorbell",
    body="Somebody is at the door.",
    actions=(Action(id="open", label="Open"), Action(id="ignore", label="Not now")),
)
CHOSEN = Chosen(sent_ms=AT, notification=ID, title="Doorbell", action=NOTIFICATION.actions[0])


def stored(message: Text | Notification | Chosen, chosen: str = "") -> StoredMessage:
    return StoredMessage(
        device_id=bytes([1] * 16),
        device_name="phone",
        received_ms=AT + 333,
        priority=Priority.HIGH,
        chosen=chosen,
        message=message,
    )


EXAMPLES: dict[str, Message] = {
    "ping": Ping(nonce=3),
    "pong": Pong(nonce=3),
    "data": Data(protocol="shopping-list", version=2, payload=b"\x00\xff", metadata={"a": "b"}),
    "text": TEXT,
    "notification": NOTIFICATION,
    "action": NOTIFICATION.actions[0],
    "chosen": CHOSEN,
    "answer": Answer(outcome=Outcome.DELIVERED, response=b"done"),
    "answer-no-handler": Answer(outcome=Outcome.NO_HANDLER, response=None),
    "stored-text": stored(TEXT),
    "stored-notification": stored(NOTIFICATION, "open"),
    "stored-choice": stored(CHOSEN),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    pinned = (GOLDEN / f"{name}.cbor").read_bytes()
    assert encode(EXAMPLES[name]) == pinned
    assert decode(pinned, type(EXAMPLES[name])) == EXAMPLES[name]


def test_every_message_is_pinned() -> None:
    defined = [*vars(messages).values(), *vars(inbox).values()]
    known = {value for value in defined if isinstance(value, type) and issubclass(value, Message)}
    assert known - {Message} == {type(example) for example in EXAMPLES.values()}
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(EXAMPLES)


def test_a_short_text_costs_little() -> None:
    assert len(encode(Text(sent_ms=AT, text="hello"))) - len("hello") <= 12


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("stored")])
def test_a_field_too_many_or_another_tag_is_refused(name: str) -> None:
    plain = msgspec.to_builtins(EXAMPLES[name], builtin_types=(bytes,))
    for wrong in ([*plain, 1], [99, *plain[1:]], plain[:-1], [plain[0]]):
        with pytest.raises(SerializationError):
            decode(encode(wrong), type(EXAMPLES[name]))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("text", "text", ""),
        ("text", "text", "x" * (MAX_TEXT_BYTES + 1)),
        ("text", "text", "é" * (MAX_TEXT_BYTES // 2 + 1)),
        ("text", "sent_ms", -1),
        ("text", "sent_ms", 1.5),
        ("notification", "title", ""),
        ("notification", "title", "é" * (MAX_TITLE_BYTES // 2 + 1)),
        ("notification", "body", "é" * (MAX_BODY_BYTES // 2 + 1)),
        ("notification", "actions", [[16, f"a{i}", "A"] for i in range(9)]),
        ("notification", "actions", [[16, "a", "A"]] * 2),
        ("notification", "actions", [[16, "a b", "A"]]),
        ("chosen", "notification", ID[:15]),
        ("chosen", "action", [16, "a b", "A"]),
        ("data", "protocol", "Shopping"),
        ("data", "protocol", "shopping\n"),
        ("data", "protocol", "../etc"),
        ("data", "version", 0),
        ("data", "payload", bytes(MAX_PAYLOAD_BYTES + 1)),
        ("data", "payload", "text"),
        ("data", "metadata", {f"k{i}": "" for i in range(17)}),
        ("data", "metadata", {"": ""}),
        ("data", "metadata", {"k": "x" * 257}),
        ("data", "metadata", {"k": 1}),
        ("answer", "outcome", 9),
        ("ping", "nonce", -1),
    ],
)
def test_what_is_out_of_bounds_is_refused(name: str, field: str, value: Any) -> None:
    example = EXAMPLES[name]
    plain = msgspec.to_builtins(example, builtin_types=(bytes,))
    plain[1 + type(example).__struct_fields__.index(field)] = value
    with pytest.raises(SerializationError):
        decode(encode(plain), type(example))


def test_the_longest_messages_fit_into_the_limit() -> None:
    metadata = {f"{i:064}": "é" * 256 for i in range(16)}
    longest = Data(protocol="p" * 64, version=65535, payload=bytes(MAX_PAYLOAD_BYTES), metadata=metadata)
    assert decode(encode(longest), Data, max_bytes=MAX_MESSAGE_BYTES) == longest
    answer = Answer(outcome=Outcome.DELIVERED, response=bytes(MAX_PAYLOAD_BYTES))
    assert decode(encode(answer), Answer, max_bytes=MAX_MESSAGE_BYTES) == answer


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        message: messages.AnyMessage = decode(data, messages.AnyMessage)
    except SerializationError:
        return
    assert encode(message) == data


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300))
def test_any_text_comes_back(text: str) -> None:
    message = Text(sent_ms=0, text=text)
    assert decode(encode(message), messages.AnyMessage) == message
