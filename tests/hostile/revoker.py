"""A process that the tests of revocation kill: ``revoker.py`` forks one node for each line of its standard input.

A line is ``<home> <job> <step>``. The job ``pair`` makes a node with one paired device, ``revoke`` and ``forget`` end
the pairing and kill the process with SIGKILL just before the ``step``-th system call on the disk from then on (never,
if it is 0), and ``look`` tells what a restarted node makes of it. What is told goes to standard output.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio

from sdnet_core import NetworkIdentity, NetworkingCore, load_config
from sdnet_core.errors import DeviceNotFoundError
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from tests.hostile.storage_writer import acknowledge, die_at

T = TypeVar("T")
DEVICE = NetworkIdentity(bytes(range(32))).device_info(uuid.UUID(int=7), "phone", "0.1")


async def inline(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function here: one thread, so that the steps come in the same order every time."""
    return function(*args)


def node(home: Path) -> NetworkingCore:
    """The node of a home, on a network of its own."""
    network = MemoryNetwork()
    return NetworkingCore(
        load_config(environ={"SDNET_HOME": str(home)}, overrides={"node": {"name": "a", "listen": ("/memory/0",)}}),
        plugins=(),
        swarm=lambda identity: MemorySwarm(network, identity.peer_id),
        sources=lambda identity: (),
        runner=inline,
    )


async def work(home: Path, job: str, step: int) -> None:
    """Do one job."""
    async with node(home) as core:
        match job:
            case "pair":
                await core.add_paired_device(DEVICE, pairing_id=uuid.UUID(int=1, version=4), pairing_root=b"r" * 32)
                acknowledge(1, b"paired\n")
            case "revoke" | "forget":
                if step:
                    die_at(step)
                await (core.revoke_device if job == "revoke" else core.forget_device)(DEVICE.id)
                acknowledge(1, b"done\n")
            case "look":
                try:
                    found = str(core.remote_device(DEVICE.id).trust)
                except DeviceNotFoundError:
                    found = "unknown"
                acknowledge(1, f"{found} {len(core.status()['storage']['recovered'])}\n".encode())
            case _:
                raise ValueError(job)


def main() -> None:
    """Fork a node for each line, one at a time."""
    for line in sys.stdin:
        home, job, step = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                anyio.run(work, Path(home), job, int(step))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        acknowledge(1, f"end {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
