"""Makes the stored home directories that the tests of migration start from.

``python -m tests.store_fixture NAME`` writes ``tests/data/NAME`` with the version of sdnet that is checked out; run it
before a change of a stored format, and never again for that name::

    tests/data/home-v1/             as of format 1
        alice/data/                 the data directory, in key-file mode; the keys are of no other use
        expected.json               what is in it
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import anyio

from sdnet_core import NetworkIdentity, NetworkingCore, Trust
from sdnet_core.clock import SystemRandomness
from sdnet_core.devices.records import ConnectionConfig
from sdnet_core.testing import MemoryDiscovery, MemoryNetwork, memory_node, pair

DATA = Path(__file__).parent / "data"
AWAY = {"phone": Trust.TRUSTED, "tablet": Trust.VERIFIED, "lost": Trust.REVOKED}
"""Devices that are paired and never connected, and what becomes of their trust."""


def describe(core: NetworkingCore) -> dict[str, Any]:
    """What a store holds, as far as every version can tell."""
    devices = {}
    for device in core.describe_devices():
        more = core.describe_device(uuid.UUID(device["device_id"]))
        kept = ("device_id", "peer_id", "own_name", "trust", "paired_at", "known_addresses")
        devices[device["name"]] = {
            **{key: device[key] for key in kept},
            **{key: more[key] for key in ("pairing_id", "auto_connect", "connection_config")},
            "last_seen": None if device["connected"] else device["last_seen"],
        }
    return {
        "device_id": str(core.device_info.id),
        "peer_id": core.identity.peer_id,
        "devices": json.loads(json.dumps(devices)),
    }


async def make(home: Path) -> dict[str, Any]:
    """Let a node live: paired with one that connects and with some that do not."""
    network, discovery, randomness = MemoryNetwork(), MemoryDiscovery(), SystemRandomness()
    async with memory_node(home, "alice", network=network, discovery=discovery) as alice:
        async with memory_node(home, "bob", network=network, discovery=discovery) as bob:
            await pair(alice, bob, randomness)
            await alice.rename_device(bob.device_info.id, "bob's laptop")
        for number, (name, trust) in enumerate(AWAY.items()):
            info = NetworkIdentity.generate(randomness).device_info(uuid.uuid4(), name, "0.1.0")
            addresses = [f"/ip4/192.0.2.{number}/tcp/4001", f"/ip6/2001:db8::{number}/tcp/4001"]
            pairing_id = uuid.UUID(bytes=randomness.bytes(16), version=4)
            root = randomness.bytes(32)
            await alice.add_paired_device(info, pairing_id=pairing_id, pairing_root=root, addresses=addresses)
            if trust is Trust.REVOKED:
                await alice.revoke_device(info.id)
            elif trust is not Trust.TRUSTED:
                await alice.set_trust(info.id, trust)
            config = ConnectionConfig(addresses=("/ip4/192.0.2.99/tcp/4001",), reconnect_max_s=30.0)
            if name == "phone":
                await alice.configure_connection(info.id, config, auto_connect=False)
    async with memory_node(home, "alice", network=network, discovery=discovery) as alice:
        return describe(alice)


def main() -> None:
    """Write one fixture."""
    target = DATA / sys.argv[1]
    with tempfile.TemporaryDirectory() as home:
        expected = anyio.run(make, Path(home))
        shutil.copytree(Path(home, "alice", "data"), target / "alice" / "data", ignore=shutil.ignore_patterns("lock"))
    (target / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
