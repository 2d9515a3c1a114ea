"""The one form of an entry's state, by whichever way it is written."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_sync.state import EntryState, decode_foreign_state, decode_foreign_states, decode_state, encode_state

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
LONG = st.builds(lambda one, times: one * times, st.sampled_from(["a", "\u20ac", b"b"]), st.integers(0, 70_000))
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)


@given(
    st.dictionaries(st.text(min_size=1, max_size=30), VALUES | LONG, min_size=1, max_size=30), st.integers(1, 1 << 60)
)
@settings(max_examples=150, deadline=None)
def test_the_quick_way_writes_the_same_bytes(fields: dict[str, object], stamp: int) -> None:
    state = EntryState("note", "1")
    state.put(fields, stamp, b"a" * 16, 7, {})
    encoded = encode_state(state)
    assert cbor2.dumps(cbor2.loads(encoded), canonical=True) == encoded
    assert decode_state(encoded) == state
    assert decode_foreign_state(encoded, max_bytes=1 << 22) == state


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=3), min_size=2, max_size=6), st.data()
)
@settings(max_examples=150, deadline=None)
def test_of_states_that_are_read_together_none_reaches_into_another(
    entries: list[dict[str, object]], data: st.DataObject
) -> None:
    states = []
    for number, fields in enumerate(entries):
        state = EntryState("note", str(number))
        state.put(fields, 1 + number, b"a" * 16, 7, {})
        states.append(state)
    encoded = [encode_state(state) for state in states]
    assert decode_foreign_states(encoded, max_bytes=1 << 20) == states
    at = data.draw(st.integers(1, len(encoded) - 1))
    whole = encoded[at - 1] + encoded[at]
    cut = data.draw(st.integers(0, len(whole)).filter(lambda cut: cut != len(encoded[at - 1])))
    with pytest.raises(SerializationError):
        decode_foreign_states([*encoded[: at - 1], whole[:cut], whole[cut:], *encoded[at + 1 :]], max_bytes=1 << 20)
