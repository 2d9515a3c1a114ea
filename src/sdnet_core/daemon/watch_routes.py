"""Routes of the local API that show what the node does: events, numbers, and the levels of its log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from ..errors import NotFoundError
from ..events import NetworkEvent, Subscription, event_kinds
from ..hookspecs import ApiRequest, Route
from .log import DaemonLog
from .moments import parse_moment
from .sse import StreamItem

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["WatchRoutes"]

_EVENT_ID = re.compile(r"(?:([0-9a-f]{1,16})-)?(\d{1,15})")
_BUFFER = 1024
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text exposition format."""


class _LogBody(msgspec.Struct, forbid_unknown_fields=True):
    level: str | None = None
    levels: dict[str, str | None] = {}


class WatchRoutes:
    """Events, as they happen and as far back as they are kept; the levels of the log.

    :param log: None if the node's host takes care of logging.
    """

    def __init__(self, core: NetworkingCore, log: DaemonLog | None) -> None:
        self._core = core
        self._log = log

    def routes(self) -> list[Route]:
        """All of them, below ``/v1``."""
        return [
            Route(method="GET", path="/events", endpoint=self.events, summary="What happens, as it happens"),
            Route(method="GET", path="/events/recent", endpoint=self.recent, summary="What has happened"),
            Route(method="GET", path="/events/kinds", endpoint=self.kinds, summary="Which kinds of events there are"),
            Route(method="GET", path="/metrics", endpoint=self.metrics, summary="Numbers for Prometheus"),
            Route(method="GET", path="/log", endpoint=self.log, summary="The log's place and levels"),
            Route(method="PATCH", path="/log", endpoint=self.change_log, summary="Change the log's levels"),
        ]

    async def events(self, request: ApiRequest) -> Any:
        since = request.last_event_id or request.query.get("since", "")
        # Subscribed before the answer begins, so that nothing that happens after it is missed.
        past = self._history(request, since) if since else []
        kinds = _kinds(request)
        return self._numbered(self._core.events.subscribe(kinds, buffer=_BUFFER, past=past))

    async def recent(self, request: ApiRequest) -> Any:
        past = self._history(request, request.query.get("since", ""))
        return [event.to_dict() for event in past]

    async def kinds(self, request: ApiRequest) -> Any:
        return [{"kind": kind, "audited": audited} for kind, audited in sorted(event_kinds().items())]

    async def metrics(self, request: ApiRequest) -> Any:
        await self._core.runner(import_module, "prometheus_client")  # once, and not in the event loop
        return Response(self._core.metrics.render(), media_type=METRICS_TYPE)

    async def log(self, request: ApiRequest) -> Any:
        if self._log is None:
            raise NotFoundError("The program that this node runs in takes care of its log.")
        return self._log.describe()

    async def change_log(self, request: ApiRequest) -> Any:
        body = request.body_as(_LogBody)
        if self._log is not None:
            self._log.change(body.level, body.levels)
        return await self.log(request)

    def _numbered(self, events: Subscription) -> AsyncIterator[StreamItem]:
        return _Numbered(events, self._core.events.run)

    def _history(self, request: ApiRequest, since: str) -> list[NetworkEvent]:
        bus, kinds = self._core.events, _kinds(request)
        if not since:
            return bus.history(kinds)
        if found := _EVENT_ID.fullmatch(since):
            return bus.history(kinds, after=int(found[2]), run=found[1])
        return bus.history(kinds, since=parse_moment(since, self._core.clock.now()))


class _Numbered(AsyncIterator[StreamItem]):
    """Events with the ids under which a client may come back for those that followed."""

    def __init__(self, events: Subscription, run: str) -> None:
        self._events = events
        self._run = run

    async def __anext__(self) -> StreamItem:
        event = await anext(self._events)
        return StreamItem(event, f"{self._run}-{event.seq}" if event.seq else "")

    def close(self) -> None:
        """Stop listening."""
        self._events.close()


def _kinds(request: ApiRequest) -> list[str] | None:
    return [kind for kind in request.query.get("kinds", "").split(",") if kind] or None
