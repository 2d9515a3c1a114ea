"""The network interfaces of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import ifaddr

from sdnet_core.discovery.multiaddrs import Network

__all__ = ["Interface", "local_interfaces", "local_networks", "multicast_interfaces"]

MAX_INTERFACES = 32
"""Most interfaces used at the same time (machines with containers have hundreds)."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of a network interface.

    :param name: the system's name for it, such as ``eth0``.
    :param index: the system's number for it; 0 when not known.
    :param network: the address and the prefix of its network.
    """

    name: str
    index: int
    network: Network

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address."""
        return self.network.ip


def local_interfaces() -> tuple[Interface, ...]:
    """All addresses of all interfaces now."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip
            try:
                network = ipaddress.ip_interface(f"{text.partition('%')[0]}/{ip.network_prefix}")
            except ValueError:
                continue
            found.append(Interface(adapter.name, adapter.index or 0, network))
    return tuple(found)


def local_networks() -> tuple[Network, ...]:
    """The networks this machine is part of now, loopback left out."""
    return tuple(interface.network for interface in local_interfaces() if not interface.ip.is_loopback)


def multicast_interfaces(addresses: Sequence[str] | None = None) -> tuple[Interface, ...]:
    """Choose one address per interface and IP version to send multicast from.

    :param addresses: use the interfaces with these IP addresses only; all, loopback included, when None.
    """
    wanted = None if addresses is None else {ipaddress.ip_address(address) for address in addresses}
    chosen: dict[tuple[str, int], Interface] = {}
    for interface in local_interfaces():
        if wanted is not None and interface.ip not in wanted:
            continue
        if interface.ip.version == 6 and (interface.index == 0 or (wanted is None and interface.ip.is_loopback)):
            # Most systems have no route for IPv6 multicast on loopback; IPv4 finds the same peers.
            continue
        key = (interface.name, interface.ip.version)
        held = chosen.get(key)
        # RFC 6762 section 11: over IPv6, link-local source addresses are the ones every host accepts.
        if held is None or (interface.ip.version == 6 and interface.ip.is_link_local and not held.ip.is_link_local):
            chosen[key] = interface
    # Loopback first, so that it is never what falls off the end.
    ordered = sorted(chosen.values(), key=lambda interface: not interface.ip.is_loopback)
    return tuple(ordered[:MAX_INTERFACES])
