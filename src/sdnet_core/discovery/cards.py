"""Which addresses a device tells those who look for it from elsewhere, and which of another's to try (pure)."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import platform
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdnet_core.discovery.dht_records import Card
from sdnet_core.discovery.multiaddrs import Network, is_loopback, parse_multiaddr, useful_addresses

__all__ = ["ip_of", "make_card", "this_host", "worth_trying"]

MAX_DIRECT = 12
MAX_OTHERS = 8


def this_host() -> bytes:
    """Tells this machine, or this network namespace of it, from others; means nothing to anybody else. 16 bytes."""
    parts = [platform.node(), str(uuid.getnode())]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/net"))
    except OSError:
        pass  # not on Linux
    return hashlib.sha256("\0".join(parts).encode()).digest()[:16]


def ip_of(address: str) -> str:
    """The IP address that a multiaddr begins with; empty if there is none."""
    try:
        ip = parse_multiaddr(address).ip
    except ValueError:
        return ""
    return "" if ip is None else str(ip)


def make_card(
    peer_id: str,
    local: Sequence[str],
    outside: Sequence[str],
    *,
    tags: Iterable[bytes] = (),
    host: bytes = b"",
    seen_as: Sequence[str] = (),
) -> Card:
    """Make the card of this device.

    :param local: what it listens on.
    :param outside: where else it is reached: ports of a router, relays.
    :param seen_as: multiaddrs at which meeting points see it.
    """
    near = useful_addresses(peer_id, local, limit=MAX_DIRECT)
    far = useful_addresses(peer_id, outside, limit=MAX_OTHERS)
    return Card(
        peer_id=peer_id,
        addresses=tuple(dict.fromkeys((*near, *far))),
        tags=tuple(sorted(tags)[:16]),
        host=host,
        seen_as=tuple(dict.fromkeys(ip for address in seen_as if (ip := ip_of(address))))[:4],
    )


def worth_trying(
    card: Card, *, host: bytes, networks: Sequence[Network] = (), seen_as: Sequence[str] = ()
) -> tuple[str, ...]:
    """Which addresses of a card can be reached from here.

    Loopback ones on the same machine only. Private ones only if they are in a network of ours, or the other device is
    not behind a translating router, or it is behind the same one as we are, or not enough is known to tell.

    :param host: our own machine.
    :param seen_as: multiaddrs at which meeting points see us.
    """
    ours = {ip for address in seen_as if (ip := ip_of(address))}
    theirs = set(card.seen_as)
    listens = {ip_of(address) for address in card.addresses}
    translated = bool(theirs) and not theirs & listens
    apart = translated and bool(ours) and not ours & theirs
    return tuple(address for address in card.addresses if _reachable(address, card.host == host, apart, networks))


def _reachable(address: str, same_host: bool, apart: bool, networks: Sequence[Network]) -> bool:
    try:
        parsed = parse_multiaddr(address)
        loopback = is_loopback(address)
    except ValueError:
        return False
    if parsed.is_relayed or parsed.ip is None:
        return True
    if loopback:
        return same_host
    if not apart or not _is_private(parsed.ip):
        return True
    return any(parsed.ip in network.network for network in networks if network.version == parsed.ip.version)


def _is_private(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ip.is_private or ip.is_link_local
