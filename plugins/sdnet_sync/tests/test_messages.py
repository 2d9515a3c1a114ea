"""The wire form of every message, pinned by golden files, and what a reader refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Message, decode, encode
from sdnet_sync import messages as m
from sdnet_sync.fingerprints import RANGES
from sdnet_sync.operations import BatchBody, Delete, Membership, Put, Resolution, Role, SignedBatch
from sdnet_sync.state import EntryState, Write, decode_foreign_state, decode_state, encode_state

GOLDEN = Path(__file__).parent / "golden"
LIBRARY, DEVICE, OTHER = bytes(range(16)), b"\xd1" * 16, b"\xd2" * 16
KEY = b"\x11" * 32
ROLE = Membership(OTHER, KEY, Role.READER, "laptop", 7)
BODY = BatchBody(
    library=LIBRARY,
    author=DEVICE,
    sequence=3,
    stamp=1_700_000_000_000 << 16,
    previous=b"\x22" * 32,
    seen={OTHER: 5},
    operations=(
        Put("recipe", "pancakes", {"title": "Pancakes", "eggs": 3, "photo": b"\xff", "tags": ["sweet", None, 1.5]}),
        Delete("recipe", "waffles"),
        Resolution("recipe", "crêpes", {"eggs": 2}),
        Resolution("recipe", "toast", None),
        ROLE,
    ),
)
BATCH = SignedBatch(body=encode(BODY), signature=b"\x33" * 64)

MESSAGES: dict[str, Message] = {
    "batch-body": BODY,
    "signed-batch": BATCH,
    "open": m.Open(),
    "hello": m.Hello(library=LIBRARY, heads={DEVICE: m.Place(3, b"\x44" * 16)}, root=b"\x55" * 16, answer=False),
    "pull": m.Pull(library=LIBRARY, after={DEVICE: 2, OTHER: 5}),
    "pull-rebuild": m.Pull(library=LIBRARY, after={}, rebuild=True),
    "push": m.Push(library=LIBRARY, batches=(BATCH,)),
    "ack": m.Ack(library=LIBRARY, vector={DEVICE: 3}, taken=1),
    "snapshot-begin": m.SnapshotBegin(
        library=LIBRARY,
        heads=(m.HeadRecord(DEVICE, 3, b"\x22" * 32, 1 << 60, {OTHER: 5}, 3),),
        roles=(m.RoleRecord(DEVICE, 1, {}, ROLE),),
        vouched={OTHER: 8},
        root=b"\x55" * 16,
        entries=2,
    ),
    "snapshot-page": m.SnapshotPage(library=LIBRARY, through=b"\xff" * 16, states=(b"\x01", b"\x02"), continues=False),
    "snapshot-end": m.SnapshotEnd(library=LIBRARY),
    "goodbye": m.Goodbye(library=LIBRARY, reason="paused"),
    "signal": m.Signal(library=LIBRARY, channel="indexer", payload=b"50 %"),
    "invitation": m.Invitation(
        library=LIBRARY, name="Recipes", role=Role.WRITER, secret=b"\x66" * 32, founder=DEVICE, founder_key=KEY
    ),
    "invitation-answer": m.InvitationAnswer(library=LIBRARY, accepted=True),
    "access-request": m.AccessRequest(library="Recipes", role=Role.READER),
    "compare-ranges": m.CompareRanges(library=LIBRARY),
    "compare-leaves": m.CompareLeaves(library=LIBRARY, ranges=(0, 127)),
    "list-entries": m.ListEntries(library=LIBRARY, leaf=16383, after=b"\x01" * 16),
    "read-entries": m.ReadEntries(library=LIBRARY, keys=(b"\x01" * 16,)),
    "understood": m.Understood(reason="There is no such invitation."),
    "range-sums": m.RangeSums(vector={DEVICE: 3}, sums=tuple(bytes([n]) * 16 for n in range(RANGES))),
    "leaf-sums": m.LeafSumsAnswer(sums=b"\x07" * 32),
    "entry-list": m.EntryList(entries=b"\x08" * 32, more=False),
    "entry-states": m.EntryStates(states=(b"\x01",)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_files(name: str) -> None:
    message = MESSAGES[name]
    golden = (GOLDEN / f"{name}.cbor").read_bytes()
    assert encode(message) == golden
    assert decode(golden, type(message)) == message
    for cut in range(0, len(golden), max(1, len(golden) // 20)):
        with pytest.raises(SerializationError):
            decode(golden[:cut], type(message))


def test_every_golden_file_has_its_message() -> None:
    assert {path.stem for path in GOLDEN.glob("*.cbor")} == {*MESSAGES, "entry-state"}


STATE = EntryState(
    "recipe",
    "pancakes",
    {"eggs": [Write(5, DEVICE, 3, 2), Write(6, OTHER, 5, 3)], "title": [Write(5, DEVICE, 3, "Pancakes")]},
    [Write(7, OTHER, 6)],
)


def test_the_golden_state_of_an_entry() -> None:
    golden = (GOLDEN / "entry-state.cbor").read_bytes()
    assert encode_state(STATE) == golden
    assert decode_state(golden) == decode_foreign_state(golden, max_bytes=1000) == STATE


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
WRITES = st.tuples(st.integers(1, 1 << 60), st.binary(min_size=16, max_size=16), st.integers(1, 1 << 50))


@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.tuples(WRITES, VALUES), max_size=4),
    st.lists(WRITES, max_size=2),
)
def test_states_come_back_as_they_went(fields: dict[str, Any], deletions: list[Any]) -> None:
    if not fields and not deletions:
        return
    state = EntryState(
        "k",
        "id",
        {name: [Write(*place, value)] for name, (place, value) in fields.items()},
        [Write(*d) for d in deletions],
    )
    assert decode_foreign_state(encode_state(state), max_bytes=100_000) == state


@given(st.binary(max_size=60))
def test_garbage_is_no_state(data: bytes) -> None:
    with pytest.raises(SerializationError):
        decode_foreign_state(data, max_bytes=1000)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_state_is_another_one_or_none(at: int, change: int) -> None:
    golden = encode_state(STATE)
    at %= len(golden)
    changed = golden[:at] + bytes([golden[at] ^ change]) + golden[at + 1 :]
    try:
        assert decode_foreign_state(changed, max_bytes=1000) != STATE
    except SerializationError:
        pass
