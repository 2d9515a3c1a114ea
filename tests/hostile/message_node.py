"""A node with messaging in a process of its own, which its test kills: ``message_node.py <home> <name> [<life>]``.

With a life it sends texts to its one paired device for ever, and prints each that was accepted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from sdnet_core import NetworkingCore, load_config
from sdnet_messaging import MessagingService
from sdnet_messaging.plugin import MessagingPlugin

PAUSE_S = 0.01


def make_node(home: Path, name: str) -> NetworkingCore:
    """A node on loopback that does not wait long."""
    environ = {
        "SDNET_HOME": str(home),
        "SDNET_NODE_NAME": name,
        "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "SDNET_DISCOVERY_MDNS": "false",
        "SDNET_CONNECTIONS_RECONNECT_MIN_S": "0.05",
        "SDNET_CONNECTIONS_RECONNECT_MAX_S": "0.5",
    }
    quick = {"plugins": {"messaging": {"away_wait_s": 0.02, "ack_timeout_s": 0.3}}}
    return NetworkingCore(load_config(name, environ=environ, overrides=quick), plugins=[MessagingPlugin])


async def main(home: str, name: str, life: str | None = None) -> None:
    """Run until killed."""
    async with make_node(Path(home), name) as core:
        print("ready", flush=True)  # noqa: T201
        if life is None:
            await anyio.sleep_forever()
        messaging = core.get_service(MessagingService)
        [device] = core.remote_devices()
        number = 0
        while True:
            text = f"{life} {number}"
            await messaging.send_text(device.device_id, text)
            print(text, flush=True)  # noqa: T201
            number += 1
            await anyio.sleep(PAUSE_S)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:], backend="trio")
