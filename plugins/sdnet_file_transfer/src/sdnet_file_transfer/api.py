"""Routes of the local API, below ``/v1/file-transfer``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route

from .service import FileTransferService
from .transfer import Transfer

__all__ = ["routes"]

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Send(msgspec.Struct, forbid_unknown_fields=True):
    device: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    paths: Annotated[list[_Path], msgspec.Meta(min_length=1, max_length=10_000)]


def routes(service: FileTransferService, ctx: PluginContext) -> list[Route]:
    """All routes."""

    async def send(request: ApiRequest) -> Transfer:
        body = request.body_as(_Send)
        return await service.send(ctx.find_device(body.device).device_id, body.paths)

    async def listing(request: ApiRequest) -> list[Transfer]:
        return service.transfers()

    async def one(request: ApiRequest) -> Transfer:
        return service.find(request.path["id"])

    async def watch(request: ApiRequest) -> AsyncIterator[Transfer]:
        return service.watch(service.find(request.path["id"]).id)

    async def cancel(request: ApiRequest) -> Transfer:
        return await service.cancel(service.find(request.path["id"]).id)

    return [
        Route(method="POST", path="/transfers", endpoint=send, summary="Send files and folders to a device."),
        Route(method="GET", path="/transfers", endpoint=listing, summary="All transfers, the latest first."),
        Route(method="GET", path="/transfers/{id}", endpoint=one, summary="One transfer."),
        Route(method="GET", path="/transfers/{id}/watch", endpoint=watch, summary="Follow one until it is over."),
        Route(method="DELETE", path="/transfers/{id}", endpoint=cancel, summary="Cancel one."),
    ]
