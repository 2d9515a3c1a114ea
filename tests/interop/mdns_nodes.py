"""A node of ours and a js-libp2p node find each other by mDNS; what happened goes to standard output as JSON.

js-libp2p sends mDNS on every interface, so this is run where loopback is the only one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import anyio

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.discovery.candidates import Discovery
from sdnet_core.discovery.mdns import MdnsDiscovery
from sdnet_core.swarm.libp2p import Libp2pSwarm
from tests.interop.js_peer import js_peer

FIND_TIMEOUT_S = 15.0


async def main(node_command: list[str], first: str) -> dict[str, Any]:
    """Let both run until each has found the other, then let each dial where it found the other.

    :param first: which of them is there first, ``we`` or ``js``.
    """
    swarm = Libp2pSwarm(os.urandom(32))
    clock, randomness = SystemClock(), SystemRandomness()
    mdns = MdnsDiscovery(swarm.peer_id, clock, randomness, interfaces=["127.0.0.1"])
    discovery = Discovery([mdns], clock, peer_id=swarm.peer_id)
    result: dict[str, Any] = {}
    async with swarm.run():
        await swarm.listen(["/ip4/127.0.0.1/tcp/0"])
        discovery.set_addresses(swarm.addresses)
        if first == "js":
            async with js_peer(node_command, mdns=True) as js, discovery.run():
                await _find(swarm, discovery, js, result)
        else:
            async with discovery.run(), js_peer(node_command, mdns=True) as js:
                await _find(swarm, discovery, js, result)
    return result


async def _find(swarm: Libp2pSwarm, discovery: Discovery, js: Any, result: dict[str, Any]) -> None:
    started_at = time.monotonic()

    async def we_find_js() -> None:
        async with discovery.subscribe(lambda candidate: candidate.peer_id == js.peer_id) as candidates:
            candidate = await candidates.receive()
        result["we found"] = {"addresses": candidate.addresses, "after_s": time.monotonic() - started_at}

    async def js_finds_us() -> None:
        event = await js.event("discovered", peer=swarm.peer_id)
        result["js found"] = {"addresses": event["addresses"], "after_s": time.monotonic() - started_at}

    with anyio.move_on_after(FIND_TIMEOUT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(we_find_js)
            group.start_soon(js_finds_us)
    result["real"] = {"ours": swarm.addresses, "js": js.addresses}
    if "we found" in result and "js found" in result:
        await swarm.dial(js.peer_id, result["we found"]["addresses"])
        result["ping after we dialled"] = await js.ask("ping", peer=swarm.peer_id)
        await swarm.hang_up(js.peer_id)
        await js.event("disconnected", peer=swarm.peer_id)
        await js.ask("dial", peer=swarm.peer_id, addresses=result["js found"]["addresses"])
        result["ping after js dialled"] = await js.ask("ping", peer=swarm.peer_id)


if __name__ == "__main__":
    # Which of the two is first, then the command that runs node.
    sys.stdout.write(json.dumps(anyio.run(main, sys.argv[2:], sys.argv[1], backend="trio")) + "\n")
