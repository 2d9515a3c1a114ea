"""What the tests of the Spacedrop plugin share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_file_transfer import FileTransferPlugin
from sdnet_spacedrop import DropStatus, SpacedropPlugin, SpacedropService

PLUGINS = (FileTransferPlugin, SpacedropPlugin)
TIMEOUT_S = 40.0
GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True, slots=True)
class Side:
    """One of two paired nodes."""

    core: NetworkingCore
    drops: SpacedropService
    folder: Path

    async def until(self, drop: DropStatus | str, *states: str) -> DropStatus:
        """Wait until a drop is in one of some states."""
        drop_id = drop if isinstance(drop, str) else drop.id
        with anyio.fail_after(TIMEOUT_S):
            while True:
                async for status in self.drops.watch(drop_id):
                    if status.state in states:
                        return status
                raise AssertionError(f"the drop has ended otherwise: {status}")

    async def offered(self, count: int = 1) -> list[DropStatus]:
        """Wait until so many offers wait for an answer here."""
        with anyio.fail_after(TIMEOUT_S):
            async with self.core.events.subscribe() as events:
                while len(found := self.drops.pending()) < count:
                    await events.receive()
        return found

    @property
    def downloads(self) -> Path:
        return self.core.config.downloads_dir

    def received(self) -> dict[str, bytes]:
        """Every file in the downloads folder."""
        files = (path for path in self.downloads.rglob("*") if path.is_file()) if self.downloads.exists() else ()
        return {path.relative_to(self.downloads).as_posix(): path.read_bytes() for path in files}


def side(core: NetworkingCore, nodes: LinkedNodes) -> Side:
    return Side(core, core.get_service(SpacedropService), nodes.home)


@dataclass(frozen=True, slots=True)
class Pair:
    """A sender and a receiver."""

    nodes: LinkedNodes
    sender: Side
    receiver: Side

    async def send(self, *paths: Path, message: str = "") -> DropStatus:
        """Offer files to the receiver."""
        return await self.sender.drops.send(self.receiver.core.device_info.id, paths, message)


def configure(home: Path, node: str, table: str) -> None:
    """Write a node's ``[plugins.spacedrop]`` table."""
    file = home / node / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"[plugins.spacedrop]\n{table}\n")


@asynccontextmanager
async def run_pair(home: Path, *, paired: bool = True) -> AsyncIterator[Pair]:
    """Run a sender and a receiver, configured before.

    :param paired: pair them; they are already when the same home was used before.
    """
    async with linked_nodes(2, plugins=PLUGINS, home=home, paired=paired) as nodes:
        a, b = nodes
        yield Pair(nodes, side(a, nodes), side(b, nodes))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a file to send."""

    def make(name: str = "photo.jpg", size: int = 300_000) -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))  # what repeats itself is compressed, and is there too soon to be cancelled
        return path

    return make
