"""Routes of the local API, below ``/v1/file-transfer``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route
from sdnet_core.errors import DeviceNotFoundError

from .limits import Rates
from .service import FileTransferService
from .shares import Share
from .transfer import Transfer

__all__ = ["routes"]

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Device = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Priority = Annotated[int, msgspec.Meta(ge=-1, le=1)]
_Rate = Annotated[int, msgspec.Meta(ge=0)]


class _Send(msgspec.Struct, forbid_unknown_fields=True):
    device: _Device
    paths: Annotated[list[_Path], msgspec.Meta(min_length=1, max_length=10_000)]
    priority: _Priority = 0


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    accept: bool


class _ShareBody(msgspec.Struct, forbid_unknown_fields=True):
    path: _Path
    devices: Annotated[list[_Device], msgspec.Meta(min_length=1, max_length=1000)]
    name: Annotated[str, msgspec.Meta(max_length=255)] = ""


class _Get(msgspec.Struct, forbid_unknown_fields=True):
    device: _Device
    path: _Path
    to: str = ""
    priority: _Priority = 0


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    """A rate of 0 takes a limit away, None leaves it."""

    device: str = ""
    up: _Rate | None = None
    down: _Rate | None = None


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def routes(service: FileTransferService, ctx: PluginContext) -> list[Route]:
    """All routes."""

    def name_of(device_id: UUID) -> str:
        try:
            return ctx.get_device(device_id).name
        except DeviceNotFoundError:
            return str(device_id)

    def shown(share: Share) -> dict[str, Any]:
        return {**msgspec.to_builtins(share), "device_names": [name_of(device) for device in share.devices]}

    def shown_limits() -> dict[str, Any]:
        settings = service.limits()
        devices = [
            {"device_id": name, "device_name": name_of(UUID(name)), "up": rates.up, "down": rates.down}
            for name, rates in settings.devices.items()
        ]
        return {"up": settings.total.up, "down": settings.total.down, "devices": devices}

    def begun(request: ApiRequest, transfer: Transfer) -> Transfer | AsyncIterator[Transfer]:
        """What a request that begins a transfer is answered with: its beginning, or all of it as it goes on."""
        return service.watch(transfer.id) if request.query.get("watch") == "true" else transfer

    async def send(request: ApiRequest) -> Transfer | AsyncIterator[Transfer]:
        body = request.body_as(_Send)
        device_id = ctx.find_device(body.device).device_id
        return begun(request, await service.send(device_id, body.paths, priority=body.priority))

    async def listing(request: ApiRequest) -> list[Transfer]:
        over = {"active": False, "over": True}.get(request.query.get("state", ""))
        return [one for one in service.transfers() if over is None or one.state.terminal is over]

    async def one(request: ApiRequest) -> Transfer:
        return service.find(request.path["id"])

    async def watch(request: ApiRequest) -> AsyncIterator[Transfer]:
        return service.watch(service.find(request.path["id"]).id)

    async def cancel(request: ApiRequest) -> Transfer:
        return await service.cancel(service.find(request.path["id"]).id)

    async def pause(request: ApiRequest) -> Transfer:
        return await service.pause(service.find(request.path["id"]).id)

    async def resume(request: ApiRequest) -> Transfer:
        return await service.resume(service.find(request.path["id"]).id)

    async def answer(request: ApiRequest) -> Transfer:
        return service.answer(service.find(request.path["id"]).id, request.body_as(_Answer).accept)

    async def forget(request: ApiRequest) -> dict[str, int]:
        return {"forgotten": await service.forget_history()}

    async def shares(request: ApiRequest) -> list[dict[str, Any]]:
        return [shown(share) for share in service.shared.shares()]

    async def share(request: ApiRequest) -> dict[str, Any]:
        body = request.body_as(_ShareBody)
        devices = [ctx.find_device(device).device_id for device in body.devices]
        return shown(await service.shared.share(body.path, devices, name=body.name))

    async def unshare(request: ApiRequest) -> dict[str, Any]:
        device = request.query.get("device", "")
        devices = [ctx.find_device(device).device_id] if device else []
        return shown(await service.shared.unshare(request.path["name"], devices))

    async def ls(request: ApiRequest) -> list[dict[str, Any]]:
        device_id = ctx.find_device(request.query.get("device", "")).device_id
        found = await service.shared.list(device_id, _parts(request.query.get("path", "")))
        return [
            {
                "name": e.name,
                "directory": e.directory,
                "size": e.size,
                "mtime": e.mtime_ns / 1e9,
                "executable": e.executable,
            }
            for e in found
        ]

    async def get(request: ApiRequest) -> Transfer | AsyncIterator[Transfer]:
        body = request.body_as(_Get)
        device_id = ctx.find_device(body.device).device_id
        to = Path(body.to) if body.to else None
        return begun(request, await service.shared.get(device_id, _parts(body.path), to, priority=body.priority))

    async def limits(request: ApiRequest) -> dict[str, Any]:
        return shown_limits()

    async def limit(request: ApiRequest) -> dict[str, Any]:
        body = request.body_as(_Limits)
        device_id = ctx.find_device(body.device).device_id if body.device else None
        settings = service.limits()
        now = settings.total if device_id is None else settings.devices.get(str(device_id), Rates())
        up = now.up if body.up is None else body.up or None
        down = now.down if body.down is None else body.down or None
        await service.limit(Rates(up, down), device_id)
        return shown_limits()

    return [
        Route(
            method="POST",
            path="/transfers",
            endpoint=send,
            summary="Send files and folders to a device; `?watch=true` follows it.",
        ),
        Route(
            method="GET",
            path="/transfers",
            endpoint=listing,
            summary="All transfers, the latest first; `?state=active|over`.",
        ),
        Route(method="GET", path="/transfers/{id}", endpoint=one, summary="One transfer."),
        Route(method="GET", path="/transfers/{id}/watch", endpoint=watch, summary="Follow one until it is over."),
        Route(method="DELETE", path="/transfers/{id}", endpoint=cancel, summary="Cancel one."),
        Route(method="POST", path="/transfers/{id}/pause", endpoint=pause, summary="Pause one."),
        Route(method="POST", path="/transfers/{id}/resume", endpoint=resume, summary="Let a paused one go on."),
        Route(method="POST", path="/transfers/{id}/answer", endpoint=answer, summary="Accept or reject one that asks."),
        Route(method="DELETE", path="/history", endpoint=forget, summary="Forget the transfers that are over."),
        Route(method="GET", path="/shares", endpoint=shares, summary="The folders that this device shares."),
        Route(method="POST", path="/shares", endpoint=share, summary="Share a folder with devices."),
        Route(method="DELETE", path="/shares/{name}", endpoint=unshare, summary="Take a share back; `?device=`."),
        Route(method="GET", path="/shared", endpoint=ls, summary="What a device shares; `?device=&path=`."),
        Route(
            method="POST",
            path="/get",
            endpoint=get,
            summary="Get a file or folder that a device shares; `?watch=true` follows it.",
        ),
        Route(method="GET", path="/limits", endpoint=limits, summary="Limits of bandwidth, bytes a second."),
        Route(method="POST", path="/limits", endpoint=limit, summary="Change limits of bandwidth; 0 takes one away."),
    ]
