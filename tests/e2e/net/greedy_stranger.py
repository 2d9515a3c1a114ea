"""Asks a public node for places for many peers, says how many it got, and keeps them until its input ends."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread

from sdnet_core.discovery.points import parse_point
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.swarm.relay_client import reserve


async def main(address: str, count: int) -> None:
    point = parse_point(address)
    got = 0
    async with AsyncExitStack() as stack:
        for _ in range(count):
            swarm = Libp2pSwarm(os.urandom(32))
            await stack.enter_async_context(swarm.run())
            try:
                await swarm.dial(point.peer_id, point.addresses)
                await reserve(swarm, point.peer_id, now=0.0)
                got += 1
            except NetworkingError:
                continue
        print(f"{got} of {count}", flush=True)  # noqa: T201
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]), backend="trio")
