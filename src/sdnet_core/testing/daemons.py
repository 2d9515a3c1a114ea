"""Real nodes as processes on this machine, paired, driven through the command line as a person would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from ..clock import SystemRandomness
from ..config import load_config
from ..swarm.memory import MemoryNetwork
from .nodes import MemoryDiscovery, memory_node

__all__ = ["Daemon", "paired_daemons"]

_COMMAND_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 30.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Daemon:
    """A node that runs as a process, as ``sdnet start`` starts it.

    :param name: its instance, and what the other one calls it.
    :param environment: what its process and its commands get: a home of their own, loopback only, no multicast.
    """

    name: str
    environment: Mapping[str, str]

    def run(self, *arguments: str, input: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``sdnet ARGUMENTS…`` for this node.

        :param input: what it reads from standard input; nothing by default.
        :raises AssertionError: it failed and ``check`` is set; with what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "sdnet_core.cli", "--instance", self.name, *arguments],
            env=dict(self.environment),
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"sdnet {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def json(self, *arguments: str) -> Any:
        """Run ``sdnet ARGUMENTS… --json`` and give what it printed."""
        return json.loads(self.run(*arguments, "--json").stdout)

    @property
    def socket(self) -> Path:
        """Where its local API listens."""
        return load_config(self.name, environ=self.environment).paths.socket

    def start(self) -> None:
        """Start the node, and wait until it listens."""
        self.run("start")

    def stop(self) -> None:
        """Stop the node, if it runs."""
        self.run("stop", check=False)


@contextmanager
def paired_daemons(
    home: Path, names: Sequence[str] = ("alice", "bob"), *, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Daemon, ...]]:
    """Run daemons on 127.0.0.1 that are paired and connected with each other. They have the plugins that are installed.

    Example::

        def test_two_daemons_talk(tmp_path):
            with paired_daemons(tmp_path) as (alice, bob):
                assert alice.run("echo", "bob", "hello").stdout == "hello\\n"

    Takes a few seconds, being real; `linked_nodes` is for all that needs no process.

    :param home: an empty folder for their data.
    :param environment: further variables, such as settings.
    :raises AssertionError: they do not start, or do not connect within 30 s.
    """
    ports = {name: _free_port() for name in names}
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SDNET_")}
    daemons = tuple(
        Daemon(
            name,
            {
                **variables,
                "SDNET_HOME": str(home),
                "SDNET_DISCOVERY_MDNS": "false",
                "SDNET_NODE_NAME": name,
                "SDNET_NODE_LISTEN": f"/ip4/127.0.0.1/tcp/{ports[name]}",
                **(environment or {}),
            },
        )
        for name in names
    )
    anyio.run(_pair_offline, home, ports)
    with ExitStack() as stack:
        for daemon in daemons:
            stack.callback(daemon.stop)
            daemon.start()
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        for daemon in daemons:
            while away := [device["name"] for device in daemon.json("devices") if not device["connected"]]:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{daemon.name} does not connect to {', '.join(away)}.")
                time.sleep(_POLL_S)
        yield daemons


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _pair_offline(home: Path, ports: Mapping[str, int]) -> None:
    """Write the pairings into the stores of nodes that do not run yet."""
    network, randomness = MemoryNetwork(), SystemRandomness()
    async with AsyncExitStack() as stack:
        nodes = {
            name: await stack.enter_async_context(memory_node(home, name, network=network, discovery=MemoryDiscovery()))
            for name in ports
        }
        known: list[str] = []
        for name, node in nodes.items():
            for other in known:
                pairing_id, root = uuid.UUID(bytes=randomness.bytes(16), version=4), randomness.bytes(32)
                for here, there in ((node, other), (nodes[other], name)):
                    await here.add_paired_device(
                        nodes[there].device_info,
                        pairing_id=pairing_id,
                        pairing_root=root,
                        addresses=[f"/ip4/127.0.0.1/tcp/{ports[there]}"],
                    )
            known.append(name)
