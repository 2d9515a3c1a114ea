"""Meeting points: public nodes that devices on different networks have in common (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdnet_core.discovery.multiaddrs import Multiaddr, parse_multiaddr
from sdnet_core.errors import InvalidRequestError, SerializationError
from sdnet_core.identity import public_key_from_peer_id

__all__ = ["MAX_POINTS", "MeetingPoint", "group_points", "parse_point"]

MAX_POINTS = 32
"""Most meeting points used; those of the settings come first."""


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """One public node.

    :param peer_id: libp2p peer id, base58.
    :param addresses: multiaddrs without the trailing ``/p2p``.
    """

    peer_id: str
    addresses: tuple[str, ...]

    @property
    def full_addresses(self) -> tuple[str, ...]:
        """The addresses as a person copies them."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.addresses)


def parse_point(text: str) -> MeetingPoint:
    """Read a multiaddr that ends in ``/p2p/`` and the node's peer id.

    :raises InvalidRequestError: it is none, or goes through a relay.
    """
    try:
        address = parse_multiaddr(text.strip())
        name, peer_id = address.components[-1]
        if name != "p2p" or peer_id is None or len(address.components) < 2 or address.is_relayed:
            raise ValueError("it does not end in /p2p/ and a peer id")
        public_key_from_peer_id(peer_id)
    except (ValueError, SerializationError) as error:
        raise InvalidRequestError(
            f"{text.strip()!r} is not the address of a meeting point, such as "
            f"/dns4/example.org/tcp/4001/p2p/12D3KooW…: {error}"
        ) from error
    return MeetingPoint(peer_id, (str(Multiaddr(address.components[:-1])),))


def group_points(texts: Iterable[str]) -> tuple[MeetingPoint, ...]:
    """Meeting points with all addresses of each, in the order given; at most `MAX_POINTS`.

    :raises InvalidRequestError: an address is none.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        point = parse_point(text)
        found[point.peer_id] = tuple(dict.fromkeys((*found.get(point.peer_id, ()), *point.addresses)))
    return tuple(MeetingPoint(peer_id, addresses) for peer_id, addresses in list(found.items())[:MAX_POINTS])
