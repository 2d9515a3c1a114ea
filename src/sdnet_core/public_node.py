"""A public node: a meeting point that keeps records for devices and relays what they cannot say directly.

It has an identity of its own and nothing else on disk: no devices, no plugins. Everybody who comes is a stranger, and
every one of them has limits.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import anyio

from .clock import Clock, Randomness, SystemClock, SystemRandomness, run_in_thread
from .config import Config
from .discovery.dht_client import DhtClient
from .discovery.dht_server import DhtServer, owner_of
from .discovery.dht_store import RecordStore
from .discovery.kademlia import Contact
from .discovery.multiaddrs import useful_addresses
from .discovery.points import group_points
from .errors import ConfigurationError, InvalidRequestError
from .metrics import render
from .node_store import NodeStore
from .storage import DirectoryLock, KeyFile, SecureStorage, Vault, ensure_private_directory
from .swarm.abc import Connected, Direction, Disconnected
from .swarm.relay import Relay, RelayLimits

if TYPE_CHECKING:
    from prometheus_client import Metric

    from .swarm.abc import Swarm

__all__ = ["PublicNode", "config_of_public_node"]

logger = logging.getLogger(__name__)


def config_of_public_node(config: Config) -> Config:
    """The settings of the public node of an instance: it has a data folder and a socket of its own."""
    data = config.paths.data / "public-node"
    log = config.paths.logs / "public-node"
    return dataclasses.replace(config, paths=dataclasses.replace(config.paths, data=data, logs=log))


class PublicNode:
    """One public node. Use: ``async with PublicNode.run(config) as node: …``

    :ivar refused: connections that were too many of one address.
    :ivar addresses: what devices are told: multiaddrs that end in ``/p2p/`` and the peer id.
    """

    def __init__(self, config: Config, swarm: Swarm, clock: Clock) -> None:
        settings = self._settings = config.public_node
        self._config = config
        self._swarm = swarm
        self._clock = clock
        self._started_at = clock.monotonic()
        self._owners: dict[str, str] = {}
        self._of_owner: Counter[str] = Counter()
        self.refused = 0
        try:
            points = group_points(settings.bootstrap)
        except InvalidRequestError as error:
            raise ConfigurationError(f"[public_node] bootstrap: {error.detail}") from error
        client = DhtClient(swarm, clock, keep=lambda peer_id: any(point.peer_id == peer_id for point in points))
        self.dht = DhtServer(
            swarm,
            clock,
            client,
            announced=lambda: self._reachable,
            start=[Contact(point.peer_id, point.addresses) for point in points if point.peer_id != swarm.peer_id],
            store=RecordStore(max_records=settings.max_records, max_per_owner=settings.max_records_per_address),
        )
        self.relay = Relay(
            swarm,
            clock,
            limits=RelayLimits(
                max_reservations=settings.max_reservations,
                max_reservations_per_address=settings.max_reservations_per_address,
                max_circuits=settings.max_circuits,
                max_circuits_per_peer=settings.max_circuits_per_peer,
                max_circuits_per_address=settings.max_circuits_per_address,
                circuit_s=settings.circuit_s,
                circuit_bytes=settings.circuit_bytes,
            ),
            owner_of=owner_of,
        )

    @classmethod
    @asynccontextmanager
    async def run(
        cls, config: Config, *, clock: Clock | None = None, randomness: Randomness | None = None
    ) -> AsyncIterator[PublicNode]:
        """Run one for the length of the block.

        :param config: as `config_of_public_node` gives it.
        :raises NetworkingError: it cannot start; says why.
        """
        from .swarm.libp2p import Libp2pSwarm, SwarmLimits

        clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
        settings = config.public_node
        async with AsyncExitStack() as stack:
            data = config.paths.data
            await run_in_thread(ensure_private_directory, data)
            lock = DirectoryLock(data)
            await run_in_thread(lock.acquire)
            stack.callback(lock.release)
            vault = await run_in_thread(Vault.open_or_create, data, KeyFile(), clock, randomness)
            storage = SecureStorage(
                data / "network", vault.subkey("network"), clock=clock, randomness=randomness, runner=run_in_thread
            )
            store = NodeStore(storage, clock, randomness)
            identity, _ = await store.identity(config.device_name)
            most = settings.max_connections
            swarm = Libp2pSwarm(
                identity.seed,
                limits=SwarmLimits(max_connections=most, max_strangers=most),
                transports=tuple(dict.fromkeys(config.node.transports)),
            )
            node = cls(config, swarm, clock)
            await stack.enter_async_context(swarm.run())
            await store.listen(swarm, settings.listen)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(node._read_events)
                tasks.start_soon(node.dht.run)
                if settings.relay:
                    tasks.start_soon(node.relay.run)
                logger.info("public node %s listens on %s", swarm.peer_id, ", ".join(swarm.addresses))
                try:
                    yield node
                finally:
                    tasks.cancel_scope.cancel()

    async def _read_events(self) -> None:
        """Follow who comes and goes; one address gets no more than its share of the connections."""
        async for event in self._swarm.events:
            match event:
                case Connected(peer_id=peer_id, address=address, direction=Direction.INBOUND):
                    owner = self._owners[peer_id] = owner_of(address, peer_id)
                    self._of_owner[owner] += 1
                    if self._of_owner[owner] > self._settings.max_connections_per_address:
                        self.refused += 1
                        await self._swarm.hang_up(peer_id)
                case Disconnected(peer_id=peer_id):
                    left = self._owners.pop(peer_id, None)
                    if left is not None:
                        self._of_owner[left] -= 1
                        if not self._of_owner[left]:
                            del self._of_owner[left]

    @property
    def _reachable(self) -> tuple[str, ...]:
        """Where it is reached, best first."""
        if self._settings.announce:
            return self._settings.announce
        # What is far away from others is the best that there is to tell.
        return useful_addresses(self._swarm.peer_id, self._swarm.addresses)[::-1]

    @property
    def addresses(self) -> tuple[str, ...]:
        """What devices are told: multiaddrs that end in ``/p2p/`` and the peer id."""
        return tuple(f"{address}/p2p/{self._swarm.peer_id}" for address in self._reachable)

    def status(self) -> dict[str, Any]:
        """The node at a glance, as plain values."""
        relay, dht = self.relay, self.dht
        return {
            "instance": self._config.instance,
            "peer_id": self._swarm.peer_id,
            "addresses": list(self.addresses),
            "version": metadata.version("sdnet-core"),
            "uptime_s": self._clock.monotonic() - self._started_at,
            "data": str(self._config.paths.data),
            "connections": {"of_strangers": len(self._owners), "refused": self.refused},
            "dht": {"records": len(dht.store), "nodes": len(dht.table), "counts": dict(sorted(dht.counts.items()))},
            "relay": {
                "on": self._settings.relay,
                "reservations": relay.reservations,
                "circuits": relay.circuits,
                "limits": dataclasses.asdict(relay.limits),
                "counts": dict(sorted(relay.counts.items())),
            },
        }

    def metrics(self) -> bytes:
        """Numbers in Prometheus' text format."""
        return render([self._families])

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        relay, dht = self.relay, self.dht
        for name, help_, value in (
            ("uptime_seconds", "How long it has run.", self._clock.monotonic() - self._started_at),
            ("connections", "Connections of devices and other strangers.", len(self._owners)),
            ("records", "Records kept for devices.", len(dht.store)),
            ("nodes", "Other nodes known.", len(dht.table)),
            ("reservations", "Devices that can be called through the relay.", relay.reservations),
            ("circuits", "Connections being relayed.", relay.circuits),
        ):
            yield GaugeMetricFamily(f"sdnet_public_node_{name}", help_, value=value)
        yield CounterMetricFamily("sdnet_public_node_relayed_bytes", "Bytes relayed.", value=relay.counts["bytes"])
        for name, help_, counts in (
            ("dht_questions", "Questions by what became of them.", dht.counts),
            ("relay_requests", "Relay requests and ends by what became of them.", relay.counts),
        ):
            family = CounterMetricFamily(f"sdnet_public_node_{name}", help_, labels=["result"])
            for result, count in sorted(counts.items()):
                if result != "bytes":
                    family.add_metric([result], count)
            yield family
