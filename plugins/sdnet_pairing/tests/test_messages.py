"""Every wire message has the bytes it always had."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import msgspec
import pytest

from sdnet_core import DeviceInfo
from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_pairing import messages
from sdnet_pairing.messages import (
    Challenge,
    ChallengePayload,
    Complete,
    CompletePayload,
    Confirm,
    ConfirmPayload,
    PairingRequest,
    Refusal,
    RefusalReason,
    Response,
    ResponsePayload,
)

from .conversation import PHONE as PEER
from .conversation import initiator, joiner, talk

GOLDEN = Path(__file__).parent / "golden"

DEVICE = DeviceInfo(
    device_id=uuid.UUID("6f1b7c1e-8a55-4d0e-9d2f-0c9a1f1e2d3c").bytes,
    name="Ada's laptop",
    os="Linux",
    version="0.1.0",
    public_key=bytes(range(32)),
)
EXAMPLES: dict[str, Message] = {
    "pairing-request": PairingRequest(
        versions=(1,),
        suites=(1, 2),
        session_id=bytes(range(16)),
        nonce=bytes([1] * 32),
        ephemeral=bytes([2] * 32),
        mac=bytes([3] * 32),
    ),
    "challenge": Challenge(
        version=1, suite=2, challenge=bytes([4] * 32), ephemeral=bytes([5] * 32), box=bytes([6] * 40)
    ),
    "response": Response(box=bytes([7] * 40)),
    "complete": Complete(box=bytes([8] * 40)),
    "confirm": Confirm(box=bytes([9] * 40)),
    "refusal": Refusal(),
    "challenge-payload": ChallengePayload(
        device=DEVICE, addresses=("/ip4/192.0.2.1/tcp/4001",), signature=bytes([10] * 64)
    ),
    "response-payload": ResponsePayload(
        device=DEVICE, addresses=(), signature=bytes([11] * 64), confirmation=bytes([12] * 32)
    ),
    "complete-payload": CompletePayload(
        success=True, reason=None, pairing_id=bytes(range(16)), confirmation=bytes([13] * 32)
    ),
    "complete-payload-rejected": CompletePayload(
        success=False, reason=RefusalReason.REJECTED, pairing_id=bytes(16), confirmation=bytes([14] * 32)
    ),
    "confirm-payload": ConfirmPayload(pairing_id=bytes(range(16))),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    pinned = (GOLDEN / f"{name}.cbor").read_bytes()
    assert encode(EXAMPLES[name]) == pinned
    assert decode(pinned, type(EXAMPLES[name])) == EXAMPLES[name]


def test_every_message_is_pinned() -> None:
    types = {value for value in vars(messages).values() if isinstance(value, type) and issubclass(value, Message)}
    assert types - {Message, DeviceInfo} == {type(example) for example in EXAMPLES.values()}
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == set(EXAMPLES) | {"conversation"}


def test_a_whole_conversation_has_the_bytes_it_always_had() -> None:
    # Same keys, same randomness: transcript, key schedule and boxes of this version must stay what they are.
    spoken: list[bytes] = []

    def listen(sender: str, count: int, message: bytes) -> list[bytes]:
        spoken.append(message)
        return [message]

    left, right = initiator(PEER), joiner()
    talk(left, right, listen)
    assert left.finished
    assert b"".join(spoken) == (GOLDEN / "conversation.cbor").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_with_a_field_too_many_or_too_few_or_another_tag_is_refused(name: str) -> None:
    plain = msgspec.to_builtins(EXAMPLES[name], builtin_types=(bytes,))
    for wrong in ({**plain, "more": 1}, {"t": plain["t"]} if len(plain) > 1 else {"t": 99}):
        with pytest.raises(SerializationError):
            decode(encode(wrong), type(EXAMPLES[name]))


@pytest.mark.parametrize(
    "address", ["", "ip4/1.2.3.4", "/ip4/1.2.3.4/tcp/1\n", "/ip4/\x1b[2J", "/" + "a" * 300, "/ip4/é"]
)
def test_an_address_that_is_no_plain_multiaddr_is_refused(address: str) -> None:
    plain = msgspec.to_builtins(EXAMPLES["challenge-payload"], builtin_types=(bytes,))
    with pytest.raises(SerializationError):
        decode(encode({**plain, "addresses": [address]}), ChallengePayload)


@pytest.mark.parametrize("offer", [[], [0], [65536], [1] * 9, ["1"], [True]])
def test_an_offer_out_of_bounds_is_refused(offer: list[object]) -> None:
    plain = msgspec.to_builtins(EXAMPLES["pairing-request"], builtin_types=(bytes,))
    with pytest.raises(SerializationError, match=re.compile("versions|decode")):
        decode(encode({**plain, "versions": offer}), PairingRequest)
