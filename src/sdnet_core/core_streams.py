"""What a node offers to talk to a device at once: a session, a stream, a request and its answer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import anyio

from .devices.manager import PersistentConnectionManager
from .devices.registry import DeviceRegistry
from .errors import ConnectionFailedError, NetworkingError, NetworkTimeoutError, ProtocolError
from .protocols.dispatch import remote_device
from .protocols.handler import PeerStream
from .protocols.registry import ProtocolRegistry
from .swarm.abc import Swarm

__all__ = ["StreamMethods"]


PROBE_TIMEOUT_S = 2.0
MAX_PROBED_VERSION = 8


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
        versions: Sequence[int] | None = None,
        timeout_s: float = 10.0,
        suffix: str = "",
    ) -> PeerStream:
        """Open a sealed stream to a paired device. Errors: see `PluginContext.open_stream`.

        :param suffix: behind the protocol's id.
        """
        live = await self._connections.connected(device_id, timeout_s=timeout_s)
        state = self._registry.get(device_id)
        ours = self._protocols.versions(protocol_name) or (1,) if versions is None else tuple(versions)
        try:
            stream = await self._swarm.open_stream(
                live.peer_id, [f"/sdnet/{protocol_name}/{version}{suffix}" for version in ours], timeout_s=timeout_s
            )
        except ProtocolError:
            theirs = await self._versions_of(live.peer_id, protocol_name, ours)
            raise ProtocolError(_no_common_version(state.device.name, protocol_name, ours, theirs)) from None
        if live.ended.is_set():
            await stream.reset()
            raise ConnectionFailedError(f"The connection to {state.device.name} has just ended.")
        return PeerStream(live.session.open_stream(stream), remote_device(state))

    async def _versions_of(self, peer_id: str, protocol_name: str, ours: Sequence[int]) -> list[int]:
        """The versions of a protocol that a peer serves and we do not; what can be found out in a short time."""
        found: list[int] = []
        with anyio.move_on_after(PROBE_TIMEOUT_S):
            for _ in range(MAX_PROBED_VERSION):
                wanted = [v for v in range(MAX_PROBED_VERSION, 0, -1) if v not in ours and v not in found]
                try:
                    protocols = [f"/sdnet/{protocol_name}/{version}" for version in wanted]
                    stream = await self._swarm.open_stream(peer_id, protocols, timeout_s=PROBE_TIMEOUT_S)
                except NetworkingError:
                    break
                await stream.reset()
                found.append(int(stream.protocol.rpartition("/")[2]))
        return sorted(found)

    async def open_stranger_stream(
        self, peer_id: str, addresses: Sequence[str], protocol_name: str, *, version: int = 1, timeout_s: float = 10.0
    ) -> PeerStream:
        """Open a stream to any peer. Errors: see `PluginContext.open_stranger_stream`."""
        await self._swarm.dial(peer_id, addresses, timeout_s=timeout_s)
        stream = await self._swarm.open_stream(peer_id, [f"/sdnet/{protocol_name}/{version}"], timeout_s=timeout_s)
        return PeerStream(stream, None)

    async def request(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        version: int | None = None,
        timeout_s: float = 30.0,
    ) -> bytes:
        """Send one request and wait for its answer. Errors: see `PluginContext.request`."""
        registered = self._protocols.by_name(protocol_name)
        max_bytes = registered.spec.max_message_bytes if registered is not None else 1 << 20
        deadline = anyio.current_time() + timeout_s
        versions = (version,) if version is not None else self._protocols.versions(protocol_name)[:1] or (1,)
        stream = await self.open_stream(device_id, protocol_name, versions=versions, timeout_s=timeout_s)
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


def _no_common_version(name: str, protocol_name: str, ours: Sequence[int], theirs: Sequence[int]) -> str:
    if not theirs:
        return f"{name} has no plugin for {protocol_name}."
    spoken, here = (", ".join(map(str, versions)) for versions in (theirs, sorted(ours)))
    older = name if max(theirs) < min(ours) else "this device"
    return f"{name} speaks version {spoken} of {protocol_name}, this device {here}: update the plugin on {older}."
