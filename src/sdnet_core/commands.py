"""The command channel: one task takes what happens in the swarm and what callers ask for, in order.

Pairings are added, confirmed and ended only here, so that such changes never interleave. It is bounded: a caller waits
when the node is behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from .devices.delivery import Priority
from .devices.records import ConnectionConfig
from .devices.trust import Trust
from .errors import NotRunningError
from .identity import DeviceInfo
from .swarm.abc import SwarmEvent

__all__ = [
    "AddPairedDevice",
    "Command",
    "CommandChannel",
    "ConfigureConnection",
    "ConfirmPairing",
    "ForgetDevice",
    "PairingCommand",
    "PairingLost",
    "RenameDevice",
    "RevokeDevice",
    "SendMessage",
    "SetTrust",
    "SwarmHappened",
]

CAPACITY = 256


@dataclass(frozen=True, slots=True)
class SwarmHappened:
    """The swarm reports something."""

    event: SwarmEvent


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Put a message into the outbox; gives it before it is stored."""

    device_id: uuid.UUID
    protocol_name: str
    data: bytes = field(repr=False)
    priority: Priority = Priority.NORMAL
    ttl_s: float | None = None
    message_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class AddPairedDevice:
    """Store a pairing and start connecting."""

    info: DeviceInfo
    pairing_id: uuid.UUID
    pairing_root: bytes
    addresses: tuple[str, ...]
    pending: bool


@dataclass(frozen=True, slots=True)
class ConfirmPairing:
    """Make a pending pairing final."""

    device_id: uuid.UUID
    pairing_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class PairingLost:
    """The other side has ended a pairing, or never confirmed it."""

    device_id: uuid.UUID
    pairing_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class SetTrust:
    """Trust a device more or less."""

    device_id: uuid.UUID
    trust: Trust


@dataclass(frozen=True, slots=True)
class RenameDevice:
    """Call a device something else on this one; by its own name again when None."""

    device_id: uuid.UUID
    name: str | None


@dataclass(frozen=True, slots=True)
class ConfigureConnection:
    """Connect a device in another way."""

    device_id: uuid.UUID
    config: ConnectionConfig
    auto_connect: bool


@dataclass(frozen=True, slots=True)
class RevokeDevice:
    """Cut a device off and refuse it from now on."""

    device_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class ForgetDevice:
    """End the pairing with a device and keep nothing of it."""

    device_id: uuid.UUID


PairingCommand = (
    AddPairedDevice
    | ConfirmPairing
    | PairingLost
    | SetTrust
    | RenameDevice
    | ConfigureConnection
    | RevokeDevice
    | ForgetDevice
)
"""What changes pairings."""
Command = SwarmHappened | SendMessage | PairingCommand


@dataclass(eq=False, slots=True)
class _Ticket:
    command: Command
    done: anyio.Event = field(default_factory=anyio.Event)
    result: Any = None
    error: Exception | None = None


class CommandChannel:
    """A bounded queue of commands with replies."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[_Ticket](capacity)

    async def call(self, command: Command) -> Any:
        """Hand a command over and wait until it was carried out.

        A caller that is cancelled meanwhile does not undo it.

        :returns: its result.
        :raises NotRunningError: the node has stopped.
        :raises NetworkingError: what the command raised.
        """
        ticket = _Ticket(command)
        try:
            await self._send.send(ticket)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise NotRunningError("The node has stopped.") from None
        await ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error
        return ticket.result

    async def run(self, carry_out: Callable[[Command], Awaitable[Any]]) -> None:
        """Carry commands out, one after the other, until cancelled; the channel is closed then."""
        ticket: _Ticket | None = None
        try:
            async for ticket in self._receive:
                try:
                    ticket.result = await carry_out(ticket.command)
                except Exception as error:
                    ticket.error = error
                ticket.done.set()
        finally:
            if ticket is not None and not ticket.done.is_set():
                ticket.error = NotRunningError("The node has stopped.")
                ticket.done.set()
            self.close()

    def close(self) -> None:
        """Take no more commands; those that wait fail."""
        self._send.close()
        while True:
            try:
                waiting = self._receive.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
                break
            waiting.error = NotRunningError("The node has stopped.")
            waiting.done.set()
        self._receive.close()
