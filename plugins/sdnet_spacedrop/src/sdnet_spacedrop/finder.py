"""Who is near: paired devices, and others that let everyone find them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import msgspec
from anyio.abc import TaskGroup

from sdnet_core import Access, Candidate, PluginContext, RemoteDevice
from sdnet_core.errors import DeviceNotFoundError, NetworkingError, NotFoundError

from . import nearby_messages as n
from .text import printable

__all__ = ["Finder", "NearbyDevice", "Stranger"]

logger = logging.getLogger(__name__)

LOOK_S = 1.5
"""How long the network has time to answer."""
ASK_TIMEOUT_S = 4.0
"""How long a device has time to tell its name."""
MAX_STRANGERS = 64
"""Most devices whose names are asked for, at one look."""
MAX_ADDRESSES = 32
_ID_DIGITS = slice(8, 16)
"""The peer ids of all Ed25519 keys begin with the same 8 characters."""


class NearbyDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is near.

    :param id: names it in commands: of a paired device, its device id; of another, a part of its peer id.
    :param name: of a paired device, the one known; of another, what it says of itself, safe to show.
    :param paired: its name is proven; with another, people compare a number first.
    :param connected: of a paired device, whether a session exists now.
    """

    id: str
    name: str
    paired: bool
    connected: bool
    device_id: str | None = None
    peer_id: str


@dataclass(slots=True)
class Stranger:
    """A device that is not paired and lets everyone find it.

    :param name: what it says of itself; None before it has said anything.
    """

    peer_id: str
    addresses: tuple[str, ...] = ()
    name: str | None = None
    _asking: bool = field(default=False, repr=False)

    @property
    def id(self) -> str:
        """Names it in commands."""
        return self.peer_id[_ID_DIGITS]


class Finder:
    """Looks for devices that are near."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self.strangers: dict[str, Stranger] = {}
        """By peer id, those found at the last look that have told their name."""

    async def look(self) -> list[NearbyDevice]:
        """Look around for a moment.

        :returns: paired devices first, by name.
        """
        seen: set[str] = set()
        strangers: dict[str, Stranger] = {}
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(LOOK_S):
                async with self._ctx.candidates(refresh=True) as candidates:
                    async for candidate in candidates:
                        seen.add(candidate.peer_id)
                        self._note(candidate, strangers, tasks)
                    await anyio.sleep_forever()  # discovery has stopped; names are still being told
        self.strangers = {peer_id: found for peer_id, found in strangers.items() if found.name is not None}
        near = [_paired(device) for device in self._ctx.devices() if device.connected or device.peer_id in seen]
        others = [
            NearbyDevice(id=found.id, name=found.name or "", paired=False, connected=False, peer_id=found.peer_id)
            for found in self.strangers.values()
        ]
        return [*_by_name(near), *_by_name(others)]

    def _note(self, candidate: Candidate, strangers: dict[str, Stranger], tasks: TaskGroup) -> None:
        peer_id = candidate.peer_id
        if n.TAG not in candidate.tags or self._is_trusted(peer_id):
            return
        found = strangers.get(peer_id)
        if found is None:
            if len(strangers) >= MAX_STRANGERS:
                return
            found = strangers[peer_id] = Stranger(peer_id)
            tasks.start_soon(self._ask, found)
        found.addresses = tuple(dict.fromkeys((*candidate.addresses, *found.addresses)))[:MAX_ADDRESSES]

    def _is_trusted(self, peer_id: str) -> bool:
        return any(device.peer_id == peer_id and _may_drop(device) for device in self._ctx.devices())

    async def _ask(self, stranger: Stranger) -> None:
        """Ask a device for its name; one that does not tell it is left out."""
        try:
            with anyio.fail_after(ASK_TIMEOUT_S):
                stream = await self._ctx.open_stranger_stream(
                    stranger.peer_id, stranger.addresses, n.PROTOCOL_NAME, timeout_s=ASK_TIMEOUT_S
                )
                async with stream:
                    messages = stream.messages(max_bytes=n.MAX_HANDSHAKE_BYTES)
                    await messages.send(n.NearbyQuery())
                    answer: n.PresenceAnswer = await messages.receive(n.PresenceAnswer)
        except (NetworkingError, TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            logger.info("%s did not tell its name: %s", stranger.peer_id, error)
            return
        if isinstance(answer, n.NearbyPresence):
            stranger.name = printable(answer.name).strip() or "a device without a name"

    async def resolve(self, references: Sequence[str], *, everyone: bool, nearby: bool) -> list[NearbyDevice]:
        """Find out who is meant.

        :param references: names, ids, or unique prefixes of either.
        :param everyone: all devices that can be reached now.
        :param nearby: look for devices that are not paired, too.
        :raises NotFoundError: nobody fits one of them, or several do, or nobody is there at all.
        """
        near = await self.look() if nearby else [_paired(device) for device in self._ctx.devices()]
        chosen: dict[str, NearbyDevice] = {}
        if everyone:
            chosen = {device.id: device for device in near if device.connected or nearby}
            if not chosen:
                raise NotFoundError(
                    "Nobody is near." if nearby else "No paired device is connected. To look for others: --nearby"
                )
        for reference in references:
            device = self._choose(reference, near, nearby=nearby)
            chosen[device.id] = device
        return list(chosen.values())

    def _choose(self, reference: str, near: Sequence[NearbyDevice], *, nearby: bool) -> NearbyDevice:
        try:  # the name of a paired device is proven, so it goes before one that anybody can take
            return _paired(self._ctx.find_device(reference))
        except DeviceNotFoundError as error:
            if not nearby:
                hint = "To look for devices that are not paired: --nearby"
                raise DeviceNotFoundError(f"{error.detail} {hint}") from error
        wanted = reference.strip().casefold()
        found = [device for device in near if not device.paired and wanted in _names(device)]
        if not found:
            found = [d for d in near if not d.paired and wanted and any(n.startswith(wanted) for n in _names(d))]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{device.name} ({device.id})" for device in found[:5])
            raise NotFoundError(f"Several devices nearby fit {printable(reference[:40])!r}: {names}. Give the id.")
        raise NotFoundError(
            f"No device nearby fits {printable(reference[:40])!r}. On that device: sdnet drop visibility everyone"
        )

    async def stranger(self, peer_id: str) -> Stranger:
        """One that was found, by its whole peer id.

        :raises NotFoundError: it is not near.
        """
        if peer_id not in self.strangers:
            await self.look()
        with suppress(KeyError):
            return self.strangers[peer_id]
        raise NotFoundError("That device is not near any more.")


def _may_drop(device: RemoteDevice) -> bool:
    return device.trust.access is not None and device.trust.access >= Access.TRUSTED


def _names(device: NearbyDevice) -> tuple[str, ...]:
    return device.name.casefold(), device.id.casefold(), device.peer_id.casefold()


def _paired(device: RemoteDevice) -> NearbyDevice:
    device_id: uuid.UUID = device.device_id
    return NearbyDevice(
        id=str(device_id),
        name=printable(device.name),
        paired=True,
        connected=device.connected,
        device_id=str(device_id),
        peer_id=device.peer_id,
    )


def _by_name(devices: Sequence[NearbyDevice]) -> list[NearbyDevice]:
    return sorted(devices, key=lambda device: (device.name.casefold(), device.id))
