"""Routes of the local API below ``/v1/messaging``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route
from sdnet_core.errors import InvalidRequestError

from .messages import Priority
from .records import Choice, InboxMessage, Receipt
from .service import MAX_LISTED, MessagingService

__all__ = ["MessagingApi"]

_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class _TextBody(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    text: str
    priority: str = "normal"


class _ActionBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: str


class _NotificationBody(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    title: str
    body: str = ""
    actions: list[_ActionBody] = []
    priority: str = "normal"


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
        ]

    async def send_text(self, request: ApiRequest) -> Receipt:
        """``{device, text, priority?}``; answered once it lies in the other side's inbox."""
        body = request.body_as(_TextBody)
        device = self._ctx.find_device(body.device)
        return await self._service.send_text(device.device_id, body.text, priority=_priority(body.priority))

    async def send_notification(self, request: ApiRequest) -> Receipt:
        """``{device, title, body?, actions?: [{id, label}], priority?}``; answered as `send_text`."""
        body = request.body_as(_NotificationBody)
        device = self._ctx.find_device(body.device)
        return await self._service.send_notification(
            device.device_id,
            body.title,
            body.body,
            actions=[Choice(id=action.id, label=action.label) for action in body.actions],
            priority=_priority(body.priority),
        )

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
        try:
            message_id = uuid.UUID(request.path["id"])
        except ValueError as error:
            raise InvalidRequestError("A message's id is a UUID.") from error
        await self._service.delete(message_id)


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
