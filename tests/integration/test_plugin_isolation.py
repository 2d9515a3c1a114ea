"""Plugins that raise, hang, leak, flood, or will not end: each is stopped with a reason, and the node serves on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest

from sdnet_core import NetworkingCore, ProtocolHandler, ProtocolSpec, ServiceSpec, hookimpl
from sdnet_core.errors import NetworkingError, NotFoundError, PluginError
from sdnet_core.events import NetworkEvent, PluginFailed, PluginStateChanged
from sdnet_core.plugins import PluginRecord, PluginState
from sdnet_core.testing import linked_nodes, record_events

pytestmark = pytest.mark.anyio


class EchoHandler(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: Any, data: bytes) -> bytes:
        return data


class EchoPlugin:
    @hookimpl
    def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler())]


class RaisingHandler(ProtocolHandler):
    protocol_name = "raising"

    async def handle_request(self, device: Any, data: bytes) -> bytes:
        raise RuntimeError("out of order")


class RaisingPlugin:
    @hookimpl
    def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="raising", version=1, handler=RaisingHandler())]


class WaitingHandler(ProtocolHandler):
    protocol_name = "waiting"

    def __init__(self) -> None:
        self.entered = anyio.Event()
        self.left = anyio.Event()

    async def handle_stream(self, stream: Any) -> None:
        self.entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.left.set()


class WaitingPlugin:
    """A service and a handler that run until they are ended."""

    made: ClassVar[list[WaitingPlugin]] = []

    def __init__(self) -> None:
        self.handler = WaitingHandler()
        self.service_ended = anyio.Event()
        self.made.append(self)

    @hookimpl
    def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="waiting", version=1, handler=self.handler)]

    @hookimpl
    def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
        return [ServiceSpec(name="waiting", run=self.run, api=self)]

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            self.service_ended.set()


@asynccontextmanager
async def two(*plugins: Any, **settings: Any) -> AsyncIterator[tuple[NetworkingCore, NetworkingCore]]:
    async with linked_nodes(2, plugins=[EchoPlugin, *plugins], settings={"plugins": settings}) as (a, b):
        yield a, b


def record(node: NetworkingCore, name: str) -> PluginRecord:
    return next(r for r in node.plugin_records() if r.name == name)


async def reaches(node: NetworkingCore, other: NetworkingCore, protocol: str) -> bool:
    try:
        await node.request(other.device_info.id, protocol, b"x", timeout_s=5)
    except NetworkingError:
        return False
    return True


async def test_a_handler_that_raises_again_and_again_is_quarantined_and_can_be_brought_back() -> None:
    async with two(RaisingPlugin, max_failures=3) as (a, b), record_events(b) as events:
        for _ in range(4):
            assert not await reaches(a, b, "raising")
        await events.wait_for(PluginStateChanged)
        found = record(b, "raising")
        assert found.state is PluginState.QUARANTINED
        assert "failed more than 3 times in 60 s" in found.reason
        assert "out of order" in found.reason
        assert "sdnet plugins enable raising" in found.reason
        assert len(events.of(PluginFailed)) == 5  # four failures, and the quarantine
        assert await reaches(a, b, "echo")
        with pytest.raises(NetworkingError, match="has no plugin for raising"):
            await a.request(b.device_info.id, "raising", b"x")
        assert record(a, "raising").state is PluginState.LOADED
        assert (await b.enable_plugin("raising")).state is PluginState.LOADED
        with pytest.raises(NetworkingError) as caught:
            await a.request(b.device_info.id, "raising", b"x")
        assert "has no plugin" not in str(caught.value)  # it is served again, and raises again
        assert record(b, "raising").state is PluginState.LOADED


async def test_what_runs_for_a_plugin_ends_when_it_is_disabled_and_its_data_paths_come_back() -> None:
    WaitingPlugin.made.clear()
    async with two(WaitingPlugin) as (a, b):
        first = next(p for p in WaitingPlugin.made if b.get_service(WaitingPlugin) is p)
        stream = await a.open_stream(b.device_info.id, "waiting")
        await stream.send(b"x")
        with anyio.fail_after(30):
            await first.handler.entered.wait()
        found = await b.disable_plugin("waiting")
        assert (found.state, found.reason) == (PluginState.DISABLED, "disabled while the node runs")
        assert first.service_ended.is_set()
        assert first.handler.left.is_set()
        with pytest.raises((NetworkingError, anyio.BrokenResourceError, anyio.EndOfStream)):
            await stream.receive()
        with pytest.raises(PluginError):
            b.get_service(WaitingPlugin)
        with pytest.raises(NetworkingError, match="has no plugin for waiting"):
            await a.open_stream(b.device_info.id, "waiting")
        await b.enable_plugin("waiting")
        second = b.get_service(WaitingPlugin)
        assert second is not first
        async with await a.open_stream(b.device_info.id, "waiting") as again:
            await again.send(b"x")
            with anyio.fail_after(30):
                await second.handler.entered.wait()


async def test_a_service_that_raises_takes_only_its_own_plugin_down() -> None:
    go = anyio.Event()

    class Failing:
        name = "failing"

        @hookimpl
        def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
            return [ServiceSpec(name="main", run=self.run)]

        async def run(self, *, task_status: Any) -> None:
            task_status.started()
            await go.wait()
            raise RuntimeError("gave up")

    async with two(Failing) as (a, b), record_events(b) as events:
        go.set()
        await events.wait_for(PluginStateChanged)
        assert record(b, "failing").state is PluginState.FAILED
        assert "service main raised RuntimeError('gave up')" in record(b, "failing").reason
        assert "gave up" in record(b, "failing").traceback
        assert await reaches(a, b, "echo")


async def test_a_plugin_that_leaks_tasks_is_quarantined_and_its_tasks_are_gone() -> None:
    class Leaking:
        name = "leaking"

        @hookimpl
        def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
            return [ServiceSpec(name="main", run=self.run)]

        async def run(self, *, task_status: Any) -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(anyio.sleep_forever)
                task_status.started()

    async with two(Leaking, max_tasks=20) as (a, b):
        before = len(anyio.get_running_tasks())
        b._plugins.check_tasks()
        found = record(b, "leaking")
        assert found.state is PluginState.QUARANTINED
        assert "it leaks them" in found.reason
        with anyio.fail_after(30):
            while len(anyio.get_running_tasks()) > before - 50:  # noqa: ASYNC110 - nothing tells when tasks end
                await anyio.sleep(0.01)
        assert record(b, "echo").state is PluginState.LOADED
        assert await reaches(a, b, "echo")


async def test_a_plugin_that_floods_the_node_with_events_is_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdnet_core.plugin_runner.EVENT_FLOOD", 100)

    class Flooding:
        name = "flooding"

        @hookimpl
        def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
            self.ctx = ctx
            return [ServiceSpec(name="main", api=self)]

    async with two(Flooding) as (a, b):
        flooding = b.get_service(Flooding)
        async with b.subscribe_events([PluginFailed.kind]) as events:
            for _ in range(1000):
                flooding.ctx.publish(PluginFailed(plugin="x", reason="y"))
            seen = 0
            while (await events.receive()).plugin == "x":
                seen += 1
        assert seen == 100
        assert record(b, "flooding").state is PluginState.QUARANTINED
        assert await reaches(a, b, "echo")


async def test_a_task_that_shields_itself_is_told_of_and_keeps_the_plugin_from_coming_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdnet_core.node_plugins.STOP_TIMEOUT_S", 0.1)
    release = anyio.Event()

    class Stubborn:
        name = "stubborn"

        @hookimpl
        def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
            return [ServiceSpec(name="main", run=self.run)]

        async def run(self, *, task_status: Any) -> None:
            task_status.started()
            with anyio.CancelScope(shield=True):
                await release.wait()

    async with two(Stubborn) as (a, b):
        try:
            found = await b.disable_plugin("stubborn")
            assert found.state is PluginState.DISABLED
            assert "its tasks do not end" in found.reason
            with pytest.raises(PluginError, match="tasks that do not end"):
                await b.enable_plugin("stubborn")
            assert await reaches(a, b, "echo")
        finally:
            release.set()
        assert (await b.enable_plugin("stubborn")).state is PluginState.LOADED


async def test_one_that_hears_events_slowly_does_not_keep_the_others_from_hearing() -> None:
    heard = anyio.Event()

    class DeafHandler(EchoHandler):
        protocol_name = "deaf"

        async def handle_event(self, event: NetworkEvent) -> None:
            await anyio.sleep_forever()

    class Deaf:
        name = "a_deaf"

        @hookimpl
        def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
            return [ProtocolSpec(protocol_name="deaf", version=1, handler=DeafHandler())]

    class Listening:
        name = "b_listening"

        @hookimpl
        def sdnet_event(self, event: NetworkEvent) -> None:
            if event.kind == "device-revoked":
                heard.set()

    async with two(Deaf, Listening) as (a, b):
        await a.revoke_device(b.device_info.id)
        with anyio.fail_after(5):  # handle_event has 10 s for each event
            await heard.wait()


class Guard:
    """Has a say, and fails."""

    name = "guard"
    decision: str = "raise"

    @hookimpl
    def sdnet_authorize(self, request: Any) -> Any:
        if self.decision == "raise":
            raise RuntimeError("no idea")
        return self.decision


class Allowing:
    @hookimpl
    def sdnet_authorize(self, request: Any) -> Any:
        return "allow"


class Denying:
    @hookimpl
    def sdnet_authorize(self, request: Any) -> Any:
        return "deny"


@pytest.mark.parametrize("order", [(Allowing, Denying), (Denying, Allowing)], ids=["allow-deny", "deny-allow"])
async def test_one_that_denies_wins_in_either_order(order: tuple[Any, Any]) -> None:
    async with two(*order) as (a, b):
        assert not await reaches(a, b, "echo")
        assert {r.name: r.state for r in b.plugin_records()} == dict.fromkeys(
            ("allowing", "denying", "echo"), PluginState.LOADED
        )


async def test_what_a_guard_was_to_forbid_stays_forbidden_in_quarantine_until_a_person_switches_it_off() -> None:
    async with two(Guard, max_failures=2) as (a, b):
        for _ in range(4):
            assert not await reaches(a, b, "echo")
        found = record(b, "guard")
        assert found.state is PluginState.QUARANTINED
        assert "sdnet_authorize raised RuntimeError('no idea')" in found.reason
        await b.disable_plugin("guard")
        assert await reaches(a, b, "echo")


async def test_streams_that_are_opened_too_often_are_refused() -> None:
    class SeldomHandler(EchoHandler):
        protocol_name = "seldom"

    class Seldom:
        @hookimpl
        def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
            return [ProtocolSpec(protocol_name="seldom", version=1, handler=SeldomHandler(), max_streams_per_s=0.5)]

    async with two(Seldom) as (a, b):
        assert await reaches(a, b, "seldom")
        assert not await reaches(a, b, "seldom")
        assert await reaches(a, b, "echo")
        with anyio.fail_after(30):
            while not await reaches(a, b, "seldom"):  # noqa: ASYNC110 - time alone brings it back
                await anyio.sleep(0.2)
        assert record(b, "seldom").state is PluginState.LOADED


async def test_unknown_plugins_are_said() -> None:
    async with two() as (_, b):
        for attempt in (b.enable_plugin, b.disable_plugin):
            with pytest.raises(NotFoundError, match="No plugin 'nothing'"):
                await attempt("nothing")
        assert (await b.enable_plugin("echo")).state is PluginState.LOADED


async def test_one_that_cannot_start_says_why_and_comes_when_it_can() -> None:
    class Sometimes:
        name = "sometimes"
        works = False

        @hookimpl
        def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
            if not Sometimes.works:
                raise RuntimeError("not yet")
            return [ProtocolSpec(protocol_name="echo2", version=1, handler=EchoHandler())]

    async with two(Sometimes) as (a, b):
        assert record(b, "sometimes").state is PluginState.FAILED
        with pytest.raises(PluginError, match="not yet"):
            await b.enable_plugin("sometimes")
        Sometimes.works = True
        await b.enable_plugin("sometimes")
        assert await reaches(a, b, "echo2")
