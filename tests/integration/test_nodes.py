"""Two nodes over real libp2p on loopback."""

from pathlib import Path

import anyio
import pytest

from sdnet_core import Trust
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    DeviceNotFoundError,
    ProtocolError,
    StorageError,
)
from sdnet_core.identity import NetworkIdentity
from sdnet_core.testing import pair
from tests.integration.nodes import SamplePlugin, real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]


async def test_two_nodes_pair_talk_part_and_meet_again(tmp_path: Path) -> None:
    plugin = SamplePlugin()
    async with real_node(tmp_path, "a", [plugin]) as a:
        async with real_node(tmp_path, "b", [SamplePlugin]) as b:
            await pair(a, b, SystemRandomness())
            b_id = b.device_info.id
            assert await a.request(b_id, "echo", b"hello") == b"hello"
            assert await b.request(a.device_info.id, "echo", b"x" * 100_000) == b"x" * 100_000
            assert 0 < await a.ping(b_id) < 5
            await a.send_message(b_id, "echo", b"later")
            with anyio.fail_after(5):
                await plugin.echo.answered.wait()
            assert plugin.echo.responses == [b"later"]
            with pytest.raises(ProtocolError, match="no plugin for chess"):
                await a.request(b_id, "chess", b"e4")
            assert a.get_connected_devices()[0].name == "b"
            addresses = b.addresses
        (described,) = a.describe_devices()
        assert described["state"] == "disconnected"
        assert described["reason"] == "the other device stopped"
        with pytest.raises(ConnectionFailedError, match="b is not connected"):
            await a.request(b_id, "echo", b"?", timeout_s=1)
        async with real_node(tmp_path, "b", [SamplePlugin]) as b:
            assert b.addresses == addresses  # the port is kept
            await a.connect(b_id, timeout_s=10)
            assert await a.request(b_id, "echo", b"again") == b"again"
        assert plugin.echo.events == ["connection-established", "connection-lost"] * 2


async def test_they_find_each_other_by_mdns_alone(tmp_path: Path) -> None:
    """The port of the last run is taken, so the remembered address leads nowhere."""
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        port = int(b.addresses[0].rsplit("/", 1)[1])
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        assert not b.addresses[0].endswith(f"/{port}")
        await a.connect(b.device_info.id, timeout_s=15)
        assert await a.request(b.device_info.id, "echo", b"found") == b"found"


async def test_both_dial_at_once_and_one_session_stays(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
    for _ in range(5):
        async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.connect, b.device_info.id)
                tasks.start_soon(b.connect, a.device_info.id)
            for _ in range(20):
                assert await a.request(b.device_info.id, "echo", b"1") == b"1"
                assert await b.request(a.device_info.id, "echo", b"2") == b"2"


async def test_a_device_that_has_forgotten_us_is_expired_not_retried(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        async with real_node(tmp_path, "b", [SamplePlugin]) as b:
            await pair(a, b, SystemRandomness())
            b_id = b.device_info.id
        async with a.subscribe_events(["device-removed"]) as events:
            for record in (tmp_path / "b" / "data" / "network" / "devices").iterdir():
                record.unlink()
            async with real_node(tmp_path, "b", [SamplePlugin]):
                with anyio.fail_after(10):
                    await events.receive()
        assert a.remote_device(b_id).trust is Trust.EXPIRED
        with pytest.raises(ConnectionFailedError, match="pair it again"):
            await a.connect(b_id)
        with pytest.raises(DeviceNotFoundError, match="paired again"):
            await a.send_message(b_id, "echo", b"would wait for ever")
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        assert a.remote_device(b_id).trust is Trust.EXPIRED


async def test_another_device_cannot_take_over_an_id(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a, real_node(tmp_path, "b", [SamplePlugin]) as b:
        await pair(a, b, SystemRandomness())
        thief = NetworkIdentity.generate(SystemRandomness()).device_info(b.device_info.id, "b", "0.1")
        with pytest.raises(ConflictError):
            await a.add_paired_device(thief, pairing_id=b.device_info.id, pairing_root=bytes(32))
        assert await a.request(b.device_info.id, "echo", b"still b") == b"still b"


async def test_a_lost_identity_is_never_replaced_in_silence(tmp_path: Path) -> None:
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        peer_id = a.identity.peer_id
    async with real_node(tmp_path, "a", [SamplePlugin]) as a:
        assert a.identity.peer_id == peer_id
    for file in (tmp_path / "a" / "data" / "network").glob("identity*"):
        file.unlink()
    with pytest.raises(StorageError, match="move the whole folder away"):
        async with real_node(tmp_path, "a", [SamplePlugin]):
            pass


async def test_errors_of_the_caller_come_out_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError, match="None is paired"):
        async with real_node(tmp_path, "a", [SamplePlugin]) as a:
            a.find_device("nobody")
