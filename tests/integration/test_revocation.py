"""Revoking over real libp2p: cut in the middle, told, and not let in again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkIdentity, NetworkingCore, Trust
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import ConnectionFailedError, NetworkingError
from sdnet_core.swarm.libp2p import Libp2pSwarm
from sdnet_core.testing import pair
from tests.integration.nodes import SamplePlugin, real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]
CUT = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, NetworkingError)


async def flood(node: NetworkingCore, other: NetworkingCore, cut: anyio.Event) -> None:
    """Send as fast as it goes until the stream breaks."""
    stream = await node.open_stream(other.device_info.id, "waiting")
    try:
        while True:
            await stream.send_record(bytes(64 * 1024))
    except CUT:
        cut.set()


async def test_a_transfer_is_cut_at_once_and_the_device_stays_out(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """``pytest -s`` prints how long the cut took, with bytes flowing both ways as fast as they can."""
    plugin = SamplePlugin()
    async with real_node(tmp_path, "a", [plugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        a_id, b_id = a.device_info.id, b.device_info.id
        async with anyio.create_task_group() as tasks, b.subscribe_events(["device-removed"]) as told:
            there, back = anyio.Event(), anyio.Event()
            tasks.start_soon(flood, b, a, there)
            tasks.start_soon(flood, a, b, back)
            await plugin.waiting.wait_for(1)
            began = anyio.current_time()
            with anyio.fail_after(30):
                await a.revoke_device(b_id)
                await there.wait()
                await back.wait()
            took_s = anyio.current_time() - began
            record_property("revoke_to_cut_s", took_s)
            print(f"from the call to the cut of both ways: {took_s:.3f} s")  # noqa: T201
            assert plugin.waiting.running == 0
            with anyio.fail_after(30):
                await told.receive()
        assert b.remote_device(a_id).trust is Trust.EXPIRED
        with pytest.raises(ConnectionFailedError, match="pair it again"):
            await b.request(a_id, "echo", b"?")
        assert not a._swarm.is_connected(b.identity.peer_id)
        b_seed = b.identity.seed
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        swarm = Libp2pSwarm(b_seed)  # the revoked device, with whatever software
        async with swarm.run():
            for protocol in ("/sdnet/session/1", "/sdnet/echo/1", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"):
                with pytest.raises(CUT), anyio.fail_after(5):
                    await opened(swarm, a.identity.peer_id, a.addresses, protocol)
                assert not a._swarm.is_connected(swarm.peer_id)
        assert a.remote_device(b_id).trust is Trust.REVOKED
        with pytest.raises(ConnectionFailedError, match="revoked"):
            await a.connect(b_id)


async def opened(swarm: Libp2pSwarm, peer_id: str, addresses: tuple[str, ...], protocol: str) -> None:
    """Connect, open a stream, and hear something on it."""
    await swarm.dial(peer_id, addresses)
    stream = await swarm.open_stream(peer_id, [protocol])
    await stream.receive()


async def test_the_gate_of_a_swarm_lets_no_stream_through_in_either_direction() -> None:
    one = Libp2pSwarm(NetworkIdentity.generate(SystemRandomness()).seed)
    other = Libp2pSwarm(NetworkIdentity.generate(SystemRandomness()).seed)
    reached = []

    async def serve(stream: object) -> None:
        reached.append(stream)

    asked: list[str] = []

    def deny(peer_id: str) -> bool:
        asked.append(peer_id)
        return False

    one.set_stream_handler("/test/1", serve)
    one.gate = deny
    async with one.run(), other.run():
        await one.listen(["/ip4/127.0.0.1/tcp/0"])
        await other.listen(["/ip4/127.0.0.1/tcp/0"])
        with pytest.raises(CUT), anyio.fail_after(5):
            await opened(other, one.peer_id, one.addresses, "/test/1")
        with pytest.raises(ConnectionFailedError, match="not let in"):
            await one.dial(other.peer_id, other.addresses)
        assert asked == [other.peer_id] * 2
        assert not one.is_connected(other.peer_id)
        one.gate = None
        await one.dial(other.peer_id, other.addresses)
        assert one.is_connected(other.peer_id)
    assert reached == []


@pytest.mark.parametrize("damaged", ["the record", "the list", "the sealed list"])
async def test_a_store_damaged_right_after_a_revoke_still_refuses(tmp_path: Path, damaged: str) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        b_id, b_seed = b.device_info.id, b.identity.seed
        await a.connect(b_id)
        data = a.config.paths.data
        record = data / "network" / "devices" / str(b_id)
        trusted = record.read_bytes()
        await a.revoke_device(b_id)
    broken = {
        "the record": [record],
        "the list": [data / "revoked"],
        "the sealed list": [data / "network" / "revocations"],
    }[damaged]
    for path in broken:
        if path.exists():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    if damaged == "the record":
        record.with_name(f"{record.name}.prev").write_bytes(trusted)  # as it was just before
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        known = [device for device in a.remote_devices() if device.device_id == b_id]
        assert all(device.trust is Trust.REVOKED for device in known)
        swarm = Libp2pSwarm(b_seed)
        async with swarm.run():
            for protocol in ("/sdnet/session/1", "/sdnet/echo/1"):
                with pytest.raises(CUT), anyio.fail_after(30):
                    await opened(swarm, a.identity.peer_id, a.addresses, protocol)
