"""Routes of the local API below ``/v1/messaging``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec

from sdnet_core import ApiRequest, PluginContext, Priority, Route
from sdnet_core.errors import InvalidRequestError

from .records import Choice, InboxMessage, OutboxMessage, Receipt
from .service import MAX_LISTED, MessagingService

__all__ = ["MessagingApi"]

MAX_WAIT_S = 60.0

_Ttl = Annotated[float, msgspec.Meta(gt=0, le=10 * 366 * 86400)] | None
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class _TextBody(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    text: str
    priority: str = "normal"
    ttl_s: _Ttl = None
    now: bool = False


class _ActionBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: str


class _NotificationBody(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    title: str
    body: str = ""
    actions: list[_ActionBody] = []
    priority: str = "normal"
    ttl_s: _Ttl = None
    now: bool = False


class _ChoiceBody(msgspec.Struct, forbid_unknown_fields=True):
    action: str


class _ReadBody(msgspec.Struct, forbid_unknown_fields=True):
    ids: Annotated[list[uuid.UUID], msgspec.Meta(max_length=MAX_LISTED)] | None = None
    up_to: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None


class MessagingApi:
    """The plugin's routes."""

    def __init__(self, ctx: PluginContext, service: MessagingService) -> None:
        self._ctx = ctx
        self._service = service

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(method="POST", path="/messages", endpoint=self.send_text, summary="Send a text"),
            Route(method="POST", path="/notifications", endpoint=self.send_notification, summary="Send a notification"),
            Route(method="GET", path="/inbox", endpoint=self.inbox, summary="What has come"),
            Route(method="GET", path="/inbox/watch", endpoint=self.watch, summary="What comes, as it comes"),
            Route(method="POST", path="/inbox/read", endpoint=self.mark_read, summary="Mark messages as read"),
            Route(method="DELETE", path="/inbox/{id}", endpoint=self.delete, summary="Remove a message"),
            Route(method="POST", path="/inbox/{id}/choice", endpoint=self.choose, summary="Answer a notification"),
            Route(
                method="GET", path="/notifications/{id}/choice", endpoint=self.choice, summary="What was chosen there"
            ),
            Route(method="GET", path="/outbox", endpoint=self.outbox, summary="What waits for its device"),
            Route(method="DELETE", path="/outbox/{id}", endpoint=self.cancel, summary="Take a waiting message back"),
        ]

    async def send_text(self, request: ApiRequest) -> Receipt:
        """``{device, text, priority?, ttl_s?, now?}``; answered once it lies in the other side's inbox or is queued."""
        body = request.body_as(_TextBody)
        device = self._ctx.find_device(body.device)
        return await self._service.send_text(
            device.device_id, body.text, priority=_priority(body.priority), ttl_s=body.ttl_s, now=body.now
        )

    async def send_notification(self, request: ApiRequest) -> Receipt:
        """``{device, title, body?, actions?: [{id, label}], priority?, ttl_s?, now?}``; answered as `send_text`."""
        body = request.body_as(_NotificationBody)
        device = self._ctx.find_device(body.device)
        return await self._service.send_notification(
            device.device_id,
            body.title,
            body.body,
            actions=[Choice(id=action.id, label=action.label) for action in body.actions],
            priority=_priority(body.priority),
            ttl_s=body.ttl_s,
            now=body.now,
        )

    async def choose(self, request: ApiRequest) -> Receipt:
        """``{action}``, the id of an action of that notification; answered as `send_text`."""
        return await self._service.choose(_id(request), request.body_as(_ChoiceBody).action)

    async def choice(self, request: ApiRequest) -> InboxMessage | None:
        """Query: ``wait_s`` (a number of seconds, at most 60); null if nothing was chosen yet."""
        wait_s = min(MAX_WAIT_S, _number(request, "wait_s") or 0)
        return await self._service.wait_choice(_id(request), timeout_s=wait_s)

    async def outbox(self, request: ApiRequest) -> list[OutboxMessage]:
        """Query: ``device``; in the order in which the messages go out."""
        reference = request.query.get("device")
        return await self._service.outbox(None if reference is None else self._ctx.find_device(reference).device_id)

    async def cancel(self, request: ApiRequest) -> dict[str, Any]:
        """Take one message out of the outbox by its id; says whether it is certain that it was never sent."""
        return {"never_sent": await self._service.cancel(_id(request))}

    async def inbox(self, request: ApiRequest) -> list[InboxMessage]:
        """Query: ``since`` (a number), ``unread`` (``true``), ``limit``."""
        return await self._service.inbox(
            _number(request, "since"),
            unread_only=_flag(request, "unread"),
            limit=_number(request, "limit") or MAX_LISTED,
        )

    async def watch(self, request: ApiRequest) -> AsyncIterator[InboxMessage]:
        """Query: ``since`` (a number) to begin with what came after it."""
        return self._service.listen(_number(request, "since"))

    async def mark_read(self, request: ApiRequest) -> dict[str, Any]:
        """``{ids}`` or ``{up_to}``; says how many were unread."""
        body = request.body_as(_ReadBody)
        if (body.ids is None) == (body.up_to is None):
            raise InvalidRequestError("Give either ids or up_to.")
        if body.ids is not None:
            return {"marked": await self._service.mark_read(body.ids)}
        return {"marked": await self._service.mark_read_up_to(body.up_to or 0)}

    async def delete(self, request: ApiRequest) -> None:
        """Remove one message by its id."""
        await self._service.delete(_id(request))


def _id(request: ApiRequest) -> uuid.UUID:
    try:
        return uuid.UUID(request.path["id"])
    except ValueError as error:
        raise InvalidRequestError("A message's id is a UUID.") from error


def _priority(name: str) -> Priority:
    try:
        return _PRIORITIES[name]
    except KeyError:
        raise InvalidRequestError("A priority is low, normal or high.") from None


def _number(request: ApiRequest, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidRequestError(f"{name} is a number.")
    return int(text)


def _flag(request: ApiRequest, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise InvalidRequestError(f"{name} is true or false.")
    return text in ("true", "1")
