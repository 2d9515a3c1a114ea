"""The local API below ``/v1/spacedrop/``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Annotated

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route
from sdnet_core.errors import InvalidRequestError

from .drops import DropStatus
from .finder import NearbyDevice
from .policies import DevicePolicy, Policy
from .service import SpacedropService
from .visibility import MAX_FOR_S, VisibilityMode, VisibilityStatus

__all__ = ["routes"]


class _Send(msgspec.Struct, forbid_unknown_fields=True):
    paths: tuple[str, ...]
    device: str = ""
    peer_id: str = ""
    message: str = ""


class _Recipients(msgspec.Struct, forbid_unknown_fields=True):
    devices: tuple[str, ...] = ()
    all: bool = False
    nearby: bool = False


class _Visibility(msgspec.Struct, forbid_unknown_fields=True):
    visibility: VisibilityMode
    for_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_FOR_S)] | None = None


class _Policy(msgspec.Struct, forbid_unknown_fields=True):
    policy: Policy | None


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
        if bool(body.device) == bool(body.peer_id):
            raise InvalidRequestError("Either a paired device or a peer_id is needed.")
        if body.peer_id:
            return await self._service.send_nearby(body.peer_id, body.paths, body.message)
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

    async def watch_several(self, request: ApiRequest) -> AsyncIterator[DropStatus]:
        return self._service.watch_all([part for part in request.query.get("ids", "").split(",") if part])

    async def history(self, request: ApiRequest) -> list[DropStatus]:
        return self._service.history()

    async def forget_all(self, request: ApiRequest) -> dict[str, int]:
        return {"forgotten": await self._service.forget()}

    async def forget(self, request: ApiRequest) -> dict[str, int]:
        return {"forgotten": await self._service.forget(request.path["id"])}

    async def nearby(self, request: ApiRequest) -> list[NearbyDevice]:
        return await self._service.nearby()

    async def recipients(self, request: ApiRequest) -> list[NearbyDevice]:
        body = request.body_as(_Recipients)
        return await self._service.find_recipients(body.devices, everyone=body.all, nearby=body.nearby)

    async def visibility(self, request: ApiRequest) -> VisibilityStatus:
        return self._service.visibility.status()

    async def set_visibility(self, request: ApiRequest) -> VisibilityStatus:
        body = request.body_as(_Visibility)
        return await self._service.visibility.set(body.visibility, body.for_s)

    async def policies(self, request: ApiRequest) -> list[DevicePolicy]:
        return self._service.policies.all()

    async def policy(self, request: ApiRequest) -> DevicePolicy:
        return self._service.policies.describe(self._ctx.find_device(request.path["device"]))

    async def set_policy(self, request: ApiRequest) -> DevicePolicy:
        device = self._ctx.find_device(request.path["device"])
        return await self._service.policies.set(device.device_id, request.body_as(_Policy).policy)

    async def confirm(self, request: ApiRequest) -> DropStatus:
        return await self._service.confirm(request.path["id"])

    async def accept(self, request: ApiRequest) -> DropStatus:
        return await self._service.accept(request.path["id"], request.body_as(_Accept).folder)

    async def reject(self, request: ApiRequest) -> DropStatus:
        return await self._service.reject(request.path["id"], request.body_as(_Reject).reason)

    async def cancel(self, request: ApiRequest) -> DropStatus:
        return await self._service.cancel(request.path["id"], request.query.get("reason", ""))


def routes(ctx: PluginContext, service: SpacedropService) -> Iterable[Route]:
    """The plugin's routes."""
    api = _Api(ctx, service)
    return [
        Route(method="POST", path="/drops", endpoint=api.send, summary="Offer files and folders to a device."),
        Route(method="GET", path="/drops", endpoint=api.drops, summary="All drops, sent and received."),
        Route(method="GET", path="/drops/{id}", endpoint=api.get, summary="One drop."),
        Route(method="GET", path="/drops/{id}/watch", endpoint=api.watch, summary="Follow a drop until it has ended."),
        Route(method="GET", path="/watch", endpoint=api.watch_several, summary="Follow drops (?ids=a,b) to the end."),
        Route(method="POST", path="/drops/{id}/confirm", endpoint=api.confirm, summary="Both screens show the number."),
        Route(method="POST", path="/drops/{id}/accept", endpoint=api.accept, summary="Accept an offer."),
        Route(method="POST", path="/drops/{id}/reject", endpoint=api.reject, summary="Reject an offer."),
        Route(method="DELETE", path="/drops/{id}", endpoint=api.cancel, summary="Cancel a drop."),
        Route(method="GET", path="/pending", endpoint=api.pending, summary="Offers that wait for an answer here."),
        Route(method="GET", path="/inbox", endpoint=api.inbox, summary="Drops received, with where they are."),
        Route(method="GET", path="/history", endpoint=api.history, summary="Drops that have ended."),
        Route(method="DELETE", path="/history", endpoint=api.forget_all, summary="Clear the history."),
        Route(method="DELETE", path="/history/{id}", endpoint=api.forget, summary="Take one out of the history."),
        Route(method="GET", path="/nearby", endpoint=api.nearby, summary="Devices that are near."),
        Route(method="POST", path="/recipients", endpoint=api.recipients, summary="Find out who is meant."),
        Route(method="GET", path="/visibility", endpoint=api.visibility, summary="Who may send files to this device."),
        Route(method="PUT", path="/visibility", endpoint=api.set_visibility, summary="Choose who may."),
        Route(method="GET", path="/policies", endpoint=api.policies, summary="What is done with devices' offers."),
        Route(method="GET", path="/policies/{device}", endpoint=api.policy, summary="The same for one device."),
        Route(method="PUT", path="/policies/{device}", endpoint=api.set_policy, summary="Decide for one device."),
    ]
