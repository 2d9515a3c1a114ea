"""Multiaddrs as text: parsing, and which of a peer's addresses are worth dialling, in which order (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["MAX_ADDRESSES_PER_PEER", "Multiaddr", "Network", "is_loopback", "parse_multiaddr", "useful_addresses"]

MAX_ADDRESSES_PER_PEER = 16
"""Most addresses kept and announced for one peer."""
MAX_MULTIADDR_CHARS = 512
MAX_COMPONENTS = 16

Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""One of this machine's own addresses with the prefix of its network."""

# https://github.com/multiformats/multiaddr/blob/master/protocols.csv: those that stand in dialable addresses.
_WITH_VALUE = frozenset(
    {"certhash", "dns", "dns4", "dns6", "dnsaddr", "ip4", "ip6", "ip6zone", "memory", "p2p", "sni", "tcp", "udp"}
)
_WITHOUT_VALUE = frozenset(
    {
        "http",
        "https",
        "noise",
        "p2p-circuit",
        "p2p-webrtc-direct",
        "quic",
        "quic-v1",
        "tls",
        "webrtc",
        "webrtc-direct",
        "webtransport",
        "ws",
        "wss",
    }
)


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """A multiaddr taken apart.

    :param components: pairs of protocol name and value (None where the protocol has none).
    """

    components: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        return "".join(f"/{name}" if value is None else f"/{name}/{value}" for name, value in self.components)

    def names(self) -> tuple[str, ...]:
        """The protocol names in order."""
        return tuple(name for name, _ in self.components)

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address it starts with, or None for a name, a relay or memory."""
        for name, value in self.components[:2]:
            if name in ("ip4", "ip6") and value is not None:
                return ipaddress.ip_address(value)
        return None

    @property
    def is_relayed(self) -> bool:
        """Whether it goes through a relay."""
        return "p2p-circuit" in self.names()


def parse_multiaddr(text: str) -> Multiaddr:
    """Take a multiaddr apart and put its IP addresses into canonical form.

    :raises ValueError: it is not a multiaddr, is too long, or uses a protocol not known here.
    """
    if len(text) > MAX_MULTIADDR_CHARS or not text.startswith("/") or not text.isascii() or not text.isprintable():
        raise ValueError("not a multiaddr")
    parts = iter(text.rstrip("/").split("/")[1:])
    components: list[tuple[str, str | None]] = []
    for name in parts:
        if len(components) == MAX_COMPONENTS:
            raise ValueError("the multiaddr has too many components")
        if name in _WITHOUT_VALUE:
            components.append((name, None))
        elif name in _WITH_VALUE:
            components.append((name, _checked_value(name, next(parts, ""))))
        else:
            raise ValueError(f"unknown multiaddr protocol {name[:32]!r}")
    if not components:
        raise ValueError("the multiaddr is empty")
    return Multiaddr(tuple(components))


def _checked_value(name: str, value: str) -> str:
    if not value or " " in value:
        raise ValueError(f"/{name} needs a value")
    if name == "ip4":
        return str(ipaddress.IPv4Address(value))
    if name == "ip6":
        address = ipaddress.IPv6Address(value)
        if address.scope_id is not None:
            raise ValueError("an IPv6 zone stands in /ip6zone")
        return str(address)
    if name in ("tcp", "udp"):
        if not value.isdecimal() or not 0 <= int(value) <= 65535:
            raise ValueError("not a port")
        return str(int(value))
    return value


def is_loopback(address: str) -> bool:
    """Whether a multiaddr can be reached from its own machine only.

    :raises ValueError: it is not a multiaddr.
    """
    ip = parse_multiaddr(address).ip
    return ip is not None and ip.is_loopback


def useful_addresses(
    peer_id: str,
    addresses: Iterable[str],
    *,
    networks: Sequence[Network] = (),
    allow_loopback: bool = True,
    limit: int = MAX_ADDRESSES_PER_PEER,
) -> tuple[str, ...]:
    """Choose the addresses of a peer that can be dialled from here, nearest first.

    Dropped are what does not parse, unspecified, multicast and reserved addresses, port 0, link-local IPv6 without a
    zone, names that need a DNS-address lookup, and those whose last ``/p2p`` names another peer. A last ``/p2p`` that
    names this peer is taken off.

    :param networks: this machine's networks; addresses within them come before all but loopback.
    :param allow_loopback: whether the peer runs on this machine; else its loopback addresses mean ours, not its.
    :param limit: most addresses returned.
    """
    ranked: dict[str, int] = {}
    for text in addresses:
        try:
            address = _without_peer(parse_multiaddr(text), peer_id)
        except ValueError:
            continue
        rank = _rank(address, networks, allow_loopback)
        if rank is not None:
            ranked.setdefault(str(address), rank)
    return tuple(sorted(ranked, key=ranked.__getitem__)[:limit])


def _without_peer(address: Multiaddr, peer_id: str) -> Multiaddr:
    name, value = address.components[-1]
    if name != "p2p":
        return address
    if value != peer_id or len(address.components) == 1:
        raise ValueError("the address is another peer's, or no address")
    return Multiaddr(address.components[:-1])


def _rank(address: Multiaddr, networks: Sequence[Network], allow_loopback: bool) -> int | None:
    """Where an address stands in the order of dialling, or None if it cannot be dialled."""
    names = address.names()
    if "dnsaddr" in names or any(name in ("tcp", "udp") and value == "0" for name, value in address.components):
        return None
    ip = address.ip
    if ip is None:
        return 5 if address.is_relayed else 3
    if ip.is_unspecified or ip.is_multicast or (ip.version == 4 and ip.is_reserved) or str(ip) == "255.255.255.255":
        return None
    if ip.version == 6 and ip.is_link_local and "ip6zone" not in names:
        return None
    if "tcp" not in names and "udp" not in names:
        return None
    if address.is_relayed:
        return 5
    if ip.is_loopback:
        return 0 if allow_loopback else None
    if any(ip in network.network for network in networks if network.version == ip.version):
        return 1
    return 2 if ip.is_private else 4
