"""What a plugin can do: the one object that every hook gets."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .clock import Clock, Randomness, Runner
from .devices.delivery import InboundMessage, Priority
from .devices.trust import RemoteDevice, Trust
from .errors import PluginError
from .events import NetworkEvent, Subscription
from .identity import DeviceInfo
from .metrics import PluginMetrics
from .protocols.handler import Capability, PeerStream

if TYPE_CHECKING:
    from .core import NetworkingCore
    from .core_messages import WaitingMessage
    from .discovery.candidates import CandidateStream
    from .discovery.search import Way
    from .storage import SecureStorage

__all__ = ["PluginContext"]

T = TypeVar("T")


class PluginContext:
    """One plugin's view of the node it runs in.

    :ivar name: the plugin's entry-point name.
    :ivar config: its validated ``[plugins.<name>]`` table, None if it has no ``sdnet_config``.
    """

    def __init__(self, core: NetworkingCore, name: str, config: Any = None) -> None:
        self._core = core
        self.name = name
        self.config = config
        self._capabilities: frozenset[Capability] = frozenset()

    def _grant(self, capabilities: Iterable[Capability]) -> None:
        self._capabilities |= frozenset(capabilities)

    def _require(self, capability: Capability) -> None:
        if capability not in self._capabilities:
            raise PluginError(f"Plugin {self.name} did not declare the capability {capability.value!r}.")

    @property
    def clock(self) -> Clock:
        """The node's clocks."""
        return self._core.clock

    @property
    def randomness(self) -> Randomness:
        """The node's random source."""
        return self._core.randomness

    @property
    def run_blocking(self) -> Runner:
        """Run a blocking function off the event loop: ``await ctx.run_blocking(function, *args)``."""
        return self._core.runner

    @property
    def local_device(self) -> DeviceInfo:
        """What this device tells others about itself (with ``peer_id`` and ``fingerprint``)."""
        return self._core.device_info

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses this node listens on."""
        return self._core.addresses

    @property
    def metrics(self) -> PluginMetrics:
        """The plugin's own numbers, exported with the node's at ``GET /v1/metrics``."""
        return self._core.metrics.of_plugin(self.name)

    @property
    def data_dir(self) -> Path:
        """A private directory (0700) for files too large for `storage`. What lies there is not sealed."""
        return self._core.plugin_directory(self.name)

    @property
    def downloads_dir(self) -> Path:
        """Where files from other devices go unless a person chooses another place."""
        return self._core.config.downloads_dir

    @property
    def storage(self) -> SecureStorage:
        """The plugin's own sealed store."""
        return self._core.plugin_storage(self.name)

    def devices(self) -> tuple[RemoteDevice, ...]:
        """All paired devices, by name."""
        return self._core.remote_devices()

    def get_device(self, device_id: uuid.UUID) -> RemoteDevice:
        """One paired device.

        :raises DeviceNotFoundError: it is not paired.
        """
        return self._core.remote_device(device_id)

    def find_device(self, reference: str) -> RemoteDevice:
        """A paired device by name, by id, or by a unique prefix of either.

        :raises DeviceNotFoundError: none fits, or several do (they are listed).
        """
        return self._core.find_device(reference)

    async def open_stream(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        *,
        versions: Sequence[int] | None = None,
        timeout_s: float = 10.0,
    ) -> PeerStream:
        """Open a sealed stream to a paired device; connects first if there is no connection.

        The first version that the other side speaks is taken: ``stream.protocol`` says which.

        :param versions: major versions we speak, preferred first; by default those that we serve, newest first.
        :raises DeviceNotFoundError: it is not paired.
        :raises ConnectionFailedError: it cannot be reached now.
        :raises ProtocolError: it does not speak the protocol, or no version of it that we do; names both sides'.
        :raises NetworkTimeoutError: it did not answer within ``timeout_s``.
        """
        return await self._core.open_stream(device_id, protocol_name, versions=versions, timeout_s=timeout_s)

    async def open_stranger_stream(
        self, peer_id: str, addresses: Sequence[str], protocol_name: str, *, version: int = 1, timeout_s: float = 10.0
    ) -> PeerStream:
        """Open a stream to a peer that need not be paired, encrypted by Noise only.

        Needs `Capability.STRANGERS`.

        :raises ConnectionFailedError: it cannot be reached at any of the addresses.
        :raises ProtocolError: it does not speak the protocol.
        :raises NetworkTimeoutError: it did not answer within ``timeout_s``.
        """
        self._require(Capability.STRANGERS)
        if Capability.PAIR in self._capabilities:
            self._core.gate.expect(peer_id)
        return await self._core.open_stranger_stream(
            peer_id, addresses, protocol_name, version=version, timeout_s=timeout_s
        )

    def seal_stream(self, stream: PeerStream, secret: bytes, *, opener: bool, received: bytes = b"") -> PeerStream:
        """Seal what follows on a stranger's stream under a secret that both ends have agreed upon.

        Each record is then encrypted and authenticated under keys for this stream and direction alone, its end too, as
        on a paired device's stream; ``send_record`` and ``receive_record`` work. Both ends call this at the same point
        of their conversation, and use only the new stream from then on; closing that closes both. Needs
        `Capability.STRANGERS`.

        :param secret: 32 bytes from a key exchange of the plugin's protocol, never used before.
        :param opener: whether this end has opened the stream.
        :param received: what was read from the stream beyond that point: ``MessageStream.take_pending()``.
        :raises ValueError: the secret has another length, or the stream is sealed already.
        """
        self._require(Capability.STRANGERS)
        if stream.sealed:
            raise ValueError("the stream is sealed already")
        # Imported late: the command line imports this module, and has no use for cryptography.
        from .session.shared import seal_with_secret

        sealed = seal_with_secret(stream, secret, self._core.clock, opener=opener)
        sealed.feed(received)
        return PeerStream(sealed, None)

    async def request(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        version: int | None = None,
        timeout_s: float = 30.0,
    ) -> bytes:
        """Send one request and wait for its answer.

        :param version: major version that ``data`` is written in; by default the newest that we serve.
        :raises NetworkingError: as `open_stream`, and NetworkTimeoutError when no answer came in time.
        """
        return await self._core.request(device_id, protocol_name, data, version=version, timeout_s=timeout_s)

    async def send_message(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
        message_id: uuid.UUID | None = None,
    ) -> uuid.UUID:
        """Put one message into the outbox, durably before this returns. It goes out when the device is connected.

        Messages of one protocol and priority arrive in the order of these calls. Delivery is at least once, with a
        stable id, to any handler; exactly once to a handler that does its work inside `transaction`, where work and
        de-duplication commit together. What became of it goes to our handler's ``handle_delivery``, and an answer from
        there to ``handle_response``.

        :param data: at most the protocol's ``max_message_bytes``.
        :param ttl_s: given up if it is not delivered within so many seconds; None for never.
        :param message_id: names it; a message that waits under this id already is not put in again.
        :returns: the id by which the other side's handler knows it.
        :raises DeviceNotFoundError: the device is not paired.
        :raises RefusedError: too many messages wait for it already, or for all devices together.
        :raises StorageError: it could not be stored, for example because the disk is full; it will not be sent.
        """
        return await self._core.send_message(
            device_id, protocol_name, data, priority=priority, ttl_s=ttl_s, message_id=message_id
        )

    async def waiting_messages(
        self, *, device_id: uuid.UUID | None = None, protocols: Collection[str] | None = None
    ) -> list[WaitingMessage]:
        """What waits in the outbox, in the order in which it goes out, device by device.

        :param protocols: only messages of these.
        """
        return await self._core.messages.waiting(device_id=device_id, protocols=protocols)

    def why_waiting(self, message_id: uuid.UUID) -> str:
        """What is wrong with the delivery of a message to a device that is connected; empty for nothing."""
        return self._core.messages.trouble(message_id)

    async def cancel_message(self, message_id: uuid.UUID) -> bool:
        """Take a message out of the outbox, durably before this returns.

        :returns: whether it is certain that it was never sent.
        :raises NotFoundError: no message with that id waits.
        :raises StorageError: the disk did not take it: the message may be sent after a restart.
        """
        return await self._core.messages.outbox.cancel(message_id)

    async def transaction(
        self, work: Callable[[sqlite3.Connection, Sequence[InboundMessage]], T], *messages: InboundMessage
    ) -> T:
        """Run ``work(connection, new)`` in a transaction of the plugin's own SQLite database, in a worker thread.

        Work and de-duplication commit together: ``new`` are those of ``messages`` for which no work was done before,
        and that it is done now is remembered in the same transaction. So each message is worked on exactly once, over
        lost connections and crashes of either side, provided all its work happens in here::

            async def handle_message(self, device, message):
                def work(db, new):
                    for message in new:
                        db.execute("INSERT INTO item VALUES (?)", (message.data,))

                await self._ctx.transaction(work, message)

        It is on the disk when this returns; transactions that wait at the same time share one commit. The database is
        ``data_dir / "plugin.sqlite3"``; tables whose names begin with ``sdnet_`` are the core's. What is put there is
        not sealed: seal what is secret with ``storage.encrypt_data``.

        :returns: what ``work`` returned. What it raises comes out, and nothing of it stays.
        :raises StorageError: the disk is full, or the database cannot be read or written; nothing was done.
        """
        return await self._core.messages.database(self.name).transaction(work, *messages)

    async def connect(self, device_id: uuid.UUID, *, timeout_s: float = 15.0) -> None:
        """Have a proven session to a paired device, waiting for its supervisor to make one.

        :raises ConnectionFailedError: none came about within ``timeout_s``.
        """
        await self._core.connect(device_id, timeout_s=timeout_s)

    def publish(self, event: NetworkEvent) -> None:
        """Tell everybody who listens."""
        if self._core.admits_event(self.name):
            self._core.events.publish(event)

    def subscribe(self, kinds: Iterable[str] | None = None, *, buffer: int = 256) -> Subscription:
        """Listen to events: ``async with ctx.subscribe() as events: async for event in events``."""
        return self._core.events.subscribe(kinds, buffer=buffer)

    def get_service(self, type_: type[T]) -> T:
        """Another plugin's Python interface, by its class. Call it when needed, not in a hook.

        :raises PluginError: no loaded plugin offers it.
        """
        return self._core.get_service(type_)

    def sign(self, message: bytes) -> bytes:
        """Sign with the device key for the purpose ``<plugin name>``; check with `sdnet_core.identity.verify`."""
        return self._core.identity.sign(self.name, message)

    def advertise(self, tag: bytes, *, record: bytes | None = None) -> AbstractContextManager[None]:
        """Announce a tag (1 to 64 bytes, which everybody near can read) in discovery for the length of the block.

        :param record: a secret of 32 bytes. Whoever calls `candidates` with the same one finds this device, with the
            tag, from other networks too, if both have a meeting point in common; nobody else learns anything of it.

        Needs `Capability.ADVERTISE`. With `Capability.PAIR` it also says that this device waits to be paired: a device
        that was revoked is let in meanwhile, for protocols with that capability only.
        """
        self._require(Capability.ADVERTISE)
        return self._core.advertise(tag, pairing=Capability.PAIR in self._capabilities, record=record)

    def candidates(
        self, *, record: bytes | None = None, refresh: bool = False
    ) -> AbstractAsyncContextManager[CandidateStream]:
        """Peers that discovery sees, those known already first: ``async with`` it and iterate.

        How far the search has come is told by `search_ways`, and by ``search-progress`` events. Needs
        `Capability.ADVERTISE`.

        :param record: look on other networks too, for the device that advertises with this secret.
        :param refresh: ask the network anew, because somebody waits.
        """
        self._require(Capability.ADVERTISE)
        if refresh:
            self._core.discovery.refresh()
        return self._core.discovery.subscribe(record=record)

    def search_ways(self) -> tuple[Way, ...]:
        """The ways in which peers are looked for (``mdns``: this network, ``dht``: meeting points), and where each
        stands."""
        return self._core.discovery.ways()

    @property
    def meeting_points(self) -> tuple[str, ...]:
        """The public nodes through which this device is found from other networks: multiaddrs that end in ``/p2p/``
        and a peer id, best first. Whoever wants to find it needs one of them in common."""
        return self._core.meeting_points

    async def add_meeting_points(self, addresses: Iterable[str]) -> None:
        """Use more meeting points from now on, and after restarts. Needs `Capability.PAIR`.

        :param addresses: multiaddrs that end in ``/p2p/`` and a peer id; those known already do no harm.
        :raises InvalidRequestError: one is no such address.
        :raises StorageError: they are used, but could not be stored.
        """
        self._require(Capability.PAIR)
        await self._core.add_meeting_points(addresses)

    def pairing_with(self, peer_id: str, session_id: uuid.UUID) -> AbstractContextManager[None]:
        """Say that a pairing with a peer goes on for the length of the block. Needs `Capability.PAIR`."""
        self._require(Capability.PAIR)
        return self._core.pairing_with(peer_id, session_id)

    async def approve(self, device_id: uuid.UUID, what: str) -> None:
        """Ask a person before a sensitive operation of a device that is only "verified"; a trusted one needs no answer.

        Waits up to 60 s. The stream's own idle time-out goes on: give it more time than that, or keep the stream busy.

        :param what: the operation, for the person, such as ``send 3 files (2 MB)``.
        :raises RefusedError: the person said no, or did not answer.
        :raises DeviceNotFoundError: it is not paired.
        """
        device = self.get_device(device_id)
        if device.trust is not Trust.TRUSTED:
            await self._core.approvals.ask(device, self.name.replace("_", "-"), what=what)

    async def add_paired_device(
        self,
        info: DeviceInfo,
        *,
        pairing_id: uuid.UUID,
        pairing_root: bytes,
        addresses: Sequence[str] = (),
        pending: bool = False,
    ) -> RemoteDevice:
        """Store a device as paired, durably before this returns, and start connecting to it.

        Pairing a device anew replaces its old pairing. Needs `Capability.PAIR`.

        :param pairing_root: the shared secret, 32 bytes.
        :param pending: the other side has not confirmed yet: the pairing counts when it does (`confirm_pairing`), or
            when the device proves the root in a session, and lapses after 24 h.
        :raises StorageError: it could not be stored; nothing changed.
        """
        self._require(Capability.PAIR)
        return await self._core.add_paired_device(
            info, pairing_id=pairing_id, pairing_root=pairing_root, addresses=addresses, pending=pending
        )

    async def confirm_pairing(self, device_id: uuid.UUID, pairing_id: uuid.UUID) -> None:
        """Make a pending pairing final. Needs `Capability.PAIR`.

        :raises DeviceNotFoundError: there is no such pairing.
        """
        self._require(Capability.PAIR)
        await self._core.confirm_pairing(device_id, pairing_id)
