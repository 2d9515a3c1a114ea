"""Which transports a swarm has, and in which order it tries them."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections.abc import Callable, Sequence

from libp2p.abc import ITransport
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

__all__ = ["TRANSPORTS", "make_transports", "preference"]


def _websocket() -> ITransport:
    # Loaded by those only who use it.
    from .websocket import WebSocketTransport

    return WebSocketTransport()


TRANSPORTS: dict[str, Callable[[], ITransport]] = {"tcp": TCP, "ws": _websocket}
"""The transports there are, by the names they have in the settings."""


def make_transports(names: Sequence[str]) -> list[ITransport]:
    """Make the transports of these names, in this order.

    :raises ValueError: there is none of such a name, none at all, or one twice.
    """
    if not names or len(set(names)) != len(names) or not TRANSPORTS.keys() >= set(names):
        raise ValueError(f"The transports must be one or more of {', '.join(TRANSPORTS)}, each once.")
    return [TRANSPORTS[name]() for name in names]


def preference(transports: Sequence[ITransport], addresses: Sequence[Multiaddr]) -> list[list[Multiaddr]]:
    """The addresses in groups, one for each transport in the order of preference; those of no transport come first."""
    groups: list[list[Multiaddr]] = [[] for _ in range(len(transports) + 1)]
    for address in addresses:
        groups[next((i for i, one in enumerate(transports, 1) if one.can_dial(address)), 0)].append(address)
    return [group for group in groups if group]
