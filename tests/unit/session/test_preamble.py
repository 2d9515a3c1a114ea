"""What stands before the first record of a sealed stream."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import NetworkTimeoutError, ProtocolError
from sdnet_core.session.preamble import PREAMBLE_BYTES, Preamble, read_preamble

pytestmark = pytest.mark.anyio


async def test_a_preamble_has_a_deadline(tape: Any) -> None:
    silent = tape("12D3")

    async def wait_for_ever(max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        return b""

    silent.receive = wait_for_ever
    with pytest.raises(NetworkTimeoutError):
        await read_preamble(silent, timeout_s=0.01)


@pytest.mark.parametrize("length", [0, 1, 31])
async def test_a_preamble_cut_off_is_refused(tape: Any, length: int) -> None:
    with pytest.raises(ProtocolError):
        await read_preamble(tape("12D3", [bytes(length)] if length else []))


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16))
def test_a_preamble_reads_as_it_was_written(epoch_id: bytes, number: int, tag: bytes) -> None:
    preamble = Preamble(epoch_id, number, tag)
    assert len(preamble.encode()) == PREAMBLE_BYTES
    assert Preamble.decode(preamble.encode()) == preamble
