"""Trusting, revoking, forgetting and renaming devices, on nodes linked in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import (
    Access,
    AuthorizationRequest,
    Capability,
    Decision,
    NetworkingCore,
    PeerStream,
    PluginContext,
    ProtocolHandler,
    ProtocolSpec,
    RemoteDevice,
    Trust,
    hookimpl,
)
from sdnet_core.clock import SystemRandomness
from sdnet_core.devices.registry import Pairing
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    DeviceNotFoundError,
    InvalidRequestError,
    NetworkingError,
    NotFoundError,
    StorageError,
)
from sdnet_core.testing import LinkedNodes, linked_nodes, memory_node, pair

pytestmark = pytest.mark.anyio


class Echo(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        return data


class Danger(ProtocolHandler):
    protocol_name = "danger"

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        return b"done"


class Waiting(ProtocolHandler):
    """Never ends by itself."""

    protocol_name = "waiting"

    def __init__(self) -> None:
        self.running = 0

    async def handle_stream(self, stream: PeerStream) -> None:
        self.running += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.running -= 1


class Meeting(ProtocolHandler):
    """Open to strangers, for pairing."""

    protocol_name = "meeting"

    async def handle_stream(self, stream: PeerStream) -> None:
        await stream.send(b"welcome")


class Lobby(ProtocolHandler):
    """Open to strangers, not for pairing."""

    protocol_name = "lobby"

    async def handle_stream(self, stream: PeerStream) -> None:
        await stream.send(b"welcome")


class TrustPlugin:
    name = "trust_sample"

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.decision: Decision | None = None
        self.ctx: PluginContext | None = None

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        self.ctx = ctx
        pairing = frozenset({Capability.STRANGERS, Capability.PAIR, Capability.ADVERTISE})
        return [
            ProtocolSpec(protocol_name="echo", version=1, handler=Echo(), access=Access.VERIFIED),
            ProtocolSpec(protocol_name="danger", version=1, handler=Danger(), access=Access.VERIFIED, sensitive=True),
            ProtocolSpec(protocol_name="waiting", version=1, handler=self.waiting),
            ProtocolSpec(
                protocol_name="meeting", version=1, handler=Meeting(), access=Access.STRANGER, capabilities=pairing
            ),
            ProtocolSpec(
                protocol_name="lobby",
                version=1,
                handler=Lobby(),
                access=Access.STRANGER,
                capabilities=frozenset({Capability.STRANGERS}),
            ),
        ]

    @hookimpl
    def sdnet_authorize(self, request: AuthorizationRequest) -> Decision | None:
        return self.decision if request.protocol_name == "echo" else None


def plugin_of(node: NetworkingCore) -> TrustPlugin:
    found = node._plugins._plugins.loaded[0].plugin
    assert isinstance(found, TrustPlugin)
    return found


async def until(condition: Any, *, timeout_s: float = 5.0) -> None:
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await anyio.sleep(0.005)


async def meet(one: NetworkingCore, other: NetworkingCore, protocol: str) -> bytes:
    """What a stranger hears first; empty if it is turned away."""
    try:
        stream = await one.open_stranger_stream(other.identity.peer_id, other.addresses, protocol)
        return await stream.receive()
    except (NetworkingError, anyio.EndOfStream, anyio.BrokenResourceError):
        return b""


def again(nodes: LinkedNodes, name: str) -> NetworkingCore:
    """The node of that name once more, after it has stopped."""
    return memory_node(nodes.home, name, network=nodes.network, discovery=nodes.discovery, plugins=[TrustPlugin])


def record_bytes(home: Path, node: str, device_id: uuid.UUID) -> list[Path]:
    folder = home / node / "data" / "network" / "devices"
    return [folder / str(device_id), folder / f"{device_id}.prev"]


async def test_revoking_cuts_everything_at_once_and_tells_the_other_side() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        a_id, b_id = a.device_info.id, b.device_info.id
        inbound = await b.open_stream(a_id, "waiting")
        await inbound.send(b"x")
        await until(lambda: plugin_of(a).waiting.running == 1)
        outbound = await a.open_stream(b_id, "waiting")
        await outbound.send(b"x")
        await until(lambda: plugin_of(b).waiting.running == 1)
        async with a.subscribe_events(["device-revoked", "device-removed", "connection-lost"]) as events:
            with anyio.fail_after(30):
                await a.revoke_device(b_id)
                assert plugin_of(a).waiting.running == 0
                for stream in (inbound, outbound):
                    with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)):
                        await stream.receive()
            told = [(await events.receive()).kind for _ in range(3)]
        assert sorted(told) == ["connection-lost", "device-removed", "device-revoked"]
        assert a.remote_device(b_id).trust is Trust.REVOKED
        assert not a.get_connected_devices()
        await until(lambda: b.remote_device(a_id).trust is Trust.EXPIRED)
        assert plugin_of(b).waiting.running == 0
        with pytest.raises(ConnectionFailedError, match="pair it again"):
            await b.connect(a_id)
        with pytest.raises(ConnectionFailedError, match="revoked: pair it again"):
            await a.connect(b_id)
        (described,) = a.describe_devices()
        assert (described["state"], described["reason"]) == ("revoked", "it was revoked")


async def test_a_revoked_device_stays_out_after_a_restart_and_may_not_even_connect(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as nodes:
        a, b = nodes
        await a.revoke_device(b.device_info.id)
        await b._swarm.hang_up(a.identity.peer_id)
        for _ in range(2):
            assert await meet(b, a, "lobby") == b""
            assert not a._swarm.is_connected(b.identity.peer_id)
        await b.revoke_device(a.device_info.id)  # an expired one can be revoked too
    async with again(nodes, "node0") as a, again(nodes, "node1") as b:
        assert a.remote_device(b.device_info.id).trust is Trust.REVOKED
        with pytest.raises(NetworkingError):
            await b.open_stranger_stream(a.identity.peer_id, a.addresses, "lobby")
        kinds = [line["kind"] for line in await a.audit.read()]
        assert "device-revoked" in kinds
        assert "peer-refused" in kinds


async def test_the_secret_of_a_revoked_pairing_is_gone_from_both_generations(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as (a, b):
        b_id = b.device_info.id
        root = a._registry.get(b_id).device.pairing_root
        assert root != bytes(32)
        await a.revoke_device(b_id)
        assert a._registry.get(b_id).device.pairing_root == bytes(32)
        current, previous = record_bytes(tmp_path, "node0", b_id)
        assert current.read_bytes() == previous.read_bytes()


async def test_a_record_that_comes_back_from_a_backup_is_refused_and_said_loudly(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as nodes:
        a, b = nodes
        b_id = b.device_info.id
        files = record_bytes(tmp_path, "node0", b_id)
        await a.rename_device(b_id, "desk")  # so that there is an older generation
        backup = [file.read_bytes() for file in files]
        await a.revoke_device(b_id)
    for file, data in zip(files, backup, strict=True):
        file.write_bytes(data)
    async with again(nodes, "node0") as a:
        assert a.remote_device(b_id).trust is Trust.REVOKED
        assert a._registry.get(b_id).device.pairing_root == bytes(32)
        assert any("desk, which was revoked, had come back" in text for text in a.status()["storage"]["recovered"])
        assert any(line["kind"] == "store-recovered" for line in await a.audit.read())
    async with again(nodes, "node0") as a:
        assert a.status()["storage"]["recovered"] == []  # it was put right for good


async def test_the_current_generation_damaged_right_after_a_revoke_does_not_bring_it_back(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as nodes:
        a, b = nodes
        b_id = b.device_info.id
        await a.revoke_device(b_id)
    current, _ = record_bytes(tmp_path, "node0", b_id)
    current.write_bytes(b"garbage")
    async with again(nodes, "node0") as a, again(nodes, "node1") as b:
        assert a.remote_device(b_id).trust is Trust.REVOKED
        with pytest.raises(ConnectionFailedError):
            await b.connect(a.device_info.id, timeout_s=0.5)


async def test_a_revoke_that_cannot_be_stored_is_no_success_but_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as (a, b):
        b_id = b.device_info.id
        (tmp_path / "node0" / "data" / "revoked").mkdir()  # nothing can be written there
        with pytest.raises(StorageError, match="Revoke it again"):
            await a.revoke_device(b_id)
        assert not a.remote_device(b_id).connected
        assert a.remote_device(b_id).trust is Trust.REVOKED
        (tmp_path / "node0" / "data" / "revoked").rmdir()
        await a.revoke_device(b_id)
        assert (tmp_path / "node0" / "data" / "revoked").stat().st_mode & 0o777 == 0o600


async def test_a_revoked_device_is_paired_anew_by_a_person() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        b_id = b.device_info.id
        await a.rename_device(b_id, "desk")
        old = a.remote_device(b_id)
        await a.revoke_device(b_id)
        with pytest.raises(ConflictError, match="ended for good"):
            await a.add_paired_device(b.device_info, pairing_id=old.pairing_id, pairing_root=bytes(range(32)))
        for protocol in ("meeting", "lobby"):
            assert await meet(b, a, protocol) == b""
        ctx = plugin_of(a).ctx
        assert ctx is not None
        with ctx.advertise(b"tag"):  # a person shows a code
            assert await meet(b, a, "meeting") == b"welcome"
            assert await meet(b, a, "lobby") == b""
            assert b._swarm.is_connected(a.identity.peer_id)
        await until(lambda: not b._swarm.is_connected(a.identity.peer_id))
        with ctx.advertise(b"tag"):
            await pair(a, b, SystemRandomness())
        assert await b.request(a.device_info.id, "echo", b"again") == b"again"
        new = a.remote_device(b_id)
        assert (new.trust, new.name) == (Trust.TRUSTED, "desk")
        assert new.pairing_id != old.pairing_id


async def test_a_forgotten_device_is_a_stranger_and_its_record_does_not_come_back(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], home=tmp_path) as nodes:
        a, b = nodes
        b_id = b.device_info.id
        file = record_bytes(tmp_path, "node0", b_id)[0]
        backup = file.read_bytes()
        await a.forget_device(b_id)
        with pytest.raises(DeviceNotFoundError):
            a.remote_device(b_id)
        await until(lambda: b.remote_device(a.device_info.id).trust is Trust.EXPIRED)
        assert await meet(b, a, "lobby") == b"welcome"
    assert not file.exists()
    file.write_bytes(backup)
    async with again(nodes, "node0") as a:
        assert a.remote_devices() == ()
        assert any("which was forgotten, had come back" in text for text in a.status()["storage"]["recovered"])
    assert not file.exists()


async def test_names_of_ones_own() -> None:
    async with linked_nodes(3, plugins=[TrustPlugin]) as (a, b, c):
        b_id = b.device_info.id
        async with a.subscribe_events(["device-renamed"]) as events:
            await a.rename_device(b_id, "Desk")
            assert (await events.receive()).to_dict()["device_name"] == "Desk"
        for reference in ("desk", "De", "node1", str(b_id)):
            assert a.find_device(reference).device_id == b_id
        assert a.find_device("Desk").name == "Desk"
        for wrong in ("", " x", "x" * 65, "a\nb", str(uuid.uuid4())):
            with pytest.raises(InvalidRequestError):
                await a.rename_device(b_id, wrong)
        for taken in ("NODE1", "desk"):
            with pytest.raises(ConflictError, match="called"):
                await a.rename_device(c.device_info.id, taken)
        await a.rename_device(b_id, None)
        assert a.remote_device(b_id).name == "node1"


async def test_less_trust_ends_streams_and_shuts_protocols_out_until_it_is_given_back() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        a_id, b_id = a.device_info.id, b.device_info.id
        stream = await b.open_stream(a_id, "waiting")
        await stream.send(b"x")
        await until(lambda: plugin_of(a).waiting.running == 1)
        async with a.subscribe_events(["trust-changed"]) as events:
            await a.set_trust(b_id, Trust.VERIFIED)
            assert (await events.receive()).to_dict()["new"] == "verified"
        await until(lambda: plugin_of(a).waiting.running == 0)
        assert a.remote_device(b_id).connected
        assert await b.request(a_id, "echo", b"still") == b"still"
        refused = await b.open_stream(a_id, "waiting")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(5):
            await refused.receive()
        await a.set_trust(b_id, Trust.TRUSTED)
        stream = await b.open_stream(a_id, "waiting")
        await stream.send(b"x")
        await until(lambda: plugin_of(a).waiting.running == 1)
        with pytest.raises(InvalidRequestError, match="revoke it instead"):
            await a.set_trust(b_id, Trust.REVOKED)
        await a.revoke_device(b_id)
        with pytest.raises(ConflictError, match="only pairing it again"):
            await a.set_trust(b_id, Trust.TRUSTED)


async def test_a_verified_devices_sensitive_request_waits_for_a_person() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        a_id, b_id = a.device_info.id, b.device_info.id
        assert await b.request(a_id, "danger", b"?") == b"done"  # trusted: nobody is asked
        await a.set_trust(b_id, Trust.VERIFIED)
        answers: list[bytes | None] = []

        async def ask() -> None:
            try:
                answers.append(await b.request(a_id, "danger", b"?"))
            except (NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream):
                answers.append(None)

        for answer in (True, False):
            async with anyio.create_task_group() as tasks, a.subscribe_events(["approval-decided"]) as events:
                tasks.start_soon(ask)
                await until(a.approvals.pending)
                (approval,) = a.approvals.pending()
                assert (approval.device.device_id, approval.protocol) == (b_id, "danger")
                (a.approvals.approve if answer else a.approvals.deny)(str(approval.id)[:6])
                decided = await events.receive()
                assert decided.to_dict()["decision"] == ("approved" if answer else "denied")
        assert answers == [b"done", None]
        with pytest.raises(NotFoundError):
            a.approvals.approve(str(approval.id))
        kinds = [line["kind"] for line in await a.audit.read()]
        assert kinds.count("approval-requested") == kinds.count("approval-decided") == 2


async def test_no_answer_in_time_is_no_and_a_device_that_leaves_withdraws() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        a_id, b_id = a.device_info.id, b.device_info.id
        await a.set_trust(b_id, Trust.VERIFIED)
        a.approvals.timeout_s = 0.05
        with pytest.raises((NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream)):
            await b.request(a_id, "danger", b"?")
        a.approvals.timeout_s = 60
        for _ in range(10):
            stream = await b.open_stream(a_id, "danger")
            await stream.send(b"\x00")
        await until(lambda: len(a.approvals.pending()) == 8)  # bounded
        await a.revoke_device(b_id)
        assert a.approvals.pending() == ()
        decisions = [line["decision"] for line in await a.audit.read() if line["kind"] == "approval-decided"]
        assert decisions == ["timed-out"] + ["withdrawn"] * 8


async def test_a_plugin_can_have_a_person_asked() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        plugin_of(a).decision = Decision.ASK
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.request, a.device_info.id, "echo", b"?")
            await until(a.approvals.pending)
            (approval,) = a.approvals.pending()
            assert approval.asked_by == "trust_sample"
            a.approvals.approve(str(approval.id))
        plugin_of(a).decision = Decision.DENY
        with pytest.raises((NetworkingError, anyio.EndOfStream, anyio.BrokenResourceError)):
            await b.request(a.device_info.id, "echo", b"?")


async def test_a_handler_asks_for_itself_only_where_trust_is_not_enough() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin]) as (a, b):
        b_id = b.device_info.id
        ctx = plugin_of(a).ctx
        assert ctx is not None
        await ctx.approve(b_id, "send 3 files")  # trusted
        assert a.approvals.pending() == ()
        await a.set_trust(b_id, Trust.VERIFIED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ctx.approve, b_id, "send 3 files")
            await until(a.approvals.pending)
            (approval,) = a.approvals.pending()
            assert (approval.what, approval.protocol) == ("send 3 files", "trust-sample")
            a.approvals.approve(str(approval.id))


async def test_a_pairing_that_goes_on_is_seen_and_loses_nothing_when_it_fails() -> None:
    async with linked_nodes(2, plugins=[TrustPlugin], paired=False) as (a, b):
        ctx = plugin_of(a).ctx
        assert ctx is not None
        await until(lambda: a._registry.stranger(b.identity.peer_id))
        before = a._registry.stranger(b.identity.peer_id)
        async with a.subscribe_events(["peer-pairing-started", "peer-pairing-ended"]) as events:
            with ctx.pairing_with(b.identity.peer_id, uuid.uuid4()):
                assert isinstance(a._registry.stranger(b.identity.peer_id), Pairing)
                with ctx.pairing_with(b.identity.peer_id, uuid.uuid4()):
                    pass
                assert isinstance(a._registry.stranger(b.identity.peer_id), Pairing)
            assert [(await events.receive()).kind for _ in range(2)] == ["peer-pairing-started", "peer-pairing-ended"]
        assert a._registry.stranger(b.identity.peer_id) == before
