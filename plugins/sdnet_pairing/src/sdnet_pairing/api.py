"""The local API below ``/v1/pairing``.

The code's words are in one answer only: that to the request which made them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from sdnet_core import ApiRequest, Route
from sdnet_core.errors import InvalidRequestError

from .introduction.service import IntroductionService
from .introduction.status import IntroductionStatus
from .service import PairingService
from .session import PairingStatus

__all__ = ["routes"]


class _NewSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["initiator", "joiner"]
    code: Annotated[str, msgspec.Meta(max_length=2048)] | list[str] | None = None
    auto_accept: bool = False
    hints: Annotated[list[str], msgspec.Meta(max_length=16)] = []
    timeout_s: float | None = None


class _NewIntroductions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    to: Annotated[list[str], msgspec.Meta(min_length=1, max_length=32)]


def routes(service: PairingService, introductions: IntroductionService) -> list[Route]:
    """All routes of the plugin."""
    return [*_session_routes(_Api(service)), *_introduction_routes(_Introductions(introductions))]


def _introduction_routes(api: _Introductions) -> list[Route]:
    one = "/introductions/{id}"
    return [
        Route(
            method="POST",
            path="/introductions",
            endpoint=api.introduce,
            summary="Introduce a paired device to others; answers with one introduction for each",
        ),
        Route(method="GET", path="/introductions", endpoint=api.introductions, summary="All introductions"),
        Route(method="GET", path=one, endpoint=api.introduction, summary="One introduction"),
        Route(method="DELETE", path=one, endpoint=api.cancel, summary="Give up an introduction that this device makes"),
        Route(
            method="GET",
            path=f"{one}/watch",
            endpoint=api.watch,
            summary="An introduction's state now and after each change, until it is over",
        ),
        Route(method="POST", path=f"{one}/accept", endpoint=api.accept, summary="Pair with the introduced device"),
        Route(method="POST", path=f"{one}/reject", endpoint=api.reject, summary="Do not pair with it"),
    ]


def _session_routes(api: _Api) -> list[Route]:
    return [
        Route(
            method="POST",
            path="/sessions",
            endpoint=api.start,
            summary="Show a new code (role initiator) or join with one (role joiner)",
        ),
        Route(method="GET", path="/sessions", endpoint=api.sessions, summary="All sessions"),
        Route(method="GET", path="/sessions/{id}", endpoint=api.session, summary="One session"),
        Route(method="DELETE", path="/sessions/{id}", endpoint=api.cancel, summary="Give a session up"),
        Route(
            method="GET",
            path="/sessions/{id}/watch",
            endpoint=api.watch,
            summary="A session's state now and after each change, until it is over",
        ),
        Route(method="GET", path="/pending", endpoint=api.pending, summary="Devices that ask to be paired"),
        Route(method="POST", path="/sessions/{id}/accept", endpoint=api.accept, summary="Pair with the device"),
        Route(method="POST", path="/sessions/{id}/reject", endpoint=api.reject, summary="Do not pair with it"),
    ]


class _Api:
    def __init__(self, service: PairingService) -> None:
        self._service = service

    async def start(self, request: ApiRequest) -> Any:
        wanted = request.body_as(_NewSession)
        if wanted.role == "initiator":
            if wanted.code is not None or wanted.hints or wanted.timeout_s is not None:
                raise InvalidRequestError("The device that shows the code takes no code, hints or time.")
            shown = await self._service.start_pairing_as_initiator(auto_accept=wanted.auto_accept)
            return {**_plain(shown.status), "code": " ".join(shown.words), "words": shown.words, "uri": shown.uri}
        if wanted.code is None:
            raise InvalidRequestError("The joining device needs the code.")
        if wanted.auto_accept:
            raise InvalidRequestError("Only the device that shows the code accepts.")
        return await self._service.start_pairing_as_joiner(wanted.code, hints=wanted.hints, timeout_s=wanted.timeout_s)

    async def sessions(self, request: ApiRequest) -> Any:
        return self._service.get_pairing_status()

    async def session(self, request: ApiRequest) -> Any:
        return self._service.get_session(request.path["id"])

    async def cancel(self, request: ApiRequest) -> Any:
        return self._service.cancel(request.path["id"])

    async def watch(self, request: ApiRequest) -> Any:
        return self._service.watch(request.path["id"])

    async def pending(self, request: ApiRequest) -> Any:
        return self._service.pending()

    async def accept(self, request: ApiRequest) -> Any:
        return self._service.accept(request.path["id"])

    async def reject(self, request: ApiRequest) -> Any:
        return self._service.reject(request.path["id"])


class _Introductions:
    def __init__(self, service: IntroductionService) -> None:
        self._service = service

    async def introduce(self, request: ApiRequest) -> Any:
        wanted = request.body_as(_NewIntroductions)
        return self._service.introduce_all(wanted.device, wanted.to)

    async def introductions(self, request: ApiRequest) -> Any:
        return self._service.introductions()

    async def introduction(self, request: ApiRequest) -> IntroductionStatus:
        return self._service.get(request.path["id"])

    async def cancel(self, request: ApiRequest) -> Any:
        return self._service.cancel(request.path["id"])

    async def watch(self, request: ApiRequest) -> Any:
        return self._service.watch(request.path["id"])

    async def accept(self, request: ApiRequest) -> Any:
        return self._service.accept(request.path["id"])

    async def reject(self, request: ApiRequest) -> Any:
        return self._service.reject(request.path["id"])


def _plain(status: PairingStatus) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(status)
    return plain
