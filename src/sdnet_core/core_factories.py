"""What a node is made of when nobody gives it other parts: plugins, swarm and discovery of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .clock import Clock, Randomness
from .config import Config
from .discovery.candidates import DiscoverySource
from .identity import NetworkIdentity
from .plugins import PluginSet, find_plugins, given_plugins

if TYPE_CHECKING:
    from .swarm.abc import Swarm

__all__ = ["SourcesFactory", "SwarmFactory", "default_sources", "default_swarm", "plugin_set"]

FAR_CONNECTIONS = 24
"""Connections beside those with devices: to meeting points, and in lookups."""

SwarmFactory = Callable[[NetworkIdentity], "Swarm"]
SourcesFactory = Callable[[NetworkIdentity], Iterable[DiscoverySource]]


def plugin_set(config: Config, given: Sequence[Any] | None) -> PluginSet:
    """The plugins given, or those found through entry points."""
    return find_plugins(config.plugins) if given is None else given_plugins(given)


def default_swarm(config: Config, identity: NetworkIdentity) -> Swarm:
    """The real network: libp2p, imported only now."""
    from .swarm.libp2p import Libp2pSwarm, SwarmLimits

    most = config.connections.max_connections
    # Strangers, who may want to pair or to drop something, do not take the places of paired devices.
    # Meeting points and the nodes that are asked have places of their own, too.
    limits = SwarmLimits(max_connections=most + FAR_CONNECTIONS, max_strangers=max(1, most // 2))
    transports = tuple(dict.fromkeys(config.node.transports))
    return Libp2pSwarm(identity.seed, limits=limits, transports=transports)


def default_sources(
    config: Config,
    identity: NetworkIdentity,
    clock: Clock,
    randomness: Randomness,
    *,
    far: Callable[[], DiscoverySource],
) -> Iterable[DiscoverySource]:
    """The ways of finding others that are switched on.

    :param far: makes the one that goes beyond the local network.
    """
    if config.discovery.mdns:
        from .discovery.mdns import MdnsDiscovery

        interfaces = config.discovery.mdns_interfaces or None
        yield MdnsDiscovery(identity.peer_id, clock, randomness, interfaces=interfaces)
    if config.discovery.dht:
        yield far()
