"""The local API: what a running node answers over HTTP, and plugins' routes beneath it."""

from __future__ import annotations

import hmac
import inspect
import logging
import os
import platform
from collections.abc import AsyncIterable, Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InvalidRequestError
from ..events import PluginFailed
from ..hookspecs import ApiRequest, Route
from .log import DaemonLog
from .problems import encode_json, http_problem, problem_response
from .protection_routes import ProtectionRoutes
from .sse import EventStreamResponse
from .trust_routes import TrustRoutes
from .watch_routes import WatchRoutes

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["MAX_BODY_BYTES", "create_app", "require_token"]

MAX_BODY_BYTES = 1 << 20
"""Longest body of a request."""
LATEST_ENTRIES = 3
"""Past connections that come with all there is to know of a device."""
BODY_TIMEOUT_S = 10.0
"""How long a request's body may take to come in, also one that is too long and thrown away."""

_TOO_LARGE = f"A request's body may have {MAX_BODY_BYTES} bytes at most."

_logger = logging.getLogger(__name__)


def create_app(
    core: NetworkingCore,
    *,
    stop: Callable[[], None],
    stopping: anyio.Event,
    log: DaemonLog | None = None,
    guard: Callable[[ASGIApp], ASGIApp] | None = None,
) -> ASGIApp:
    """Make the ASGI application of a running node.

    :param stop: called when a client asked the node to stop and has its answer.
    :param stopping: set when the node stops; ends all event streams.
    :param log: whose levels clients may change; None if the node's host takes care of logging.
    :param guard: wraps the application to refuse requests; see `require_token`.
    """
    api = _CoreRoutes(core, stop, log)
    routes = [_starlette_route("/v1", route, stopping) for route in api.routes()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _on_http_error})
    app.router.redirect_slashes = False
    app.router.default = _PluginRouter(core, stopping, reserved={route.path.split("/")[2] for route in routes})
    return _Entry(app if guard is None else guard(app))


def require_token(app: ASGIApp, token: str, hosts: Iterable[str]) -> ASGIApp:
    """Guard an application that listens where other users and browsers can reach it.

    :param token: what a client must send as a bearer token (RFC 6750).
    :param hosts: the ``Host`` headers that are ours; any other may be a web page's, by DNS rebinding.
    """
    allowed = frozenset(hosts)
    expected = f"Bearer {token}".encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        response = None
        if headers.get(b"host", b"").decode("latin-1") not in allowed or b"origin" in headers:
            response = problem_response(http_problem(403, "Web pages may not use the local API."))
        elif not hmac.compare_digest(headers.get(b"authorization", b""), expected):
            response = problem_response(
                http_problem(401, "Send the token from the endpoint file as a bearer token."),
                headers={"WWW-Authenticate": "Bearer"},
            )
        await (response or app)(scope, receive, send)

    return guarded


class _CoreRoutes:
    """The core's own routes."""

    def __init__(self, core: NetworkingCore, stop: Callable[[], None], log: DaemonLog | None) -> None:
        self._core = core
        self._log = log
        self._stop = stop

    def routes(self) -> list[Route]:
        """All of them, below ``/v1``."""
        return [
            Route(method="GET", path="/version", endpoint=self.version, summary="Versions"),
            Route(method="GET", path="/status", endpoint=self.status, summary="The node"),
            Route(method="GET", path="/devices", endpoint=self.devices, summary="Paired devices"),
            Route(method="GET", path="/devices/{ref}", endpoint=self.device, summary="One paired device"),
            Route(method="GET", path="/devices/{ref}/history", endpoint=self.history, summary="Its past connections"),
            Route(method="POST", path="/devices/{ref}/ping", endpoint=self.ping, summary="Round-trip time"),
            Route(method="GET", path="/plugins", endpoint=self.plugins, summary="Plugins and their state"),
            Route(method="POST", path="/plugins/{name}/enable", endpoint=self.enable_plugin, summary="Start a plugin"),
            Route(method="POST", path="/plugins/{name}/disable", endpoint=self.disable_plugin, summary="Stop a plugin"),
            Route(method="POST", path="/stop", endpoint=self.stop, summary="Stop the node"),
            *TrustRoutes(self._core).routes(),
            *ProtectionRoutes(self._core).routes(),
            *WatchRoutes(self._core, self._log).routes(),
        ]

    async def version(self, request: ApiRequest) -> Any:
        return {"version": version("sdnet-core"), "python": platform.python_version(), "api": 1}

    async def status(self, request: ApiRequest) -> Any:
        return {**self._core.status(), "pid": os.getpid(), "log_file": self._core.config.paths.log_file}

    async def devices(self, request: ApiRequest) -> Any:
        return self._core.describe_devices()

    async def device(self, request: ApiRequest) -> Any:
        device_id = self._core.find_device(request.path["ref"]).device_id
        history = await self._core.device_history(device_id, latest=LATEST_ENTRIES)
        return {**self._core.describe_device(device_id), "history": history}

    async def history(self, request: ApiRequest) -> Any:
        device = self._core.find_device(request.path["ref"])
        return {"name": device.name, **await self._core.device_history(device.device_id)}

    async def ping(self, request: ApiRequest) -> Any:
        device = self._core.find_device(request.path["ref"])
        rtt_s = await self._core.ping(device.device_id)
        return {"device_id": device.device_id, "name": device.name, "rtt_s": rtt_s}

    async def plugins(self, request: ApiRequest) -> Any:
        return [record.to_dict() for record in self._core.plugin_records()]

    async def enable_plugin(self, request: ApiRequest) -> Any:
        return (await self._core.enable_plugin(request.path["name"])).to_dict()

    async def disable_plugin(self, request: ApiRequest) -> Any:
        return (await self._core.disable_plugin(request.path["name"])).to_dict()

    async def stop(self, request: ApiRequest) -> Any:
        return Response(
            encode_json({"stopping": True, "pid": os.getpid()}),
            202,
            media_type="application/json",
            background=BackgroundTask(self._request_stop),
        )

    async def _request_stop(self) -> None:
        self._stop()


class _PluginRouter:
    """Answers below the plugins' prefixes; plugins come and go while the node runs.

    :param reserved: prefixes that are the core's.
    """

    def __init__(self, core: NetworkingCore, stopping: anyio.Event, reserved: set[str]) -> None:
        self._core = core
        self._stopping = stopping
        self._reserved = reserved
        self._made_for = -1
        self._router = Router()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made_for != self._core.plugin_generation:
            self._made_for = self._core.plugin_generation
            self._router = Router(routes=self._routes(), redirect_slashes=False)
        await self._router(scope, receive, send)

    def _routes(self) -> list[StarletteRoute]:
        routes = []
        for plugin, route in self._core.routes():
            prefix = plugin.replace("_", "-")
            try:
                if prefix in self._reserved:
                    raise ValueError(f"/v1/{prefix} belongs to the core")
                routes.append(_starlette_route(f"/v1/{prefix}", route, self._stopping))
            except Exception as error:  # a plugin's mistake must not stop the node
                _logger.exception("Route %s %s of plugin %s is left out", route.method, route.path, plugin)
                self._core.events.publish(PluginFailed(plugin=plugin, reason=f"route {route.path}: {error}"))
        return routes


def _starlette_route(prefix: str, route: Route, stopping: anyio.Event) -> StarletteRoute:
    async def endpoint(request: Request) -> Response:
        try:
            return await _answer(route, request, stopping)
        except HTTPException:
            raise
        except Exception as error:  # reported to the client as a problem, whatever it is
            return problem_response(error)

    path = route.path if route.path.startswith("/") or not route.path else f"/{route.path}"
    made = StarletteRoute(prefix + path.rstrip("/"), endpoint, methods=[route.method.upper()])
    made.methods = {route.method.upper()}  # without HEAD, which would run the endpoint and open event streams
    return made


async def _answer(route: Route, request: Request, stopping: anyio.Event) -> Response:
    result: Any = route.endpoint(
        ApiRequest(
            path={key: unquote(value) for key, value in request.path_params.items()},
            query=dict(request.query_params),
            body=_decode_body(await request.body()),
            last_event_id=request.headers.get("last-event-id", ""),
        )
    )
    if inspect.isawaitable(result):
        result = await result
    if isinstance(result, Response):
        return result
    if isinstance(result, AsyncIterable):
        return EventStreamResponse(aiter(result), stopping)
    if result is None:
        return Response(status_code=204)
    return Response(encode_json(result), media_type="application/json")


def _decode_body(body: bytes) -> Any:
    if not body:
        return {}
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"The request's body is not JSON: {error}.") from error


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            detail = f"The local API has no {unquote(request.url.path)}."
        case 405:
            detail = f"{unquote(request.url.path)} does not answer {request.method}."
        case _:
            detail = error.detail
    return problem_response(http_problem(error.status_code, detail), headers=dict(error.headers or {}))


class _Entry:
    """Reads the whole body first, and prepares the path.

    A server that must hand over a body which nobody reads any more gets stuck, so that every request's is read,
    whatever becomes of it. Paths are matched segment by segment in their encoded form: a name may contain a slash.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        segments = raw.decode("latin-1").partition("?")[0].split("/")
        scope = {**scope, "path": "/".join(quote(unquote(segment), safe="") for segment in segments)}
        body, size = bytearray(), 0
        with anyio.move_on_after(BODY_TIMEOUT_S) as deadline:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    body += part
                more = message.get("more_body", False)
        if deadline.cancelled_caught or size > MAX_BODY_BYTES:
            status, detail = (408, "The body did not come in time.") if size <= MAX_BODY_BYTES else (413, _TOO_LARGE)
            response = problem_response(http_problem(status, detail), headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        replayed = False

        async def receive_again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, receive_again, send)
