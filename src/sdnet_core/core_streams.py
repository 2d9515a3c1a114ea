"""What a node offers to talk to a device at once: a session, a stream, a request and its answer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import anyio

from .devices.manager import PersistentConnectionManager
from .devices.registry import DeviceRegistry
from .errors import ConnectionFailedError, NetworkTimeoutError, ProtocolError
from .protocols.dispatch import remote_device
from .protocols.handler import PeerStream
from .protocols.registry import ProtocolRegistry
from .swarm.abc import Swarm

__all__ = ["StreamMethods"]


class StreamMethods:
    """The methods of `NetworkingCore` that need a connection now."""

    _connections: PersistentConnectionManager
    _protocols: ProtocolRegistry
    _registry: DeviceRegistry
    _swarm: Swarm

    async def connect(self, device_id: uuid.UUID, *, timeout_s: float = 15.0) -> None:
        """Have a live session to a device.

        :raises ConnectionFailedError: none came about in time.
        """
        await self._connections.connected(device_id, timeout_s=timeout_s)

    async def ping(self, device_id: uuid.UUID, *, timeout_s: float = 10.0) -> float:
        """Measure the round-trip time to a device over its session's control stream.

        :returns: seconds.
        :raises ConnectionFailedError: it is not connected.
        :raises NetworkTimeoutError: no answer came in time.
        """
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        round_trip_s = await live.control.ping(timeout_s=timeout_s)
        live.measured(round_trip_s)
        return round_trip_s

    async def open_stream(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        *,
        versions: Sequence[int] = (1,),
        timeout_s: float = 10.0,
        suffix: str = "",
    ) -> PeerStream:
        """Open a sealed stream to a paired device. Errors: see `PluginContext.open_stream`.

        :param suffix: behind the protocol's id.
        """
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        state = self._registry.get(device_id)
        try:
            stream = await self._swarm.open_stream(
                live.peer_id, [f"/sdnet/{protocol_name}/{version}{suffix}" for version in versions], timeout_s=timeout_s
            )
        except ProtocolError:
            raise ProtocolError(f"{state.device.name} has no plugin for {protocol_name}.") from None
        if live.ended.is_set():
            await stream.reset()
            raise ConnectionFailedError(f"The connection to {state.device.name} has just ended.")
        return PeerStream(live.session.open_stream(stream), remote_device(state))

    async def open_stranger_stream(
        self, peer_id: str, addresses: Sequence[str], protocol_name: str, *, version: int = 1, timeout_s: float = 10.0
    ) -> PeerStream:
        """Open a stream to any peer. Errors: see `PluginContext.open_stranger_stream`."""
        await self._swarm.dial(peer_id, addresses, timeout_s=timeout_s)
        stream = await self._swarm.open_stream(peer_id, [f"/sdnet/{protocol_name}/{version}"], timeout_s=timeout_s)
        return PeerStream(stream, None)

    async def request(self, device_id: uuid.UUID, protocol_name: str, data: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Send one request and wait for its answer. Errors: see `PluginContext.request`."""
        registered = self._protocols.by_name(protocol_name)
        max_bytes = registered.spec.max_message_bytes if registered is not None else 1 << 20
        deadline = anyio.current_time() + timeout_s
        stream = await self.open_stream(device_id, protocol_name, timeout_s=timeout_s)
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                messages = stream.messages(max_bytes=max_bytes)
                await messages.send_bytes(data)
                return await messages.receive_bytes()
        except TimeoutError:
            name = self._registry.get(device_id).device.name
            raise NetworkTimeoutError(f"{name} did not answer within {timeout_s:g} s.") from None
        finally:
            with anyio.move_on_after(1, shield=True):
                await stream.aclose()
