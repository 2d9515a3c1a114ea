"""The one form of an entry's state, by whichever way it is written."""

from __future__ import annotations

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_sync.state import EntryState, decode_foreign_state, decode_state, encode_state

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)


@given(st.dictionaries(st.text(min_size=1, max_size=30), VALUES, min_size=1, max_size=6), st.integers(1, 1 << 60))
@settings(max_examples=150, deadline=None)
def test_the_quick_way_writes_the_same_bytes(fields: dict[str, object], stamp: int) -> None:
    state = EntryState("note", "1")
    state.put(fields, stamp, b"a" * 16, 7, {})
    encoded = encode_state(state)
    assert cbor2.dumps(cbor2.loads(encoded), canonical=True) == encoded
    assert decode_state(encoded) == state
    assert decode_foreign_state(encoded, max_bytes=1 << 20) == state
