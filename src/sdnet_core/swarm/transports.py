"""Which transports a swarm has, and in which order it tries them."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from collections.abc import Callable, Sequence

from libp2p.abc import ITransport
from libp2p.crypto.keys import PrivateKey
from multiaddr import Multiaddr

from .relay_transport import is_relayed
from .tcp import TcpTransport
from .upgrade import SwarmLimits

__all__ = ["TRANSPORTS", "make_transports", "preference"]


def _tcp(identity: PrivateKey, limits: SwarmLimits) -> ITransport:
    return TcpTransport()


# These are loaded by those only who use them.


def _quic(identity: PrivateKey, limits: SwarmLimits) -> ITransport:
    from .quic.transport import QuicTransport

    return QuicTransport(identity, max_inbound_streams=limits.max_inbound_streams)


def _websocket(identity: PrivateKey, limits: SwarmLimits) -> ITransport:
    from .websocket import WebSocketTransport

    return WebSocketTransport()


TRANSPORTS: dict[str, Callable[[PrivateKey, SwarmLimits], ITransport]] = {
    "tcp": _tcp,
    "quic": _quic,
    "ws": _websocket,
}
"""The transports there are, by the names they have in the settings."""


def make_transports(names: Sequence[str], identity: PrivateKey, limits: SwarmLimits) -> list[ITransport]:
    """Make the transports of these names, in this order.

    :param identity: our key, for transports that bring security of their own.
    :raises ValueError: there is none of such a name, none at all, or one twice.
    """
    if not names or len(set(names)) != len(names) or not TRANSPORTS.keys() >= set(names):
        raise ValueError(f"The transports must be one or more of {', '.join(TRANSPORTS)}, each once.")
    return [TRANSPORTS[name](identity, limits) for name in names]


def preference(
    transports: Sequence[ITransport],
    addresses: Sequence[Multiaddr],
    *,
    is_broken: Callable[[Multiaddr], bool] = lambda _: False,
) -> list[list[Multiaddr]]:
    """The addresses in groups, one for each transport in the order of preference.

    Those of no transport come first, those that go through relays last.

    :param is_broken: whether the relay of an address is one to be tried after all others.
    """
    groups: list[list[Multiaddr]] = [[] for _ in range(len(transports) + 3)]
    for address in addresses:
        if is_relayed(address):
            groups[-1 if is_broken(address) else -2].append(address)
            continue
        groups[next((i for i, one in enumerate(transports, 1) if one.can_dial(address)), 0)].append(address)
    return [group for group in groups if group]
