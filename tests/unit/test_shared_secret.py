"""Strangers' streams sealed under a secret of the plugin's own, through the context."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio
import pytest

from sdnet_core import (
    Access,
    Capability,
    NetworkingCore,
    PeerStream,
    PluginContext,
    ProtocolHandler,
    ProtocolSpec,
    hookimpl,
)
from sdnet_core.errors import PluginError
from sdnet_core.testing import linked_nodes

pytestmark = pytest.mark.anyio

SECRET = bytes(range(32))


class SecretHandler(ProtocolHandler):
    """Answers each record by the same one turned round; the secret is agreed upon beforehand."""

    protocol_name = "secret"

    def __init__(self) -> None:
        self.ctx: PluginContext | None = None
        self.secret = SECRET
        self.ends: list[type[BaseException]] = []

    async def handle_stream(self, stream: PeerStream) -> None:
        assert self.ctx is not None
        messages = stream.messages()
        await messages.receive_bytes()
        sealed = self.ctx.seal_stream(stream, self.secret, opener=False, received=messages.take_pending())
        try:
            while True:
                await sealed.send_record((await sealed.receive_record())[::-1])
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self.ends.append(type(error))
        await sealed.aclose()


class SecretPlugin:
    """Talks to strangers, unless told not to declare that."""

    name = "secret"
    capabilities = frozenset({Capability.STRANGERS})
    ctx: PluginContext

    def __init__(self) -> None:
        self.handler = SecretHandler()

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        self.ctx = self.handler.ctx = ctx
        return [
            ProtocolSpec(
                protocol_name="secret",
                version=1,
                handler=self.handler,
                access=Access.STRANGER if self.capabilities else Access.TRUSTED,
                capabilities=self.capabilities,
            )
        ]


class DumbPlugin(SecretPlugin):
    capabilities = frozenset()


def recorded(plugin: type[SecretPlugin], made: list[SecretPlugin]) -> type[SecretPlugin]:
    """The same plugin, whose instances, one a node, go into a list."""

    class Recorded(plugin):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    return Recorded


@asynccontextmanager
async def talk(a: NetworkingCore, b: NetworkingCore, plugin: SecretPlugin) -> AsyncIterator[PeerStream]:
    stream = await plugin.ctx.open_stranger_stream(b.identity.peer_id, b.addresses, "secret")
    with anyio.fail_after(30):
        async with stream:
            yield stream


async def test_records_cross_sealed_and_an_end_is_authenticated() -> None:
    plugins: list[SecretPlugin] = []
    async with linked_nodes(2, plugins=[recorded(SecretPlugin, plugins)], paired=False) as (a, b):
        async with talk(a, b, plugins[0]) as stream:
            # The first record follows at once: what the other side reads too much of is not lost.
            await stream.messages().send_bytes(b"hello")
            sealed = plugins[0].ctx.seal_stream(stream, SECRET, opener=True)
            assert sealed.sealed
            assert not stream.sealed
            assert sealed.peer_id == b.identity.peer_id
            for record in (b"abc", bytes(1 << 20), b"x"):
                await sealed.send_record(record)
                assert await sealed.receive_record() == record[::-1]
            await sealed.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await sealed.receive_record()
            assert plugins[1].handler.ends == [anyio.EndOfStream]
            with pytest.raises(ValueError, match="sealed already"):
                plugins[0].ctx.seal_stream(sealed, SECRET, opener=True)


async def test_with_another_secret_nothing_opens() -> None:
    plugins: list[SecretPlugin] = []
    async with linked_nodes(2, plugins=[recorded(SecretPlugin, plugins)], paired=False) as (a, b):
        plugins[1].handler.secret = bytes(32)
        async with talk(a, b, plugins[0]) as stream:
            await stream.messages().send_bytes(b"hello")
            sealed = plugins[0].ctx.seal_stream(stream, SECRET, opener=True)
            await sealed.send_record(b"abc")
            with pytest.raises(anyio.BrokenResourceError):
                await sealed.receive_record()
        assert plugins[1].handler.ends == [anyio.BrokenResourceError]


async def test_a_secret_of_another_length_is_refused() -> None:
    plugins: list[SecretPlugin] = []
    async with (
        linked_nodes(2, plugins=[recorded(SecretPlugin, plugins)], paired=False) as (a, b),
        talk(a, b, plugins[0]) as stream,
    ):
        with pytest.raises(ValueError, match="32 bytes"):
            plugins[0].ctx.seal_stream(stream, b"short", opener=True)


async def test_it_needs_the_capability_to_talk_to_strangers() -> None:
    plugins: list[SecretPlugin] = []
    async with linked_nodes(2, plugins=[recorded(DumbPlugin, plugins)]) as (a, b):
        stream = await a.open_stream(b.device_info.id, "secret")
        with pytest.raises(PluginError, match="talk-to-strangers"):
            plugins[0].ctx.seal_stream(stream, SECRET, opener=True)
        await stream.reset()
