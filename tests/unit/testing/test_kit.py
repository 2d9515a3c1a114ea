"""The tools that plugins are tested with do what they say, and find what they should."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable

import anyio
import pytest

from sdnet_core import Access, Capability, PeerStream, PluginContext, ProtocolHandler, ProtocolSpec, Route, hookimpl
from sdnet_core.clock import SystemRandomness
from sdnet_core.errors import NotFoundError, PluginError
from sdnet_core.events import ConnectionEstablished, ConnectionLost
from sdnet_core.hookspecs import ApiRequest
from sdnet_core.testing import (
    Attack,
    VirtualClock,
    call_route,
    check_protocol,
    linked_nodes,
    record_events,
    run_in_virtual_time,
    run_inline,
)

pytestmark = pytest.mark.anyio


class EchoHandler(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: object, data: bytes) -> bytes:
        return data


class EchoPlugin:
    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler(), max_streams_per_peer=4)]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        async def echo(request: ApiRequest) -> object:
            return {"name": request.path["name"], "loud": request.query.get("loud"), "body": request.body}

        return [Route(method="POST", path="/echoes/{name}", endpoint=echo)]


def plugin_with(handler: type[ProtocolHandler], **spec: object) -> type:
    """A plugin that serves one protocol."""

    class OnePlugin:
        name = "one"

        @hookimpl
        def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
            return [ProtocolSpec(protocol_name="one", version=1, handler=handler(), **spec)]  # type: ignore[arg-type]

    return OnePlugin


class RaisingHandler(ProtocolHandler):
    protocol_name = "one"

    async def handle_stream(self, stream: PeerStream) -> None:
        await stream.receive()
        raise ValueError("cannot parse this")


class ClingingHandler(ProtocolHandler):
    protocol_name = "one"

    async def handle_stream(self, stream: PeerStream) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(20)


class TalkativeHandler(ProtocolHandler):
    """Answers strangers, which its protocol lets in."""

    protocol_name = "one"

    async def handle_stream(self, stream: PeerStream) -> None:
        await stream.send(b"hello")
        messages = stream.messages(max_bytes=100)
        while await messages.receive_bytes_or_end() is not None:
            await stream.send(b"hello")


async def test_a_well_made_protocol_shrugs_every_attack_off() -> None:
    report = await check_protocol(EchoPlugin, works=lambda node, device_id: node.request(device_id, "echo", b"hi"))
    assert {(a.attack, a.by) for a in report.attempts} == {
        (attack, by) for attack in Attack for by in ("paired device", "stranger")
    }
    strangers = {a.outcome for a in report.attempts if a.by == "stranger" and a.attack is Attack.NONSENSE}
    assert strangers == {"refused"}
    assert report.problems == ()


async def test_a_handler_that_raises_is_found() -> None:
    with pytest.raises(AssertionError, match="raised ValueError"):
        await check_protocol(plugin_with(RaisingHandler))


async def test_a_handler_that_answers_strangers_is_shown_as_answering() -> None:
    plugin = plugin_with(
        TalkativeHandler, access=Access.STRANGER, capabilities=frozenset({Capability.STRANGERS}), max_message_bytes=100
    )
    report = await check_protocol(plugin, "one")
    garbage = next(a for a in report.attempts if a.by == "stranger" and a.attack is Attack.EARLY_END)
    assert garbage.outcome == "ended after 5 bytes of answer"


async def test_a_protocol_that_is_not_there_cannot_be_checked() -> None:
    with pytest.raises(PluginError, match="has no protocol 'two'"):
        await check_protocol(EchoPlugin, "two")


async def test_a_conversation_that_fails_is_a_problem() -> None:
    with pytest.raises(AssertionError, match=r"does not serve any more: .*no plugin for other"):
        await check_protocol(EchoPlugin, works=lambda node, device_id: node.request(device_id, "other", b"hi"))


def test_a_handler_that_clings_to_a_stream_is_found() -> None:
    async def attack() -> None:
        with pytest.raises(AssertionError, match="did not end with the stream"):
            await check_protocol(plugin_with(ClingingHandler), clock=VirtualClock(), runner=run_inline)

    run_in_virtual_time(attack)


async def test_events_are_found_in_any_order_and_once() -> None:
    async with linked_nodes(2) as nodes, record_events(nodes[0]) as events:
        link = nodes.link(nodes[0], nodes[1])
        with link.down():
            lost = await events.wait_for(ConnectionLost)
            assert lost.device_name == "node1"
        again = await events.wait_for("connection-established", where=lambda event: event.at >= lost.at)
        assert isinstance(again, ConnectionEstablished)
        assert events.of(ConnectionLost) == (lost,)
        with pytest.raises(AssertionError, match=r"No ConnectionLost within 0 s. There were: .*connection-lost"):
            await events.wait_for(ConnectionLost, timeout_s=0)


async def test_a_link_is_slow_as_told() -> None:
    async with linked_nodes(2, plugins=[EchoPlugin]) as nodes:
        a, b = nodes
        link = nodes.link(a, b)
        link.delay_s = 0.03
        assert await a.ping(b.device_info.id) >= 0.06
        link.delay_s, link.bytes_per_s = 0.0, 100_000.0
        begun = anyio.current_time()
        await a.request(b.device_info.id, "echo", bytes(10_000))
        assert anyio.current_time() - begun >= 0.2


def test_a_day_of_broken_links_passes_in_virtual_time() -> None:
    async def day() -> int:
        patient = {"connections": {"reconnect_max_s": 60.0}}
        async with linked_nodes(
            2, plugins=[EchoPlugin], settings=patient, clock=VirtualClock(), runner=run_inline
        ) as nodes:
            a, b = nodes
            async with record_events(a) as events:
                async with nodes.link(a, b).flapping(SystemRandomness(), up_s=(1800, 7200), down_s=(1, 900)):
                    await anyio.sleep(24 * 3600)
                await a.connect(b.device_info.id, timeout_s=120)
                assert await a.request(b.device_info.id, "echo", b"still here") == b"still here"
                return len(events.of(ConnectionLost))

    begun = time.monotonic()
    assert run_in_virtual_time(day) > 5
    assert time.monotonic() - begun < 3600  # and not the day that it was inside


async def test_a_route_is_called_as_over_the_local_api() -> None:
    async with linked_nodes(1, plugins=[EchoPlugin]) as (node,):
        answer = await call_route(node, "post", "/v1/echo/echoes/a%20b?loud=yes", {"n": 1})
        assert answer == {"name": "a b", "loud": "yes", "body": {"n": 1}}
        with pytest.raises(NotFoundError):
            await call_route(node, "GET", "/v1/echo/echoes/a")


def test_the_fixtures_cost_nothing_until_they_are_used() -> None:
    program = (
        "import sys, pytest, sdnet_core.testing.pytest_plugin\n"
        "heavy = {'libp2p', 'trio', 'anyio', 'cryptography', 'msgspec', 'pluggy', 'sdnet_core.core'}\n"
        "heavy -= {'pluggy'}  # pytest's own\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_kit_does_not_need_pytest() -> None:
    program = "import sys, sdnet_core.testing as t; [getattr(t, n) for n in t.__all__]; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
