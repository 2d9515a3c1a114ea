"""Routes of the local API below ``/v1/clipboard``."""

from __future__ import annotations

from typing import Any

import msgspec
from sdnet_core import ApiRequest, Route
from sdnet_core.errors import NotFoundError

from .service import ClipboardService, Clips, plain

__all__ = ["routes"]


class _CopyBody(msgspec.Struct, forbid_unknown_fields=True):
    text: str


def routes(service: ClipboardService) -> list[Route]:
    """All of them."""

    async def copy(request: ApiRequest) -> dict[str, Any]:
        return plain(await service.copy(request.body_as(_CopyBody).text))

    async def paste(request: ApiRequest) -> dict[str, Any]:
        if service.clip is None:
            raise NotFoundError("Nothing has been copied yet.")
        return plain(service.clip)

    async def watch(request: ApiRequest) -> Clips:
        return service.watch()

    return [
        Route(method="POST", path="/clip", endpoint=copy, summary="Copy a text"),
        Route(method="GET", path="/clip", endpoint=paste, summary="What was copied last"),
        Route(method="GET", path="/clip/watch", endpoint=watch, summary="What is copied, as it is"),
    ]
