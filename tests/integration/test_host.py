"""A host that keeps the identity and the device records itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from sdnet_core import HostIdentity, NetworkingCore, RemoteDevice, Trust
from sdnet_core.bridge import DeviceStateCoordinator
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import ConflictError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from sdnet_core.testing import linked_nodes, pair
from sdnet_core.testing.nodes import MemoryDiscovery, memory_config, memory_node

pytestmark = pytest.mark.anyio

SEED = bytes(range(32))
DEVICE_ID = uuid.UUID("6f1f0c3e-3e0e-4ee9-9d9c-0d8f6f3b7a11")
MINE = HostIdentity(seed=SEED, device_id=DEVICE_ID, name="workshop")


def holds(home: Path, secret: bytes) -> bool:
    return any(secret in path.read_bytes() for path in home.rglob("*") if path.is_file())


def hosted(
    home: Path, network: MemoryNetwork, discovery: MemoryDiscovery, identity: HostIdentity | None
) -> NetworkingCore:
    return NetworkingCore(
        memory_config(home, "hosted"),
        plugins=[],
        swarm=lambda found: MemorySwarm(network, found.peer_id),
        sources=lambda found: (discovery.source(found.peer_id),),
        identity=identity,
    )


async def test_the_hosts_identity_is_the_nodes_and_its_key_is_not_stored(tmp_path: Path) -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with memory_node(tmp_path, "other", network=network, discovery=discovery) as other:
        async with hosted(tmp_path, network, discovery, MINE) as node:
            assert node.identity.peer_id == NetworkIdentity(SEED).peer_id
            assert (node.device_info.id, node.device_info.name) == (DEVICE_ID, "workshop")
            await pair(node, other, SystemRandomness())
            sealed = await node._storage.load("identity")
            assert sealed is not None
            assert SEED not in sealed
        assert not holds(tmp_path, SEED)
        async with hosted(tmp_path, network, discovery, MINE) as node:
            assert [d.name for d in node.remote_devices()] == ["other"]
            await node.connect(other.device_info.id, timeout_s=30)


@pytest.mark.parametrize(
    "other",
    [
        None,
        HostIdentity(seed=bytes(32), device_id=DEVICE_ID),
        HostIdentity(seed=SEED, device_id=uuid.UUID(int=5)),
    ],
    ids=["none", "another-key", "another-id"],
)
async def test_data_of_one_identity_are_refused_to_another(tmp_path: Path, other: HostIdentity | None) -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with hosted(tmp_path, network, discovery, MINE):
        pass
    with pytest.raises(ConflictError, match=r"belong to"):
        async with hosted(tmp_path, network, discovery, other):
            pass
    async with hosted(tmp_path, network, discovery, MINE) as node:
        assert node.device_info.id == DEVICE_ID


async def test_a_nodes_own_data_are_not_taken_over(tmp_path: Path) -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with hosted(tmp_path, network, discovery, None) as node:
        before = node.identity.peer_id
    with pytest.raises(ConflictError, match="another identity"):
        async with hosted(tmp_path, network, discovery, MINE):
            pass
    async with hosted(tmp_path, network, discovery, None) as node:
        assert node.identity.peer_id == before


class Host:
    """Keeps records, and wakes whoever waits for one to be right."""

    def __init__(self) -> None:
        self.devices: dict[uuid.UUID, RemoteDevice] = {}
        self.fails = False
        self._told = anyio.Event()

    async def device_changed(self, device: RemoteDevice) -> None:
        if self.fails:
            raise RuntimeError("no room")
        self.devices[device.device_id] = device
        self._wake()

    def device_removed(self, device_id: uuid.UUID) -> None:
        del self.devices[device_id]
        self._wake()

    def _wake(self) -> None:
        self._told.set()
        self._told = anyio.Event()

    async def until(self, right: Callable[[], bool]) -> None:
        with anyio.fail_after(30):
            while not right():
                await self._told.wait()


async def test_the_host_hears_of_what_becomes_of_devices() -> None:
    host = Host()
    async with linked_nodes(2) as (a, b):
        device_id = b.device_info.id
        await a.connect(device_id, timeout_s=30)
        async with DeviceStateCoordinator(a, host):
            assert host.devices[device_id].connected
            await a.set_trust(device_id, Trust.VERIFIED)
            await host.until(lambda: host.devices[device_id].trust is Trust.VERIFIED)
            await a.rename_device(device_id, "kitchen")
            await host.until(lambda: host.devices[device_id].name == "kitchen")
            await a.forget_device(device_id)
            await host.until(lambda: not host.devices)


async def test_what_a_host_did_not_take_comes_with_the_next_change() -> None:
    host = Host()
    async with linked_nodes(2) as (a, b):
        host.fails = True
        async with DeviceStateCoordinator(a, host):
            assert not host.devices
            host.fails = False
            await a.rename_device(b.device_info.id, "kitchen")
            await host.until(lambda: bool(host.devices))
