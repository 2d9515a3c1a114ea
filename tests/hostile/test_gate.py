"""What strangers and faulty plugins can do at the gate, over real libp2p."""

import os
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkIdentity, NetworkingCore
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.testing import pair
from tests.integration.nodes import SamplePlugin, real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


async def ends(swarm: Libp2pSwarm, peer_id: str, protocol: str, data: bytes) -> None:
    """Open a stream, send, and see it end without an answer."""
    stream = await swarm.open_stream(peer_id, [protocol])
    with anyio.fail_after(15):
        try:
            await stream.send(data)
            answer = await stream.receive()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            return
    raise AssertionError(f"{protocol} answered {answer!r}")


async def test_a_stranger_is_refused_before_the_handler_sees_a_byte(tmp_path: Path) -> None:
    swarm = Libp2pSwarm(NetworkIdentity.generate(SystemRandomness()).seed)
    plugin = SamplePlugin()
    async with real_node(tmp_path, "a", [plugin]) as a, swarm.run():
        await swarm.dial(a.identity.peer_id, a.addresses)
        for protocol in ("/sdnet/echo/1", "/sdnet/waiting/1", "/sdnet/raising/1"):
            await ends(swarm, a.identity.peer_id, protocol, b"\x05hello")
        assert plugin.waiting.running == 0
        assert not [r.reason for r in a.plugin_records() if r.reason]  # the raising handler was not reached


async def test_garbage_on_every_protocol_leaves_the_node_serving(tmp_path: Path) -> None:
    swarm = Libp2pSwarm(NetworkIdentity.generate(SystemRandomness()).seed)
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        async with swarm.run():
            await swarm.dial(a.identity.peer_id, a.addresses)
            for protocol in ("/sdnet/session/1", "/sdnet/echo/1", "/sdnet/waiting/1"):
                for garbage in (os.urandom(4096), b"\xff" * 64, b"\x00" * 64, b"\x05abc"):
                    await ends(swarm, a.identity.peer_id, protocol, garbage)
            assert await b.request(a.device_info.id, "echo", b"alive") == b"alive"


async def test_a_paired_device_sending_unsealed_garbage_is_refused(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        swarm = b._swarm
        assert isinstance(swarm, Libp2pSwarm)
        for garbage in (os.urandom(4096), b"\x00" * 64, b"\x05hello" + bytes(64)):
            await ends(swarm, a.identity.peer_id, "/sdnet/echo/1", garbage)
        assert await b.request(a.device_info.id, "echo", b"alive") == b"alive"


async def test_a_handler_that_raises_is_shown_and_the_node_goes_on(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        for _ in range(3):
            with pytest.raises(NetworkingError):
                await b.request(a.device_info.id, "raising", b"?", timeout_s=5)
        (record,) = a.plugin_records()
        assert record.state == "loaded"
        assert "ZeroDivisionError" in record.reason
        assert await b.request(a.device_info.id, "echo", b"alive") == b"alive"


async def open_waiting(node: NetworkingCore, other: NetworkingCore) -> None:
    stream = await node.open_stream(other.device_info.id, "waiting")
    await stream.send(b"x")


async def test_a_running_handler_is_cancelled_when_its_connection_closes(tmp_path: Path) -> None:
    plugin = SamplePlugin()
    async with real_node(tmp_path, "a", [plugin]) as a:
        async with real_node(tmp_path, "b", [SamplePlugin]) as b:
            await pair(a, b, SystemRandomness())
            await open_waiting(b, a)
            await plugin.waiting.wait_for(1)
        await plugin.waiting.wait_for(0)


async def test_streams_of_one_device_are_bounded(tmp_path: Path) -> None:
    plugin = SamplePlugin()
    async with real_node(tmp_path, "a", [plugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        for _ in range(8):
            await open_waiting(b, a)
        await plugin.waiting.wait_for(8)
        refused = await b.open_stream(a.device_info.id, "waiting")
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), anyio.fail_after(10):
            await refused.receive()
        assert plugin.waiting.running == 8
        assert await b.request(a.device_info.id, "echo", b"other protocols work") == b"other protocols work"


async def test_a_stream_on_which_nothing_moves_is_ended(tmp_path: Path) -> None:
    plugin = SamplePlugin(waiting_idle_timeout_s=0.3)
    async with real_node(tmp_path, "a", [plugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        await open_waiting(b, a)
        await plugin.waiting.wait_for(1)
        await plugin.waiting.wait_for(0)
