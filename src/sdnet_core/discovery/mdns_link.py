"""One network interface as mDNS sees it: its socket, and when to ask and to tell there."""

from __future__ import annotations

import math
import socket
import struct
import sys
from dataclasses import dataclass

import anyio.abc

from sdnet_core.clock import Randomness
from sdnet_core.discovery.interfaces import Interface

__all__ = ["MDNS_PORT", "Due", "LinkSchedule", "group_address", "open_socket"]

MDNS_PORT = 5353
_GROUP_V4 = "224.0.0.251"
_GROUP_V6 = "ff02::fb"
_MULTICAST_TTL = 255
# linux/in.h and linux/in6.h; not in the socket module. Without them a socket hears groups that others joined elsewhere.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29

FIRST_QUERY_INTERVAL_S = 1.0
MAX_QUERY_INTERVAL_S = 60.0
ANNOUNCEMENT_GAP_S = 1.0
"""RFC 6762 section 8.3: two announcements, a second apart."""
MIN_TELL_GAP_S = 1.0
"""RFC 6762 section 6: no record is multicast twice within a second on one link, unless it changed."""
MIN_CHANGE_GAP_S = 0.25


def group_address(interface: Interface) -> str:
    """The mDNS multicast group for an interface's IP version."""
    return _GROUP_V4 if interface.ip.version == 4 else _GROUP_V6


async def open_socket(interface: Interface) -> anyio.abc.UDPSocket:
    """Join the mDNS group on one interface.

    The socket is bound to the group itself: it hears multicast from that interface and nothing else, beside any other
    mDNS responder of the machine.

    :raises OSError: the interface cannot do multicast, or the port is held exclusively by somebody.
    """
    version = interface.ip.version
    sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if version == 4:
            _join_v4(sock, interface)
        else:
            _join_v6(sock, interface)
        sock.setblocking(False)
        return await anyio.abc.UDPSocket.from_socket(sock)
    except BaseException:
        sock.close()
        raise


def _join_v4(sock: socket.socket, interface: Interface) -> None:
    local = socket.inet_aton(str(interface.ip))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
    # One byte each: BSD refuses integers here.
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("B", _MULTICAST_TTL))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, struct.pack("B", 1))
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    sock.bind((_GROUP_V4, MDNS_PORT))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_GROUP_V4) + local)


def _join_v6(sock: socket.socket, interface: Interface) -> None:
    index = struct.pack("@I", interface.index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _MULTICAST_TTL)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    sock.bind((_GROUP_V6, MDNS_PORT, 0, interface.index))
    group = socket.inet_pton(socket.AF_INET6, _GROUP_V6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be sent now.

    :param query: ask who is there.
    :param tell: tell of ourselves.
    """

    query: bool
    tell: bool


class LinkSchedule:
    """When to ask and when to tell on one link (pure). All times are monotonic seconds.

    :param now: when the link came up.
    """

    def __init__(self, randomness: Randomness, now: float) -> None:
        self._randomness = randomness
        self.restart(now)
        self._announce_at: list[float] = []
        self._answer_at = math.inf
        self._told_at = -math.inf

    def restart(self, now: float) -> None:
        """Ask anew, often at first."""
        # RFC 6762 section 5.2: a random start, so that machines switched on together do not ask together.
        self._query_at = now + self._randomness.uniform(0.02, 0.12)
        self._query_interval_s = FIRST_QUERY_INTERVAL_S

    def changed(self, now: float) -> None:
        """What there is to tell has changed."""
        first = max(now, self._told_at + MIN_CHANGE_GAP_S)
        self._announce_at = [first, first + ANNOUNCEMENT_GAP_S]

    def asked(self, now: float) -> None:
        """Somebody wants to be told."""
        soon = now + self._randomness.uniform(0.02, 0.12)
        self._answer_at = min(self._answer_at, max(soon, self._told_at + MIN_TELL_GAP_S))

    def next_at(self) -> float:
        """When something will be due."""
        return min(self._query_at, self._answer_at, *self._announce_at[:1])

    def take_due(self, now: float) -> Due:
        """What is due; it counts as done."""
        query = now >= self._query_at
        if query:
            self._query_at = now + self._query_interval_s * self._randomness.uniform(0.9, 1.1)
            self._query_interval_s = min(self._query_interval_s * 2, MAX_QUERY_INTERVAL_S)
        announce = bool(self._announce_at) and now >= self._announce_at[0]
        if announce:
            self._announce_at = [now + ANNOUNCEMENT_GAP_S] if len(self._announce_at) > 1 else []
        tell = announce or now >= self._answer_at
        if tell:
            self._answer_at = math.inf
            self._told_at = now
        return Due(query, tell)
