"""Routes of the local API about trust: devices' trust and names, approvals, the audit log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ..audit import OWN_KINDS
from ..devices.records import ConnectionConfig
from ..devices.trust import Trust
from ..discovery.multiaddrs import parse_multiaddr
from ..errors import InvalidRequestError
from ..events import event_kinds
from ..hookspecs import ApiRequest, Route

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["TrustRoutes"]

MAX_LINES = 10_000


class _TrustBody(msgspec.Struct, forbid_unknown_fields=True):
    trust: Literal["trusted", "verified"]


class _NameBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(max_length=256)] | None


class _ConnectionBody(msgspec.Struct, forbid_unknown_fields=True):
    auto_connect: bool = True
    transports: Annotated[list[Annotated[str, msgspec.Meta(max_length=32)]], msgspec.Meta(max_length=8)] = []
    addresses: Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=16)] = []
    reconnect_min_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    reconnect_max_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    keepalive_interval_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    keepalive_misses: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class TrustRoutes:
    """They all act on one node."""

    def __init__(self, core: NetworkingCore) -> None:
        self._core = core

    def routes(self) -> list[Route]:
        """All of them, below ``/v1``."""
        return [
            Route(method="POST", path="/devices/{ref}/trust", endpoint=self.trust, summary="Trust it more or less"),
            Route(method="POST", path="/devices/{ref}/revoke", endpoint=self.revoke, summary="Cut it off for good"),
            Route(method="POST", path="/devices/{ref}/rename", endpoint=self.rename, summary="Its name on this device"),
            Route(
                method="POST", path="/devices/{ref}/connection", endpoint=self.connection, summary="How it is connected"
            ),
            Route(method="DELETE", path="/devices/{ref}", endpoint=self.forget, summary="End the pairing"),
            Route(method="GET", path="/approvals", endpoint=self.approvals, summary="Questions to a person"),
            Route(method="POST", path="/approvals/{id}/approve", endpoint=self.approve, summary="Say yes"),
            Route(method="POST", path="/approvals/{id}/deny", endpoint=self.deny, summary="Say no"),
            Route(method="GET", path="/audit", endpoint=self.audit, summary="The audit log"),
            Route(method="GET", path="/audit/follow", endpoint=self.follow, summary="The audit log, as it grows"),
            Route(method="GET", path="/audit/kinds", endpoint=self.kinds, summary="The kinds of its lines"),
            Route(method="POST", path="/audit/verify", endpoint=self.verify, summary="Check the audit log"),
        ]

    async def trust(self, request: ApiRequest) -> Any:
        body = request.body_as(_TrustBody)
        device = self._core.find_device(request.path["ref"])
        await self._core.set_trust(device.device_id, Trust(body.trust))
        return self._core.describe_device(device.device_id)

    async def revoke(self, request: ApiRequest) -> Any:
        device = self._core.find_device(request.path["ref"])
        await self._core.revoke_device(device.device_id)
        return {**self._core.describe_device(device.device_id), "told": device.connected}

    async def rename(self, request: ApiRequest) -> Any:
        body = request.body_as(_NameBody)
        device = self._core.find_device(request.path["ref"])
        await self._core.rename_device(device.device_id, body.name)
        return self._core.describe_device(device.device_id)

    async def connection(self, request: ApiRequest) -> Any:
        body = request.body_as(_ConnectionBody)
        device = self._core.find_device(request.path["ref"])
        for address in body.addresses:
            try:
                parse_multiaddr(address)
            except ValueError as error:
                raise InvalidRequestError(f"{address!r} is no address such as /ip4/192.0.2.7/tcp/4001.") from error
        config = ConnectionConfig(
            transports=tuple(body.transports),
            addresses=tuple(body.addresses),
            reconnect_min_s=body.reconnect_min_s,
            reconnect_max_s=body.reconnect_max_s,
            keepalive_interval_s=body.keepalive_interval_s,
            keepalive_misses=body.keepalive_misses,
        )
        await self._core.configure_connection(device.device_id, config, auto_connect=body.auto_connect)
        return self._core.describe_device(device.device_id)

    async def forget(self, request: ApiRequest) -> Any:
        device = self._core.find_device(request.path["ref"])
        await self._core.forget_device(device.device_id)
        return {"device_id": device.device_id, "name": device.name, "told": device.connected}

    async def approvals(self, request: ApiRequest) -> Any:
        return [approval.to_dict() for approval in self._core.approvals.pending()]

    async def approve(self, request: ApiRequest) -> Any:
        return self._core.approvals.approve(request.path["id"]).to_dict()

    async def deny(self, request: ApiRequest) -> Any:
        return self._core.approvals.deny(request.path["id"]).to_dict()

    async def audit(self, request: ApiRequest) -> Any:
        limit = _number(request, "limit", MAX_LINES)
        lines = await self._core.audit.read(since=_number(request, "since", 0))
        kinds = {kind for kind in request.query.get("kinds", "").split(",") if kind}
        found = [line for line in lines if not kinds or line["kind"] in kinds]
        return found[max(0, len(found) - int(min(limit, MAX_LINES))) :]

    async def follow(self, request: ApiRequest) -> Any:
        return self._core.audit.follow(since=_number(request, "since", self._core.clock.now()))

    async def kinds(self, request: ApiRequest) -> Any:
        audited = {kind for kind, is_audited in event_kinds().items() if is_audited}
        # A plugin that is gone, or is not loaded now, has left its lines.
        return sorted(audited | OWN_KINDS | {line["kind"] for line in await self._core.audit.read()})

    async def verify(self, request: ApiRequest) -> Any:
        return {"path": self._core.audit.path, **msgspec.to_builtins(await self._core.audit.verify())}


def _number(request: ApiRequest, name: str, default: float) -> float:
    try:
        number = float(request.query.get(name, default))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InvalidRequestError(f"{name!r} must be a number that is not negative.")
    return number
