"""Routes of the local API below ``/v1/echo``."""

from __future__ import annotations

from typing import Any

import msgspec
from sdnet_core import ApiRequest, PluginContext, Route

from .service import EchoService

__all__ = ["routes"]


class _RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    text: str


def routes(ctx: PluginContext, service: EchoService) -> list[Route]:
    """All of them."""

    async def ask(request: ApiRequest) -> dict[str, Any]:
        body = request.body_as(_RequestBody)
        device = ctx.find_device(body.device)
        text = await service.ask(device.device_id, body.text)
        return {"device_id": device.device_id, "device_name": device.name, "text": text}

    return [Route(method="POST", path="/requests", endpoint=ask, summary="Ask a device")]
