"""The local API below ``/v1/spacedrop/``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route

from .drops import DropStatus
from .service import SpacedropService

__all__ = ["routes"]


class _Send(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    paths: tuple[str, ...]
    message: str = ""


class _Accept(msgspec.Struct, forbid_unknown_fields=True):
    folder: str | None = None


class _Reject(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class _Api:
    def __init__(self, ctx: PluginContext, service: SpacedropService) -> None:
        self._ctx = ctx
        self._service = service

    async def send(self, request: ApiRequest) -> DropStatus:
        body = request.body_as(_Send)
        device = self._ctx.find_device(body.device)
        return await self._service.send(device.device_id, body.paths, body.message)

    async def drops(self, request: ApiRequest) -> list[DropStatus]:
        return self._service.drops()

    async def pending(self, request: ApiRequest) -> list[DropStatus]:
        return self._service.pending()

    async def inbox(self, request: ApiRequest) -> list[DropStatus]:
        return self._service.inbox()

    async def get(self, request: ApiRequest) -> DropStatus:
        return self._service.get(request.path["id"])

    async def watch(self, request: ApiRequest) -> AsyncIterator[DropStatus]:
        return self._service.watch(request.path["id"])

    async def accept(self, request: ApiRequest) -> DropStatus:
        return await self._service.accept(request.path["id"], request.body_as(_Accept).folder)

    async def reject(self, request: ApiRequest) -> DropStatus:
        return await self._service.reject(request.path["id"], request.body_as(_Reject).reason)

    async def cancel(self, request: ApiRequest) -> DropStatus:
        return await self._service.cancel(request.path["id"])


def routes(ctx: PluginContext, service: SpacedropService) -> Iterable[Route]:
    """The plugin's routes."""
    api = _Api(ctx, service)
    return [
        Route(method="POST", path="/drops", endpoint=api.send, summary="Offer files and folders to a device."),
        Route(method="GET", path="/drops", endpoint=api.drops, summary="All drops, sent and received."),
        Route(method="GET", path="/drops/{id}", endpoint=api.get, summary="One drop."),
        Route(method="GET", path="/drops/{id}/watch", endpoint=api.watch, summary="Follow a drop until it has ended."),
        Route(method="POST", path="/drops/{id}/accept", endpoint=api.accept, summary="Accept an offer."),
        Route(method="POST", path="/drops/{id}/reject", endpoint=api.reject, summary="Reject an offer."),
        Route(method="DELETE", path="/drops/{id}", endpoint=api.cancel, summary="Cancel a drop."),
        Route(method="GET", path="/pending", endpoint=api.pending, summary="Offers that wait for an answer here."),
        Route(method="GET", path="/inbox", endpoint=api.inbox, summary="Drops received, with where they are."),
    ]
