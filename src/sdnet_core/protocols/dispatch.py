"""The one gate for every inbound stream.

In this order: known protocol, peer id to device, trust, stream limits, session epoch, ``sdnet_authorize``, and only
then the handler, under a cancel scope of its own that ends with the connection.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Protocol, TypeVar

import anyio

from ..clock import Clock
from ..devices.delivery import MESSAGES_SUFFIX
from ..devices.gate import PeerGate
from ..devices.manager import PersistentConnectionManager
from ..devices.refusals import Refusals
from ..devices.registry import Connected, DeviceRegistry, PairedState
from ..devices.trust import Access, RemoteDevice, Trust
from ..errors import NetworkingError, RefusedError
from ..log_context import log_context
from ..session import read_preamble
from ..swarm.abc import SwarmStream
from .handler import Capability, PeerStream
from .inbound import MessageReceiver, OnFailure, OnReceived
from .rate import OpenRates
from .registry import ProtocolRegistry, RegisteredProtocol

__all__ = ["Dispatcher", "remote_device"]

K = TypeVar("K")

logger = logging.getLogger(__name__)

PREAMBLE_TIMEOUT_S = 10.0
MAX_STREAMS_PER_PEER = 128
"""Inbound streams of all protocols together from one device."""
MAX_STRANGER_STREAMS = 64
"""Inbound streams of all strangers together: they share one small budget."""
MAX_STREAMS_PER_STRANGER = 4
MAX_MESSAGE_STREAMS = 8
"""Streams of one protocol's messages from one device; it needs one for each priority, and new ones replace them."""
MESSAGES_IDLE_TIMEOUT_S = 120.0
"""At least so long nothing may move on a stream of messages; a handler may work meanwhile."""


_STREAM_ENDED = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
_EXPECTED = (NetworkingError, *_STREAM_ENDED)
"""What a handler may raise because of the other side; anything else is its own fault."""


class Authorize(Protocol):
    """Asks the plugins; raises RefusedError if one denies, returns the name of one that wants a person asked."""

    def __call__(self, protocol_name: str, peer_id: str, device: RemoteDevice | None, /) -> str: ...


class Approve(Protocol):
    """Asks a person; raises RefusedError unless they allow it."""

    async def __call__(self, device: RemoteDevice, protocol: str, *, asked_by: str) -> None: ...


def remote_device(state: PairedState) -> RemoteDevice:
    """A paired device as plugins see it."""
    device = state.device
    return RemoteDevice(
        device_id=device.device_id,
        name=device.name,
        os=device.info.os,
        peer_id=device.peer_id,
        pairing_id=uuid.UUID(bytes=device.pairing_id),
        trust=device.trust,
        connected=isinstance(state, Connected),
    )


class _Refusal(RefusedError):
    """The gate does not let a stream in, and the audit log is told."""


class Dispatcher:
    """Takes the swarm's inbound streams to the handlers of their protocols.

    :param authorize: asks the plugins, after the core's own gate.
    :param approve: asks a person, where a plugin wants that or the device's trust does.
    :param gate: knows the revoked devices.
    :param refusals: told of what was refused.
    :param serving: runs a block for a plugin, and cancels it when the plugin is stopped.
    :param on_failure: told of a handler that raised something other than a `NetworkingError`.
    :param on_received: told of requests and messages that a handler has taken.
    """

    def __init__(
        self,
        *,
        protocols: ProtocolRegistry,
        devices: DeviceRegistry,
        connections: PersistentConnectionManager,
        authorize: Authorize,
        approve: Approve,
        gate: PeerGate,
        refusals: Refusals,
        clock: Clock,
        serving: Callable[[str], AbstractContextManager[anyio.CancelScope]],
        on_failure: OnFailure,
        on_received: OnReceived,
    ) -> None:
        self._protocols = protocols
        self._devices = devices
        self._connections = connections
        self._authorize = authorize
        self._approve = approve
        self._gate = gate
        self._refusals = refusals
        self._rates = OpenRates(clock)
        self._serving = serving
        self._on_failure = on_failure
        self._on_received = on_received
        self._messages = MessageReceiver(on_failure, on_received)
        self._open: Counter[str] = Counter()
        self._open_by_peer: Counter[tuple[str, str]] = Counter()
        self._of_peer: Counter[str] = Counter()
        self._of_strangers = 0

    async def handle(self, stream: SwarmStream) -> None:
        """Serve one inbound stream; never raises for what the other side does."""
        registered = self._protocols.get(stream.protocol.removesuffix(MESSAGES_SUFFIX))
        if registered is None:
            await stream.reset()
            return
        state = self._devices.by_peer(stream.peer_id)
        device_id = None if state is None else state.device.device_id
        with log_context(device_id=device_id, peer_id=stream.peer_id):
            await self._handle(stream, registered, device_id)

    async def _handle(self, stream: SwarmStream, registered: RegisteredProtocol, device_id: uuid.UUID | None) -> None:
        try:
            if registered.spec.access is Access.STRANGER:
                await self._handle_stranger(stream, registered)
            else:
                await self._handle_device(stream, registered)
        except _Refusal as error:
            logger.info("stream of %s from %s refused: %s", stream.protocol, stream.peer_id, error)
            self._refusals.refused(stream.peer_id, device_id, registered.spec.protocol_name, error.detail)
            await stream.reset()
        except (NetworkingError, TimeoutError) as error:
            logger.info("stream of %s from %s ended: %s", stream.protocol, stream.peer_id, error)
            await stream.reset()
        except _STREAM_ENDED:
            logger.info("stream of %s from %s broke off", stream.protocol, stream.peer_id)
            await stream.reset()

    async def _handle_stranger(self, stream: SwarmStream, registered: RegisteredProtocol) -> None:
        spec, peer_id = registered.spec, stream.peer_id
        revoked = self._gate.is_revoked(peer_id)
        if revoked and not (Capability.PAIR in spec.capabilities and self._gate.may_pair(peer_id)):
            raise _Refusal("The device is revoked.")
        async with self._slot(stream, registered, stranger=revoked or self._devices.by_peer(peer_id) is None):
            if asks := self._ask_plugins(spec.protocol_name, peer_id, None):
                raise _Refusal(f"Plugin {asks} wants a person to decide, and strangers may not ask one.")
            with self._gate.pairing(peer_id) if revoked else nullcontext():
                await self._serve(PeerStream(stream, None), registered)

    async def _handle_device(self, stream: SwarmStream, registered: RegisteredProtocol) -> None:
        spec = registered.spec
        state = self._devices.by_peer(stream.peer_id)
        access = None if state is None else state.device.trust.access
        if state is None or access is None or access < spec.access:
            raise _Refusal(f"The peer has not the trust that {spec.protocol_id} needs.")
        async with self._slot(stream, registered, stranger=False):
            preamble = await read_preamble(stream, timeout_s=PREAMBLE_TIMEOUT_S)
            with anyio.fail_after(PREAMBLE_TIMEOUT_S):
                live = await self._connections.wait_session(stream.peer_id, preamble.epoch_id)
            sealed = live.session.accept(stream, preamble)
            device = remote_device(self._devices.get(live.device_id))
            asks = self._ask_plugins(spec.protocol_name, stream.peer_id, device)
            with live.bound():
                if asks or (spec.sensitive and device.trust is Trust.VERIFIED):
                    await self._ask_person(device, spec.protocol_name, asks)
                peer_stream = PeerStream(sealed, device)
                peer_stream._on_request = partial(self._on_received, device.device_id, spec.protocol_name, 1)
                await self._serve(peer_stream, registered)

    def _ask_plugins(self, protocol_name: str, peer_id: str, device: RemoteDevice | None) -> str:
        try:
            return self._authorize(protocol_name, peer_id, device)
        except RefusedError as error:
            raise _Refusal(error.detail) from error

    async def _ask_person(self, device: RemoteDevice, protocol_name: str, asked_by: str) -> None:
        try:
            await self._approve(device, protocol_name, asked_by=asked_by)
        except RefusedError as error:
            raise _Refusal(error.detail) from error

    async def _serve(self, stream: PeerStream, registered: RegisteredProtocol) -> None:
        spec = registered.spec
        failure: Exception | None = None
        serve, deadline_s, idle_timeout_s = spec.handler.handle_stream, spec.deadline_s, spec.idle_timeout_s
        if stream.protocol.endswith(MESSAGES_SUFFIX):
            serve, deadline_s = partial(self._messages.serve, registered=registered), None
            idle_timeout_s = max(idle_timeout_s, MESSAGES_IDLE_TIMEOUT_S)
        with (
            self._serving(registered.plugin) as plugin,
            anyio.move_on_after(deadline_s) as life,
            stream.idle_limit(idle_timeout_s) as idle,
        ):
            try:
                await serve(stream)
            except Exception as error:
                failure = _single(error)
        if plugin.cancelled_caught:
            await stream.reset()
        elif life.cancelled_caught or idle.cancelled_caught:
            logger.info("stream of %s from %s ran out of time", stream.protocol, stream.peer_id)
            await stream.reset()
        elif failure is None:
            await stream.aclose()
        elif isinstance(failure, _EXPECTED):
            raise failure
        else:
            logger.error("handler of %s (plugin %s) raised", spec.protocol_id, registered.plugin, exc_info=failure)
            reason = f"handler of {spec.protocol_id} raised {failure!r}"
            self._on_failure(registered.plugin, reason, counts=stream.device is not None)
            await stream.reset()

    @asynccontextmanager
    async def _slot(
        self, stream: SwarmStream, registered: RegisteredProtocol, *, stranger: bool
    ) -> AsyncIterator[None]:
        spec, peer = registered.spec, stream.peer_id
        key = (peer, stream.protocol)
        of_protocol = MAX_MESSAGE_STREAMS if stream.protocol.endswith(MESSAGES_SUFFIX) else spec.max_streams_per_peer
        per_peer = MAX_STREAMS_PER_STRANGER if stranger else MAX_STREAMS_PER_PEER
        if (
            self._open[stream.protocol] >= spec.max_streams
            or self._open_by_peer[key] >= of_protocol
            or self._of_peer[peer] >= per_peer
            or (stranger and self._of_strangers >= MAX_STRANGER_STREAMS)
        ):
            raise _Refusal(f"Too many streams of {spec.protocol_id} are open.")
        if not self._rates.admit(peer, stream.protocol, per_s=spec.max_streams_per_s):
            raise _Refusal(f"Streams of {spec.protocol_id} are opened too often.")
        self._open[stream.protocol] += 1
        self._open_by_peer[key] += 1
        self._of_peer[peer] += 1
        self._of_strangers += stranger
        try:
            yield
        finally:
            self._open[stream.protocol] -= 1
            self._of_strangers -= stranger
            self._release(self._open_by_peer, key)
            self._release(self._of_peer, peer)

    @staticmethod
    def _release(counter: Counter[K], key: K) -> None:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def _single(error: Exception) -> Exception:
    """The one exception in a group of one, as a handler's own task group raises it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
