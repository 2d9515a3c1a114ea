"""The pairing link: a code, and where the device that shows it may be, as one URI (pure).

A QR code holds it, and a person can paste it. It is as secret as the words. The form is described in
``docs/protocol/pairing.md``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sdnet_core import public_key_from_peer_id
from sdnet_core.errors import SerializationError

from .code import ENTROPY_BYTES, CodeError, PairingCode

__all__ = ["PairingUri", "UriError", "choose_addresses", "choose_meeting_points", "circuit_addresses", "is_uri"]

MAX_URI_CHARACTERS = 1024
MAX_ADDRESSES = 8
MAX_MEETING_POINTS = 2
MAX_ADDRESS_CHARACTERS = 256
CHOSEN_ADDRESSES = 4
"""Addresses that we put into a link ourselves: a QR code stays small enough for a terminal."""
SUM_BYTES = 4

_PREFIX = "sdnet:pair?"
_SUM_DOMAIN = b"sdnet/pair-uri/v1\0"
# What RFC 3986 lets stand in a query as it is, without "&", "=" and "%", which would need an escape.
_ADDRESS = re.compile(r"/[A-Za-z0-9._~!$'()*+,;:@/?-]+")
_PEER = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,64}")
_NOT_OURS = "That is no pairing link of sdnet, or a part of it is missing: copy all of it."


class UriError(CodeError):
    """What was pasted is not a pairing link."""

    code = "pairing-link"


@dataclass(frozen=True, slots=True, repr=False)
class PairingUri:
    """A pairing link.

    :param code: what the words say.
    :param peer_id: the device that shows it.
    :param addresses: multiaddrs at which that device may be dialled, at most 8.
    :param meeting_points: multiaddrs, ending in ``/p2p/<peer id>``, of nodes by which it can be found; at most 2.
    """

    code: PairingCode = field(repr=False)
    peer_id: str
    addresses: tuple[str, ...] = ()
    meeting_points: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PairingUri({self.peer_id})"

    def __str__(self) -> str:
        """The link itself. Never log or store it."""
        parts = ["v=1", f"code={_encode(self.code.entropy)}", f"peer={self.peer_id}"]
        parts += [f"at={address}" for address in self.addresses]
        parts += [f"via={address}" for address in self.meeting_points]
        text = _PREFIX + "&".join(parts)
        return f"{text}&sum={_sum(text)}"

    @classmethod
    def parse(cls, pasted: str) -> PairingUri:
        """Read a link as a person pastes it; white space, also where a line was broken, does not matter.

        :raises UriError: it is not a whole link of a version that we know.
        """
        if len(pasted) > 2 * MAX_URI_CHARACTERS:
            raise UriError(f"That is too long for a pairing link, which has at most {MAX_URI_CHARACTERS} characters.")
        text = "".join(pasted.split())
        if not text.isascii() or len(text) > MAX_URI_CHARACTERS or text[:6].lower() != "sdnet:":
            raise UriError(_NOT_OURS)
        text = text[:6].lower() + text[6:]
        version = re.match(r"sdnet:pair\?v=(\d{1,4})&", text)
        if version is None:
            raise UriError(_NOT_OURS)
        if version[1] != "1":
            raise UriError("The pairing link is of another version of sdnet; update this device, or type the words.")
        return cls._parse_fields(text)

    @classmethod
    def _parse_fields(cls, text: str) -> PairingUri:
        body, mark, check = text.rpartition("&sum=")
        if not mark or not hmac.compare_digest(_sum(body), check):
            raise UriError("The pairing link is not whole, or was changed: copy all of it.")
        found: dict[str, list[str]] = {"v": [], "code": [], "peer": [], "at": [], "via": []}
        for part in body.removeprefix(_PREFIX).split("&"):
            key, _, value = part.partition("=")
            if key not in found:
                raise UriError(_NOT_OURS)
            found[key].append(value)
        if len(found["code"]) != 1 or len(found["peer"]) != 1:
            raise UriError(_NOT_OURS)
        uri = cls(PairingCode(_decode(found["code"][0])), found["peer"][0], tuple(found["at"]), tuple(found["via"]))
        uri._check()
        # One link has one form: fields out of order, repeated or escaped give another text than ours.
        if str(uri) != text:
            raise UriError(_NOT_OURS)
        return uri

    def _check(self) -> None:
        if len(self.addresses) > MAX_ADDRESSES or len(self.meeting_points) > MAX_MEETING_POINTS:
            raise UriError(_NOT_OURS)
        _check_peer(self.peer_id)
        for address in (*self.addresses, *self.meeting_points):
            if len(address) > MAX_ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(address):
                raise UriError(_NOT_OURS)
        for point in self.meeting_points:
            address, mark, peer_id = point.rpartition("/p2p/")
            if not mark or not address:
                raise UriError(_NOT_OURS)
            _check_peer(peer_id)


def is_uri(typed: str) -> bool:
    """Whether a person has pasted a link, rather than typed words."""
    return typed.lstrip()[:6].lower() == "sdnet:"


def choose_addresses(addresses: Iterable[str], *, limit: int = CHOSEN_ADDRESSES) -> tuple[str, ...]:
    """Those of a device's own addresses that are worth their place in a link, best first.

    Loopback addresses are left out unless there are no others; IPv6 ones come last, being long.
    """
    fitting = [a for a in addresses if len(a) <= MAX_ADDRESS_CHARACTERS and _ADDRESS.fullmatch(a)]
    ranked = sorted(fitting, key=_rank)
    beyond = [address for address in ranked if _rank(address) < _LOOPBACK]
    return tuple(beyond or ranked)[:limit]


def choose_meeting_points(points: Iterable[str]) -> tuple[str, ...]:
    """Those of a device's meeting points that go into a link: the first of each node, at most 2."""
    chosen: dict[str, str] = {}
    for point in points:
        if len(point) <= MAX_ADDRESS_CHARACTERS and _ADDRESS.fullmatch(point):
            chosen.setdefault(point.rpartition("/p2p/")[2], point)
    return tuple(chosen.values())[:MAX_MEETING_POINTS]


_LOOPBACK = 9


def _rank(address: str) -> int:
    parts = address.split("/")
    if "p2p-circuit" in parts:
        return 3
    try:
        ip = ipaddress.ip_address(parts[2] if len(parts) > 2 else "")
    except ValueError:
        return 2
    if ip.is_loopback:
        return _LOOPBACK
    if ip.is_link_local or ip.is_unspecified:
        return _LOOPBACK - 1
    return (0 if ip.is_private else 1) + (4 if ip.version == 6 else 0)


def _check_peer(peer_id: str) -> None:
    try:
        if not _PEER.fullmatch(peer_id):
            raise SerializationError("That is no peer id.")
        public_key_from_peer_id(peer_id)
    except SerializationError as error:
        raise UriError(_NOT_OURS) from error


def _sum(text: str) -> str:
    return _encode(hashlib.sha256(_SUM_DOMAIN + text.encode()).digest()[:SUM_BYTES])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != ENTROPY_BYTES:
        raise UriError(_NOT_OURS)
    return data


def circuit_addresses(meeting_points: Sequence[str]) -> tuple[str, ...]:
    """Addresses by which a device may be dialled through the meeting points it is known at."""
    return tuple(f"{point}/p2p-circuit" for point in meeting_points)
