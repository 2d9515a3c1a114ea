"""How devices become members: invitations, answers, and requests for them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from sdnet_core import PluginContext, RemoteDevice, public_key_from_peer_id
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NetworkingError,
    RefusedError,
)
from sdnet_core.wire import Message, decode, encode

from . import messages, records
from .catalog import Catalog, LibraryRecord, OpenInvitation
from .limits import MAX_NAME
from .linker import PROTOCOL_NAME
from .messages import Understood
from .operations import Membership, Role
from .replica import Replica
from .standing import NO_HEAD

__all__ = ["Invitations", "give_role"]

logger = logging.getLogger(__name__)

MAX_REQUESTS = 64
MAX_INVITED = 64
"""Invitations kept for the person to answer."""

GetReplica = Callable[[bytes], Replica]


class Invitations:
    """Brings invitations and answers to devices, at once or when they come, and keeps what came from others.

    :param changed: called when a library's record, or its members, may have changed.
    :param opened: called to open a library that was accepted.
    """

    def __init__(
        self,
        ctx: PluginContext,
        catalog: Catalog,
        replica: GetReplica,
        changed: Callable[[bytes], None],
        opened: Callable[[LibraryRecord], Awaitable[None]],
    ) -> None:
        self._ctx = ctx
        self._catalog = catalog
        self._replica = replica
        self._changed = changed
        self._opened = opened
        self.requests: dict[tuple[uuid.UUID, str], records.Request] = {}

    # As the one who invites

    async def invite(self, library: bytes, device: RemoteDevice, role: Role) -> bool:
        """Invite a device; see `SyncService.invite`."""
        replica, record = self._replica(library), self._catalog.get(library)
        if replica.view.members.role(replica.store.device) is not Role.OWNER:
            raise RefusedError("Only an owner of the library can invite devices.")
        if role is Role.NONE:
            raise InvalidRequestError("A member is a reader, a writer or an owner.")
        if replica.view.members.role(device.device_id.bytes) > Role.NONE:
            raise ConflictError(f"{device.name} is a member of the library already.")
        others = tuple(i for i in record.invitations if i.device != device.device_id.bytes)
        invitation = OpenInvitation(device.device_id.bytes, role, False)
        await self._catalog.store(msgspec.structs.replace(record, invitations=(*others, invitation)))
        self.requests = {key: value for key, value in self.requests.items() if key[0] != device.device_id}
        try:
            await self._tell(library, invitation)
        except NetworkingError as error:
            if isinstance(error, RefusedError):
                raise
            logger.info("%s is invited when it comes: %s", device.device_id, error)
            return False
        return True

    async def _tell(self, library: bytes, invitation: OpenInvitation) -> None:
        record = self._catalog.get(library)
        await self._send(
            invitation.device,
            messages.Invitation(
                library=record.id,
                name=self._replica(library).view.name or record.name,
                role=invitation.role,
                secret=record.secret,
                founder=record.founder,
                founder_key=record.founder_key,
            ),
        )
        record = self._catalog.get(library)
        told = tuple(
            msgspec.structs.replace(i, told=True) if i.device == invitation.device else i for i in record.invitations
        )
        await self._catalog.store(msgspec.structs.replace(record, invitations=told))

    async def take_answer(self, device: RemoteDevice, answer: messages.InvitationAnswer) -> Understood:
        """A device that we have invited says what its person decided."""
        record = self._catalog.records.get(answer.library)
        invitation = next(
            (i for i in (record.invitations if record else ()) if i.device == device.device_id.bytes), None
        )
        if record is None or invitation is None:
            replica = None if record is None else self._replica(answer.library)
            if replica is not None and replica.view.members.role(device.device_id.bytes) > Role.NONE:
                return Understood()  # it did not hear that we had understood
            return Understood(reason="There is no such invitation.")
        if answer.accepted:
            await give_role(self._replica(record.id), device, invitation.role)
        left = tuple(i for i in record.invitations if i.device != device.device_id.bytes)
        await self._catalog.store(msgspec.structs.replace(self._catalog.get(record.id), invitations=left))
        self._changed(record.id)
        return Understood()

    def take_request(self, device: RemoteDevice, request: messages.AccessRequest) -> Understood:
        """A device's person asks to be invited."""
        key = device.device_id, request.library
        if key not in self.requests and len(self.requests) >= MAX_REQUESTS:
            return Understood(reason="Too many requests wait for an answer there.")
        if not request.library.isprintable() or request.role is Role.NONE:
            return Understood(reason="That is no library's name.")
        self.requests[key] = records.Request(
            device_id=device.device_id,
            device_name=device.name,
            library=request.library,
            role=request.role.name.lower(),
        )
        self._ctx.publish(
            records.AccessRequested(
                library=request.library,
                role=request.role.name.lower(),
                device_id=device.device_id,
                device_name=device.name,
            )
        )
        return Understood()

    # As the one who is invited

    async def take_invitation(self, device: RemoteDevice, invitation: messages.Invitation) -> Understood:
        """A device invites us: remember it for our person."""
        known = self._catalog.records.get(invitation.library)
        if known is not None and known.state in ("joining", "active", "leaving"):
            return Understood(reason="This device is a member already.")
        waiting = sum(record.state == "invited" for record in self._catalog.records.values())
        if known is None and waiting >= MAX_INVITED:
            return Understood(reason="Too many invitations wait for an answer there.")
        if not invitation.name.isprintable() or invitation.role is Role.NONE:
            return Understood(reason="That is no invitation.")
        if known is not None and (known.secret, known.founder) != (invitation.secret, invitation.founder):
            return Understood(reason="This device knows another library by that id.")
        record = LibraryRecord(
            id=invitation.library,
            name=invitation.name,
            state="invited",
            secret=invitation.secret,
            row_key=known.row_key if known is not None else self._ctx.randomness.bytes(32),
            founder=invitation.founder,
            founder_key=invitation.founder_key,
            source=device.device_id.bytes,
            role=invitation.role,
        )
        await self._catalog.store(record)
        self._ctx.publish(
            records.LibraryInvitation(
                library_id=record.uuid,
                name=record.name,
                role=record.role.name.lower(),
                device_id=device.device_id,
                device_name=device.name,
            )
        )
        return Understood()

    def waiting(self) -> list[records.Invitation]:
        """What waits for our person's answer."""
        return [
            records.Invitation(
                library_id=record.uuid,
                name=record.name,
                role=record.role.name.lower(),
                device_id=uuid.UUID(bytes=record.source),
                device_name=self._device_name(record.source),
            )
            for record in self._catalog.records.values()
            if record.state == "invited"
        ]

    async def accept(self, record: LibraryRecord) -> None:
        """Say yes; the inviter hears of it at once or when it comes."""
        record = msgspec.structs.replace(record, state="joining")
        await self._catalog.store(record)
        await self._opened(record)
        self._changed(record.id)
        await self._try_answer(record)

    async def decline(self, record: LibraryRecord) -> None:
        """Say no."""
        await self._catalog.remove(record)
        try:
            await self._send(record.source, messages.InvitationAnswer(library=record.id, accepted=False))
        except NetworkingError as error:
            logger.info("the invitation was declined without telling who invited: %s", error)

    async def _try_answer(self, record: LibraryRecord) -> None:
        try:
            await self._send(record.source, messages.InvitationAnswer(library=record.id, accepted=True))
        except RefusedError as error:
            logger.warning("the invitation to %s no longer holds: %s", record.uuid, error)
        except NetworkingError as error:
            logger.info("the invitation is answered when its sender comes: %s", error)

    async def request_access(self, device: RemoteDevice, library: str, role: Role) -> None:
        """Ask to be invited; see `SyncService.request_access`."""
        if not 0 < len(library) <= MAX_NAME:
            raise InvalidRequestError(f"A library's name has 1 to {MAX_NAME} characters.")
        await self._send(device.device_id.bytes, messages.AccessRequest(library=library, role=role))

    async def catch_up(self, device: RemoteDevice) -> None:
        """A device has come: tell it what waits for it."""
        for record in list(self._catalog.records.values()):
            try:
                for invitation in record.invitations:
                    if invitation.device == device.device_id.bytes and not invitation.told:
                        await self._tell(record.id, invitation)
                if record.state == "joining" and record.source == device.device_id.bytes:
                    await self._try_answer(record)
            except NetworkingError as error:
                logger.info("%s was not told what waits for it: %s", device.device_id, error)

    async def _send(self, device: bytes, message: Message) -> None:
        """Send a request and have it understood.

        :raises RefusedError: the other side does not take it.
        :raises NetworkingError: it is away.
        """
        device_id = uuid.UUID(bytes=device)
        if not self._ctx.get_device(device_id).connected:
            raise ConnectionFailedError("The device is not connected.")
        answer = await self._ctx.request(device_id, PROTOCOL_NAME, encode(message))
        understood: Understood = decode(answer, Understood)
        if understood.reason:
            raise RefusedError(understood.reason)

    def _device_name(self, device: bytes) -> str:
        try:
            return self._ctx.get_device(uuid.UUID(bytes=device)).name
        except NetworkingError:
            return ""


async def give_role(replica: Replica, device: RemoteDevice, role: Role) -> None:
    """Make a paired device a member with a role, or change its role, or take it away."""
    await change_role(
        replica, device.device_id.bytes, public_key_from_peer_id(device.peer_id), device.name[:MAX_NAME], role
    )


async def change_role(replica: Replica, device: bytes, public_key: bytes, name: str, role: Role) -> None:
    """Write the operation that gives a device a role.

    :raises RefusedError: we are no owner.
    """
    through = replica.view.heads.get(device, NO_HEAD).sequence
    await replica.write([Membership(device, public_key, role, name, through)], 256)
