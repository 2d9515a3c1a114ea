"""The packets: ours, those of other libp2p implementations, and those of attackers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import DNSIncoming, DNSPointer, DNSText  # type: ignore[attr-defined]

from sdnet_core.clock import SystemRandomness
from sdnet_core.discovery.mdns_messages import (
    MAX_TTL_S,
    META_SERVICE,
    SERVICE,
    encode_goodbye,
    encode_query,
    encode_responses,
    encode_service_listing,
    parse_packet,
    random_instance_name,
    text_strings,
)

PEER = "12D3KooWQ9Wf1dbYU2Q3j9WTpLUZFy2QxYsK6s3Kd5zomHwTc1kT"
OTHER = "12D3KooWAm7j5vfmT3oJ9KHV4YdiWYBipttAoMNiQy5P7zYNQ39K"
INSTANCE = f"abcdefghijklmnopqrstuvwxyz234567.{SERVICE}"
PTR, TXT = 12, 16


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.rstrip(".").split(".")) + b"\0"


def record(owner: str, kind: int, data: bytes, *, ttl: int = 120, klass: int = 1) -> bytes:
    return name(owner) + struct.pack(">HHIH", kind, klass, ttl, len(data)) + data


def text(*strings: str | bytes) -> bytes:
    raw = [string.encode() if isinstance(string, str) else string for string in strings]
    return b"".join(bytes([len(string)]) + string for string in raw)


def response(answers: list[bytes], additionals: list[bytes] = []) -> bytes:  # noqa: B006
    return struct.pack(">6H", 0, 0x8400, 0, len(answers), 0, len(additionals)) + b"".join(answers + additionals)


def query(*questions: tuple[str, int], query_id: int = 0, answers: list[bytes] = []) -> bytes:  # noqa: B006
    asked = b"".join(name(owner) + struct.pack(">HH", kind, 1) for owner, kind in questions)
    return struct.pack(">6H", query_id, 0, len(questions), len(answers), 0, 0) + asked + b"".join(answers)


def test_what_we_tell_is_read_back() -> None:
    addresses = ("/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/udp/4001/quic-v1")
    tags = frozenset({b"\x00\xff tag", b"x" * 64})
    (packet,) = encode_responses(INSTANCE, text_strings(PEER, addresses, tags))
    found = parse_packet(packet)
    assert found is not None
    (peer,) = found.records
    assert (peer.instance, peer.peer_id, peer.tags, peer.ttl_s) == (INSTANCE, PEER, tags, 120)
    assert peer.addresses == tuple(f"{address}/p2p/{PEER}" for address in addresses)


def test_what_we_tell_has_the_form_that_others_look_for() -> None:
    # rust-libp2p takes PTR from the answer section and TXT from the additional section only.
    (packet,) = encode_responses(INSTANCE, text_strings(PEER, ["/ip4/192.0.2.1/tcp/4001"], []))
    assert struct.unpack(">6H", packet[:12]) == (0, 0x8400, 0, 1, 0, 1)
    pointer, txt = DNSIncoming(packet).answers()
    assert isinstance(pointer, DNSPointer)
    assert isinstance(txt, DNSText)
    assert (pointer.name, pointer.alias, pointer.class_, pointer.unique) == (SERVICE, INSTANCE, 1, False)
    assert (txt.name, txt.unique) == (INSTANCE, True)
    assert txt.text == text(f"dnsaddr=/ip4/192.0.2.1/tcp/4001/p2p/{PEER}")


def test_many_addresses_go_into_several_packets_that_each_stand_alone() -> None:
    addresses = [f"/ip4/192.0.2.{number}/udp/4001/quic-v1/webtransport/certhash/{'u' * 60}" for number in range(16)]
    packets = encode_responses(INSTANCE, text_strings(PEER, addresses, []))
    assert len(packets) > 1
    assert max(map(len, packets)) <= 1400
    found = [parse_packet(packet) for packet in packets]
    assert sum(len(packet.records[0].addresses) for packet in found if packet) == 16


def test_an_address_too_long_for_a_string_is_left_out() -> None:
    strings = text_strings(PEER, ["/dns4/" + "a" * 200 + "/tcp/1", "/ip4/192.0.2.1/tcp/1"], [])
    assert len(strings) == 1


def test_names_are_random_and_say_nothing() -> None:
    first, second = (random_instance_name(SystemRandomness()) for _ in range(2))
    assert first != second
    label = first.removesuffix(f".{SERVICE}")
    assert 32 <= len(label) <= 63
    assert label.isalnum()


def test_goodbye() -> None:
    (packet,) = encode_goodbye(INSTANCE)
    found = parse_packet(packet)
    assert found is not None
    assert [(peer.instance, peer.ttl_s) for peer in found.records] == [(INSTANCE, 0)]


def test_queries_are_read() -> None:
    asked = parse_packet(encode_query())
    assert asked is not None
    assert (asked.asks_peers, asked.asks_services) == (True, False)
    both = parse_packet(query(("_P2P._udp.LOCAL.", 12), (META_SERVICE, 255), query_id=7))
    assert both is not None
    assert (both.asks_peers, both.asks_services, both.query_id) == (True, True, 7)
    assert parse_packet(query((SERVICE, TXT))) is None
    assert parse_packet(query(("_http._tcp.local.", PTR))) is None


def test_known_answers_are_read_if_they_hold_long_enough() -> None:
    def pointer(ttl: int) -> bytes:
        return record(SERVICE, PTR, name(INSTANCE), ttl=ttl)

    for ttl, known in ((60, {INSTANCE}), (59, set())):
        packet = parse_packet(query((SERVICE, PTR), answers=[pointer(ttl)]))
        assert packet is not None
        assert packet.known_instances == known


def test_the_listing_names_our_service() -> None:
    (pointer,) = DNSIncoming(encode_service_listing()).answers()
    assert isinstance(pointer, DNSPointer)
    assert (pointer.name, pointer.alias) == (META_SERVICE, SERVICE)


def test_a_one_shot_answer_repeats_id_and_question_and_holds_shortly() -> None:
    (packet,) = encode_responses(INSTANCE, text_strings(PEER, ["/ip4/192.0.2.1/tcp/1"], []), legacy_query_id=513)
    incoming = DNSIncoming(packet)
    assert (incoming.id, [question.name for question in incoming.questions]) == (513, [SERVICE])
    assert [(answer.ttl, answer.unique) for answer in incoming.answers()] == [(10, False)] * 2


@pytest.mark.parametrize("layout", ["js", "rust", "go"])
def test_other_implementations_are_understood(layout: str) -> None:
    first, second = (f"dnsaddr=/ip4/192.0.2.1/tcp/{port}/p2p/{PEER}" for port in (1, 2))
    pointer = record(SERVICE, PTR, name(INSTANCE))
    texts = [record(INSTANCE, TXT, text(string)) for string in (first, second)]
    packet = {
        "js": response([pointer, *texts]),
        "rust": response([pointer], texts),
        "go": response([pointer], [record(INSTANCE, TXT, text(first, second), klass=0x8001)]),
    }[layout]
    found = parse_packet(packet)
    assert found is not None
    (peer,) = found.records
    assert (peer.peer_id, len(peer.addresses)) == (PEER, 2)


def test_only_what_belongs_together_is_believed() -> None:
    packet = response(
        [record(SERVICE, PTR, name(INSTANCE), ttl=1 << 31)],
        [
            record(f"other.{SERVICE}", TXT, text(f"dnsaddr=/ip4/192.0.2.9/tcp/1/p2p/{PEER}")),
            record(
                INSTANCE,
                TXT,
                text(
                    "dnsaddr=/ip4/192.0.2.3/tcp/1",
                    "dnsaddr=/ip4/192.0.2.3/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
                    f"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{PEER}",
                    f"dnsaddr=/ip4/192.0.2.2/tcp/1/p2p/{OTHER}",
                    b"dnsaddr=/ip4/\xff\xfe",
                    "sdnet=!!!!",
                    "sdnet=",
                    "sdnet=" + "A" * 100,
                    "sdnet=AQ",
                    "unknown=1",
                ),
            ),
        ],
    )
    found = parse_packet(packet)
    assert found is not None
    (peer,) = found.records
    assert peer.addresses == (f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",)
    assert peer.tags == {b"\x01"}
    assert peer.ttl_s == MAX_TTL_S


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        b"\xff" * 12,
        response([record(SERVICE, PTR, name(INSTANCE))]),
        response([record(SERVICE, PTR, name("elsewhere._http._tcp.local."))]),
        response([record(SERVICE, PTR, name(INSTANCE))], [record(INSTANCE, TXT, b"\xffshort")]),
        response([record(SERVICE, PTR, b"\xc0\x0c")]),
        struct.pack(">6H", 0, 0x8400, 0, 65535, 65535, 65535) + record(SERVICE, PTR, name(INSTANCE)),
        response([record(SERVICE, PTR, name(INSTANCE))] * 5000),
    ],
)
def test_malformed_packets_are_nothing(packet: bytes) -> None:
    assert parse_packet(packet) is None


VALID = [
    *encode_responses(INSTANCE, text_strings(PEER, ["/ip4/192.0.2.1/tcp/4001"], [b"tag"])),
    *encode_goodbye(INSTANCE),
    encode_query(),
]


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    parse_packet(data)


@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_damage_never_raises(packet: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(packet)
    for position, value in flips:
        damaged[position % len(damaged)] = value
    found = parse_packet(bytes(damaged[: cut or None]))
    for peer in found.records if found else ():
        assert peer.ttl_s == 0 or peer.addresses
