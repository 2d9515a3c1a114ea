"""One side of ``bench_pairing``, in a process of its own: a whole node that pairs, on loopback with real multicast.

Run as ``python -m benchmarks.pairing_peer sdnet listen|dial``.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import trio

from benchmarks.child import serve_commands, take_standard_output

_TIMEOUT_S = 60.0


class Node:
    """A node with the pairing plugin."""

    def __init__(self, core: Any, service: Any) -> None:
        self._core = core
        self._service = service
        self._session = ""

    async def hello(self) -> dict[str, Any]:
        """Who it is."""
        return {"peer_id": self._core.identity.peer_id}

    async def show(self) -> dict[str, str]:
        """Show a code; nobody is asked."""
        shown = await self._service.start_pairing_as_initiator(auto_accept=True)
        self._session = str(shown.status.id)
        return {"words": " ".join(shown.words), "link": shown.uri}

    async def join(self, code: str) -> dict[str, float]:
        """Join with a code; gives the seconds until paired, and until the session is there."""
        began = time.perf_counter()
        status = await self._service.start_pairing_as_joiner(code)
        with trio.fail_after(_TIMEOUT_S):
            async for now in self._service.watch(str(status.id)):
                if now.state.ended:
                    break
            assert now.state == "completed", now
            paired = time.perf_counter() - began
            await self._core.connect(now.device.device_id, timeout_s=_TIMEOUT_S)
        return {"paired": paired, "connected": time.perf_counter() - began}

    async def shown(self) -> None:
        """Wait until the code that was shown has been used."""
        with trio.fail_after(_TIMEOUT_S):
            async for _ in self._service.watch(self._session):
                pass

    async def forget(self) -> None:
        """Forget the other device."""
        for device in self._core.remote_devices():
            await self._core.forget_device(device.device_id)


async def _serve(answers_fd: int) -> None:
    from sdnet_core import NetworkingCore, load_config
    from sdnet_pairing import PairingService
    from sdnet_pairing.plugin import PairingPlugin

    with tempfile.TemporaryDirectory(prefix="sdnet-bench-") as home:
        environ = {
            "SDNET_HOME": home,
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "SDNET_NODE_NAME": f"bench-{uuid.uuid4().hex[:8]}",
            "SDNET_NODE_DOWNLOADS": str(Path(home) / "downloads"),
            "SDNET_DISCOVERY_MDNS_INTERFACES": "127.0.0.1",
        }
        async with NetworkingCore(load_config("bench", environ=environ), plugins=[PairingPlugin]) as core:
            node = Node(core, core.get_service(PairingService))
            await serve_commands(
                {
                    "hello": node.hello,
                    "show": node.show,
                    "shown": node.shown,
                    "join": node.join,
                    "forget": node.forget,
                },
                answers_fd=answers_fd,
            )


if __name__ == "__main__":
    os.umask(0o077)
    trio.run(_serve, take_standard_output())
