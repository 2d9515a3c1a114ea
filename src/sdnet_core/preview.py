"""What the installed plugins would serve, without a running node."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import msgspec

from .config import Config
from .core import NetworkingCore
from .plugins import PluginRecord
from .swarm.memory import MemoryNetwork, MemorySwarm

__all__ = ["preview_plugins"]


async def preview_plugins(config: Config) -> tuple[PluginRecord, ...]:
    """Build every plugin in a node that never starts: with a throw-away home, and no network.

    :returns: the plugins with their states, protocols and capabilities.
    """
    with tempfile.TemporaryDirectory(prefix="sdnet-") as home:
        paths = dataclasses.replace(config.paths, data=Path(home) / "data", logs=Path(home) / "logs")
        # Strict is for nodes; the list is wanted most when something is broken.
        plugins = msgspec.structs.replace(config.plugins, strict=False)
        node = NetworkingCore(
            dataclasses.replace(config, paths=paths, plugins=plugins),
            swarm=lambda identity: MemorySwarm(MemoryNetwork(), identity.peer_id),
            sources=lambda identity: (),
        )
        return await node.inspect_plugins()
