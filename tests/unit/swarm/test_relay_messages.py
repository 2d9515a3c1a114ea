"""The relay's messages: the same bytes as libp2p's own, and nothing else is taken."""

from __future__ import annotations

from importlib import import_module

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import SerializationError
from sdnet_core.swarm.relay_messages import (
    HopMessage,
    HopType,
    Limit,
    PunchMessage,
    PunchType,
    RelayStatus,
    StopMessage,
    StopType,
)

PEER = "12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A"
HOPS = [
    HopMessage(type=HopType.RESERVE),
    HopMessage(type=HopType.CONNECT, peer=PEER),
    HopMessage(
        type=HopType.STATUS,
        status=RelayStatus.OK,
        expires_at=1_900_000_000,
        addresses=(b"\x04\x7f\x00\x00\x01", b"x"),
        limit=Limit(120, 1 << 40),
    ),
    HopMessage(type=HopType.STATUS, status=RelayStatus.NO_RESERVATION),
]
STOPS = [
    StopMessage(type=StopType.CONNECT, peer=PEER, limit=Limit(60, 0)),
    StopMessage(type=StopType.STATUS, status=RelayStatus.OK),
]
PUNCHES = [PunchMessage(type=PunchType.CONNECT, addresses=(b"a", b"b")), PunchMessage(type=PunchType.SYNC)]


@pytest.mark.parametrize("message", [*HOPS, *STOPS, *PUNCHES])
def test_what_is_written_is_read(message: HopMessage | StopMessage | PunchMessage) -> None:
    assert type(message).decode(message.encode()) == message


def test_the_library_reads_what_we_write_and_we_what_it_writes() -> None:
    import_module("sdnet_core.swarm._fastecdsa")  # lets libp2p be imported
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage as TheirHop
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import StopMessage as TheirStop
    from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

    connect = TheirHop()
    connect.ParseFromString(HOPS[1].encode())
    assert connect.type == TheirHop.CONNECT
    assert connect.peer == base58.b58decode(PEER) or connect.peer.id == base58.b58decode(PEER)
    status = TheirHop()
    status.ParseFromString(HOPS[2].encode())
    assert status.reservation.expire == 1_900_000_000
    assert (status.limit.duration, status.limit.data) == (120, 1 << 40)
    call = TheirStop()
    call.ParseFromString(STOPS[0].encode())
    assert call.limit.duration == 60
    punch = HolePunch()
    punch.ParseFromString(PUNCHES[0].encode())
    assert list(punch.ObsAddrs) == [b"a", b"b"]
    assert PunchMessage.decode(punch.SerializeToString()) == PUNCHES[0]


@given(st.binary(max_size=200))
def test_noise_is_read_or_refused(data: bytes) -> None:
    for kind in (HopMessage, StopMessage, PunchMessage):
        try:
            kind.decode(data)
        except SerializationError:
            continue


@given(st.sampled_from(HOPS), st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_message_is_read_or_refused(message: HopMessage, place: int, value: int) -> None:
    data = bytearray(message.encode())
    data[place % len(data)] = value
    try:
        HopMessage.decode(bytes(data))
    except SerializationError:
        return
