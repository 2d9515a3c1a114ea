"""The packets of libp2p's mDNS discovery (pure): https://github.com/libp2p/specs/blob/master/discovery/mdns.md."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zeroconf import (  # type: ignore[attr-defined]  # public, but missing in its __all__
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSText,
)

from sdnet_core.clock import Randomness
from sdnet_core.discovery.candidates import MAX_TAG_BYTES, MAX_TAGS
from sdnet_core.discovery.multiaddrs import MAX_ADDRESSES_PER_PEER
from sdnet_core.errors import SerializationError
from sdnet_core.identity import public_key_from_peer_id

__all__ = [
    "META_SERVICE",
    "SERVICE",
    "Packet",
    "PeerRecord",
    "encode_goodbye",
    "encode_query",
    "encode_responses",
    "encode_service_listing",
    "parse_packet",
    "random_instance_name",
    "text_strings",
]

_logger = logging.getLogger(__name__)

SERVICE = "_p2p._udp.local."
META_SERVICE = "_services._dns-sd._udp.local."
"""RFC 6763 section 9: asks which services there are."""
RECORD_TTL_S = 120
MAX_TTL_S = 600
"""Longest time a peer's records are believed, whatever they say."""
LEGACY_TTL_S = 10
"""RFC 6762 section 6.7: longest time to live in an answer to a one-shot querier."""

# RFC 1035 sections 3.2.2 and 3.2.4, RFC 6762 sections 10.2 and 18.
_TYPE_PTR = 12
_TYPE_TXT = 16
_TYPE_ANY = 255
_CLASS_IN = 1
_CACHE_FLUSH = 0x8000
_FLAGS_QUERY = 0x0000
_FLAGS_RESPONSE = 0x8400

MAX_STRING_BYTES = 255
MAX_TEXT_BYTES = 1100
"""Text in one packet: with headers it stays below an Ethernet frame. What does not fit goes into further packets."""
MAX_PACKET_BYTES = 9000
"""RFC 6762 section 17."""
MAX_RECORDS_PER_PACKET = 32
_MAX_STRINGS = 4 * MAX_ADDRESSES_PER_PEER
_MAX_NAME_CHARS = 255
_LABEL_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_LABELS = (b"\x04_p2p", b"\x09_services")
_ADDRESS_KEY = b"dnsaddr="
_TAG_KEY = b"sdnet="


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What one packet says of one peer.

    :param instance: the random name it goes by.
    :param peer_id: base58; empty in a goodbye.
    :param addresses: multiaddrs as announced, unchecked, with ``/p2p/<peer id>`` at the end.
    :param ttl_s: how long it holds, seconds; 0 is a goodbye.
    """

    instance: str
    peer_id: str
    addresses: tuple[str, ...]
    tags: frozenset[bytes]
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Packet:
    """What concerns us in a packet.

    :param query_id: to be repeated in a unicast answer.
    :param asks_peers: it asks for the libp2p peers.
    :param asks_services: it asks for the kinds of services.
    :param known_instances: names the querier knows well enough to want no answer from.
    :param records: peers it tells of.
    """

    query_id: int = 0
    asks_peers: bool = False
    asks_services: bool = False
    known_instances: frozenset[str] = frozenset()
    records: tuple[PeerRecord, ...] = ()


def random_instance_name(randomness: Randomness) -> str:
    """A fresh name that says nothing about the peer: 40 random characters below the service."""
    label = "".join(_LABEL_ALPHABET[byte & 31] for byte in randomness.bytes(40))
    return f"{label}.{SERVICE}"


def text_strings(peer_id: str, addresses: Iterable[str], tags: Iterable[bytes]) -> tuple[bytes, ...]:
    """The TXT strings that announce a peer; an address too long for one is left out."""
    strings = [_TAG_KEY + base64.urlsafe_b64encode(tag).rstrip(b"=") for tag in sorted(tags)]
    strings += [_ADDRESS_KEY + f"{address}/p2p/{peer_id}".encode() for address in addresses]
    return tuple(string for string in strings if len(string) <= MAX_STRING_BYTES)


def encode_query() -> bytes:
    """Ask who is there."""
    out = DNSOutgoing(_FLAGS_QUERY)
    out.add_question(DNSQuestion(SERVICE, _TYPE_PTR, _CLASS_IN))
    return _single(out)


def encode_responses(
    instance: str, strings: Iterable[bytes], *, legacy_query_id: int | None = None
) -> tuple[bytes, ...]:
    """Tell of ourselves: PTR in the answer section, TXT in the additional one, where every libp2p looks for it.

    :param legacy_query_id: answer a one-shot querier's packet with this id, by unicast.
    """
    return tuple(_single(_response(instance, text, RECORD_TTL_S, legacy_query_id)) for text in _chunks(strings))


def encode_goodbye(instance: str) -> tuple[bytes, ...]:
    """Take back what was told. Without text, because some implementations do not look at the time to live."""
    return (_single(_response(instance, b"\0", 0, None)),)


def _response(instance: str, text: bytes, ttl_s: int, legacy_query_id: int | None) -> DNSOutgoing:
    if legacy_query_id is None:
        out = DNSOutgoing(_FLAGS_RESPONSE)
    else:
        ttl_s = min(ttl_s, LEGACY_TTL_S)
        out = DNSOutgoing(_FLAGS_RESPONSE, False, legacy_query_id)
        out.add_question(DNSQuestion(SERVICE, _TYPE_PTR, _CLASS_IN))
    out.add_answer_at_time(DNSPointer(SERVICE, _TYPE_PTR, _CLASS_IN, ttl_s, instance), 0)
    out.add_additional_answer(DNSText(instance, _TYPE_TXT, _CLASS_IN | _CACHE_FLUSH, ttl_s, text))
    return out


def encode_service_listing() -> bytes:
    """Answer the question which services there are."""
    out = DNSOutgoing(_FLAGS_RESPONSE)
    out.add_answer_at_time(DNSPointer(META_SERVICE, _TYPE_PTR, _CLASS_IN, RECORD_TTL_S, SERVICE), 0)
    return _single(out)


def _single(out: DNSOutgoing) -> bytes:
    (packet,) = out.packets()
    return packet


def _chunks(strings: Iterable[bytes]) -> Iterator[bytes]:
    chunk = bytearray()
    for string in strings:
        if chunk and len(chunk) + 1 + len(string) > MAX_TEXT_BYTES:
            yield bytes(chunk)
            chunk.clear()
        chunk.append(len(string))
        chunk += string
    if chunk:
        yield bytes(chunk)


def parse_packet(data: bytes) -> Packet | None:
    """Read a packet from anybody; None if it is malformed or not about libp2p peers."""
    # Compression or not, this label stands somewhere, unless the packet asks for services; printers' packets end here.
    if not 12 <= len(data) <= MAX_PACKET_BYTES or not any(label in data.lower() for label in _LABELS):
        return None
    try:
        incoming = DNSIncoming(data)
        if not incoming.valid:
            return None
        packet = _read_query(incoming) if incoming.is_query() else _read_response(incoming)
    except Exception as error:
        # The parser is another library's and the bytes are anybody's: whatever it raises, the packet is not for us.
        _logger.debug("Malformed mDNS packet: %r", error)
        return None
    return packet if packet.asks_peers or packet.asks_services or packet.records else None


def _read_query(incoming: DNSIncoming) -> Packet:
    asked = {question.name.lower() for question in incoming.questions if question.type in (_TYPE_PTR, _TYPE_ANY)}
    known: frozenset[str] = frozenset()
    if SERVICE in asked and incoming.num_answers:
        # RFC 6762 section 7.1: no answer is wanted if the record is known for at least half its time to live.
        known = frozenset(
            record.alias.lower()
            for record in incoming.answers()
            if isinstance(record, DNSPointer) and record.ttl * 2 >= RECORD_TTL_S and record.name.lower() == SERVICE
        )
    return Packet(
        query_id=incoming.id, asks_peers=SERVICE in asked, asks_services=META_SERVICE in asked, known_instances=known
    )


def _read_response(incoming: DNSIncoming) -> Packet:
    pointers: dict[str, int] = {}
    texts: dict[str, list[bytes]] = {}
    for record in incoming.answers():
        if isinstance(record, DNSPointer) and record.name.lower() == SERVICE:
            instance = record.alias.lower()
            if len(instance) <= _MAX_NAME_CHARS and instance.endswith("." + SERVICE):
                pointers.setdefault(instance, record.ttl)
        elif isinstance(record, DNSText):
            # Some implementations send one TXT record with all strings, others one record per string.
            texts.setdefault(record.name.lower(), []).append(record.text)
    records = []
    for instance, ttl_s in tuple(pointers.items())[:MAX_RECORDS_PER_PACKET]:
        if ttl_s == 0:
            records.append(PeerRecord(instance, "", (), frozenset(), 0))
        elif found := _read_texts(instance, texts.get(instance, ()), min(ttl_s, MAX_TTL_S)):
            records.append(found)
    return Packet(records=tuple(records))


def _read_texts(instance: str, texts: Iterable[bytes], ttl_s: int) -> PeerRecord | None:
    peer_id = ""
    addresses: list[str] = []
    tags: list[bytes] = []
    for string in _split_strings(texts):
        if string.startswith(_ADDRESS_KEY):
            try:
                address = string.removeprefix(_ADDRESS_KEY).decode("ascii")
            except UnicodeDecodeError:
                continue
            owner = address.rpartition("/p2p/")[2]
            if not peer_id and _is_device(owner):
                peer_id = owner
            if peer_id and owner == peer_id:
                addresses.append(address)
        elif string.startswith(_TAG_KEY):
            if (tag := _decode_tag(string.removeprefix(_TAG_KEY))) is not None:
                tags.append(tag)
    if not addresses:
        return None
    return PeerRecord(instance, peer_id, tuple(addresses), frozenset(tags[:MAX_TAGS]), ttl_s)


def _split_strings(texts: Iterable[bytes]) -> Iterator[bytes]:
    count = 0
    for text in texts:
        offset = 0
        while offset < len(text) and count < _MAX_STRINGS:
            end = offset + 1 + text[offset]
            if end > len(text):
                break
            yield text[offset + 1 : end]
            offset = end
            count += 1


def _is_device(peer_id: str) -> bool:
    # A device key is an Ed25519 key; peers with other keys can never be devices of ours.
    try:
        public_key_from_peer_id(peer_id)
    except SerializationError:
        return False
    return True


def _decode_tag(text: bytes) -> bytes | None:
    if len(text) > (MAX_TAG_BYTES * 4 + 2) // 3:
        return None
    try:
        tag = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return tag if 1 <= len(tag) <= MAX_TAG_BYTES else None
