"""Listen addresses: which are possible, and what a wildcard stands for on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable

import ifaddr

__all__ = ["PortInUseError", "check_listen", "expand", "local_addresses"]

_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


class PortInUseError(OSError):
    """Somebody else listens on that port."""


def local_addresses() -> list[str]:
    """The IP addresses of this machine's interfaces, without zones."""
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            found.append(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
    return list(dict.fromkeys(found))


def expand(address: str, addresses_of_machine: Callable[[], Iterable[str]] = local_addresses) -> list[str]:
    """Replace a wildcard IP address by those of the interfaces, loopback only if there is nothing else.

    IPv6 link-local addresses are left out: they mean nothing without a zone.
    """
    family, host, *rest = address.removeprefix("/").split("/")
    if (family, host) not in {("ip4", "0.0.0.0"), ("ip6", "::")}:
        return [address]
    version = int(family[2])
    ips = [ipaddress.ip_address(text.split("%", 1)[0]) for text in addresses_of_machine()]
    usable = [ip for ip in ips if ip.version == version and not ip.is_link_local and not ip.is_multicast]
    outside = [ip for ip in usable if not ip.is_loopback]
    return ["/".join(("", family, str(ip), *rest)) for ip in outside or usable]


def check_listen(address: str) -> str | None:
    """Whether an address such as ``/ip4/…/tcp/…``, ``/ip4/…/tcp/…/ws`` or ``/ip4/…/udp/…/quic-v1`` can be listened on.

    py-libp2p shares ports (``SO_REUSEPORT``, for hole punching), so it would not notice that another program has one.

    :returns: why this machine does not have such an address, or None if it has.
    :raises PortInUseError: the port is in use.
    :raises OSError: it may not be listened on.
    """
    parts = address.removeprefix("/").removesuffix("/ws").removesuffix("/quic-v1").split("/")
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(parts[2] if len(parts) == 4 else "")
    if kind is None or parts[0] not in {"ip4", "ip6"}:
        return None
    family = socket.AF_INET6 if parts[0] == "ip6" else socket.AF_INET
    try:
        with socket.socket(family, kind) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((parts[1], int(parts[3])))
    except OSError as exc:
        if exc.errno in _NO_SUCH_FAMILY:
            return (exc.strerror or "not available").lower()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUseError(exc.errno, exc.strerror) from exc
        raise
    return None
