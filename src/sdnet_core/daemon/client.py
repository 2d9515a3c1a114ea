"""The local API's client: quick to import, blocking."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import h11

from ..config import Config
from ..errors import ConnectionFailedError, NetworkTimeoutError, NotRunningError, SerializationError
from .api_error import ApiError, quote_segment
from .endpoint import check_private, has_unix_sockets, read_tcp_endpoint

__all__ = ["ApiClient", "ApiError", "EventStream", "quote_segment"]

PREFIX = "/v1"
PROBLEM_TYPE = "application/problem+json"

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
"""Longest wait for an answer: a person at the other device may have to be asked first."""
STREAM_SILENCE_S = 60.0
"""Longest silence on an event stream; the node sends a comment every 15 s."""
_MAX_ANSWER_BYTES = 256 << 20
_MAX_LINE_BYTES = 16 << 20
_READ_BYTES = 65536
_OK = 200
_BAD_REQUEST = 400


class _Exchange:
    """One request and its answer, on a connection of their own.

    :ivar status: of the answer, once `ask` has returned.
    :ivar kind: its media type, without parameters.
    """

    def __init__(self, connection: socket.socket, host: str, token: str = "") -> None:
        self._socket = connection
        self._headers = [("Host", host)]
        if token:
            self._headers.append(("Authorization", f"Bearer {token}"))
        self._http = h11.Connection(h11.CLIENT)
        self.status = 0
        self.kind = ""

    def ask(self, method: str, target: str, body: Any) -> None:
        """Send the request, and wait for the head of the answer.

        :raises TimeoutError: nothing came.
        :raises h11.RemoteProtocolError: what came is not an answer.
        :raises OSError: the connection broke.
        """
        content = b"" if body is None else json.dumps(body).encode()
        headers = self._headers
        if method != "GET":
            headers.append(("Content-Length", str(len(content))))
        if content:
            headers.append(("Content-Type", "application/json"))
        request = h11.Request(method=method, target=target, headers=headers)
        events = (request, h11.Data(data=content), h11.EndOfMessage())
        self._socket.sendall(b"".join([self._http.send(event) or b"" for event in events]))
        while not isinstance(event := self._next(), h11.Response):
            pass  # an informational one may come before
        self.status = event.status_code
        kind = next((value for name, value in event.headers if name == b"content-type"), b"")
        self.kind = kind.partition(b";")[0].strip().lower().decode("latin-1")

    def read(self) -> bytes:
        """More of the answer's body; nothing at its end.

        :raises: as `ask`; also when the connection ends in the middle.
        """
        event = self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._socket.recv(_READ_BYTES))
        return event

    def wait_at_most(self, timeout_s: float) -> None:
        """Bound how long each read may take."""
        self._socket.settimeout(timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class EventStream(Iterator[Any]):
    """Server-sent events as they come, each one's decoded data. Ends when the node ends it; close it to leave early."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._events = self._read()

    def __next__(self) -> Any:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave; the node stops what it did for us."""
        self._exchange.close()

    def _read(self) -> Iterator[Any]:
        name, data = "", []
        for line in self._lines():
            if line:
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
                continue
            if data:
                document = _decode("\n".join(data))
                if name == "problem":
                    raise ApiError.from_problem(document, 500)
                yield document
            name, data = "", []

    def _lines(self) -> Iterator[str]:
        rest = b""
        try:
            while part := self._exchange.read():
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > _MAX_LINE_BYTES:
                    raise SerializationError("The node sent an event that is too long.")
                for line in lines:
                    yield line.decode("utf-8", "replace").removesuffix("\r")
        except TimeoutError as error:
            raise NetworkTimeoutError("The node has gone silent.") from error
        except (h11.RemoteProtocolError, OSError) as error:
            raise ConnectionFailedError("The node stopped answering in the middle of a stream.") from error
        finally:
            self.close()


class ApiClient:
    """Calls the local API of a running node.

    Paths are relative to ``/v1``; use `quote_segment` for names and ids in them. A failure that the node reports is
    raised as `ApiError`, no node as `NotRunningError`.

    :param config: whose node.
    :param timeout_s: longest wait for an answer.
    """

    def __init__(self, config: Config, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._config = config
        self._timeout_s = timeout_s

    def get(self, path: str, /, **query: Any) -> Any:
        """Fetch something.

        :param query: query parameters; those that are None are left out.
        :returns: the decoded JSON, None if there is no body.
        """
        return self._call("GET", path + _query(query), None)

    def post(self, path: str, body: Any = None, /, *, timeout_s: float | None = None) -> Any:
        """Have something done.

        :param body: sent as JSON.
        :param timeout_s: longest wait for the answer, if it may take longer than usual.
        """
        return self._call("POST", path, body, timeout_s)

    def put(self, path: str, body: Any = None, /) -> Any:
        """Replace something."""
        return self._call("PUT", path, body)

    def patch(self, path: str, body: Any = None, /) -> Any:
        """Change something."""
        return self._call("PATCH", path, body)

    def delete(self, path: str, /) -> Any:
        """Remove something."""
        return self._call("DELETE", path, None)

    def stream(self, path: str, body: Any = None, /, **query: Any) -> EventStream:
        """Follow server-sent events. The stream is open when this returns.

        Example::

            with client.stream("/events", kinds="connection-established") as events:
                for event in events:
                    ...

        :param body: sent as JSON, with ``POST``: have something done, and follow it.
        """
        method, timeout_s = ("GET", STREAM_SILENCE_S) if body is None else ("POST", self._timeout_s)
        exchange = self._ask(method, path + _query(query), body, timeout_s)
        if exchange.status != _OK:
            with contextlib.closing(exchange):
                self._decoded(exchange)
                raise SerializationError(f"The node answered {path} with status {exchange.status} and no events.")
        exchange.wait_at_most(STREAM_SILENCE_S)
        return EventStream(exchange)

    def _call(self, method: str, path: str, body: Any, timeout_s: float | None = None) -> Any:
        with contextlib.closing(
            self._ask(method, path, body, self._timeout_s if timeout_s is None else timeout_s)
        ) as exchange:
            return self._decoded(exchange)

    def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> _Exchange:
        with contextlib.ExitStack() as undo:
            try:
                exchange = self._connect(timeout_s)
                undo.callback(exchange.close)
                exchange.ask(method, PREFIX + path, body)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise self._not_running() from error
            except PermissionError as error:
                raise ApiError("The node belongs to another user; its local API is closed to others.") from error
            except TimeoutError as error:
                raise NetworkTimeoutError(f"The node did not answer within {timeout_s:g} s.") from error
            except (h11.RemoteProtocolError, OSError) as error:
                raise ConnectionFailedError("The node closed the connection without an answer.") from error
            undo.pop_all()
        return exchange

    def _connect(self, timeout_s: float) -> _Exchange:
        path = self._config.paths.socket
        check_private(path.parent)
        endpoint = None if path.exists() else read_tcp_endpoint(self._config)
        if endpoint is not None:
            host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            connection = _connected(family, (endpoint.host, endpoint.port), timeout_s)
            return _Exchange(connection, f"{host}:{endpoint.port}", endpoint.token)
        if not has_unix_sockets():
            raise self._not_running()
        return _Exchange(_connected(socket.AF_UNIX, str(path), timeout_s), "localhost")

    def _not_running(self) -> NotRunningError:
        instance = self._config.instance
        which, option = ("", "") if instance == "default" else (f" for instance {instance}", f" --instance {instance}")
        return NotRunningError(f"No node is running{which}. Start it with: sdnet{option} start")

    def _decoded(self, exchange: _Exchange) -> Any:
        if exchange.kind == "text/event-stream":
            raise SerializationError("The node answered with events; follow them with stream().")
        text = bytearray()
        try:
            while part := exchange.read():
                text += part
                if len(text) > _MAX_ANSWER_BYTES:
                    raise SerializationError("The node's answer is too long.")
        except TimeoutError as error:
            raise NetworkTimeoutError("The node did not finish its answer in time.") from error
        except (h11.RemoteProtocolError, OSError) as error:
            raise ConnectionFailedError("The node closed the connection in the middle of an answer.") from error
        if exchange.status >= _BAD_REQUEST:
            problem = _decode(bytes(text)) if exchange.kind == PROBLEM_TYPE else None
            raise ApiError.from_problem(problem, exchange.status)
        return _decode(bytes(text)) if text else None


def _connected(family: int, address: Any, timeout_s: float) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.settimeout(min(CONNECT_TIMEOUT_S, timeout_s))
        found.connect(address)
        found.settimeout(timeout_s)
    except BaseException:
        found.close()
        raise
    return found


def _query(values: dict[str, Any]) -> str:
    given = {key: _text(value) for key, value in values.items() if value is not None}
    return "?" + urlencode(given) if given else ""


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case list() | tuple() | set() | frozenset():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _decode(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SerializationError("The node's answer is not JSON.") from error
