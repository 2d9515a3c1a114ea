"""The local API's client: standard library only, quick to import, blocking."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from ..config import Config
from ..errors import ConnectionFailedError, NetworkTimeoutError, NotRunningError, SerializationError
from .api_error import ApiError, quote_segment
from .endpoint import TcpEndpoint, check_private, has_unix_sockets, read_tcp_endpoint

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


class EventStream(Iterator[Any]):
    """Server-sent events as they come, each one's decoded data. Ends when the node ends it; close it to leave early."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
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
        self._response.close()
        self._connection.close()

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
            while part := self._response.read1(65536):
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > _MAX_LINE_BYTES:
                    raise SerializationError("The node sent an event that is too long.")
                for line in lines:
                    yield line.decode("utf-8", "replace").removesuffix("\r")
        except TimeoutError as error:
            raise NetworkTimeoutError("The node has gone silent.") from error
        except (http.client.HTTPException, OSError) as error:
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

    def stream(self, path: str, /, **query: Any) -> EventStream:
        """Follow server-sent events. The stream is open when this returns.

        Example::

            with client.stream("/events", kinds="connection-established") as events:
                for event in events:
                    ...
        """
        connection, response = self._send("GET", path + _query(query), None, STREAM_SILENCE_S)
        if response.status != http.client.OK:
            with contextlib.closing(connection):
                self._decoded(response)
                raise SerializationError(f"The node answered {path} with status {response.status} and no events.")
        return EventStream(connection, response)

    def _call(self, method: str, path: str, body: Any, timeout_s: float | None = None) -> Any:
        connection, response = self._send(method, path, body, self._timeout_s if timeout_s is None else timeout_s)
        with contextlib.closing(connection):
            return self._decoded(response)

    def _send(
        self, method: str, path: str, body: Any, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection, headers = self._connection(timeout_s)
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, PREFIX + path, content, headers)
            return connection, connection.getresponse()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise self._not_running() from error
        except PermissionError as error:
            connection.close()
            raise ApiError("The node belongs to another user; its local API is closed to others.") from error
        except TimeoutError as error:
            connection.close()
            raise NetworkTimeoutError(f"The node did not answer within {timeout_s:g} s.") from error
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise ConnectionFailedError("The node closed the connection without an answer.") from error

    def _connection(self, timeout_s: float) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        path = self._config.paths.socket
        try:
            check_private(path.parent)
            endpoint = None if path.exists() else read_tcp_endpoint(self._config)
        except FileNotFoundError as error:
            raise self._not_running() from error
        if endpoint is not None:
            return _TcpConnection(endpoint, timeout_s), {"Authorization": f"Bearer {endpoint.token}"}
        if not has_unix_sockets():
            raise self._not_running()
        return _UnixConnection(path, timeout_s), {}

    def _not_running(self) -> NotRunningError:
        instance = self._config.instance
        which, option = ("", "") if instance == "default" else (f" for instance {instance}", f" --instance {instance}")
        return NotRunningError(f"No node is running{which}. Start it with: sdnet{option} start")

    def _decoded(self, response: http.client.HTTPResponse) -> Any:
        kind = response.headers.get_content_type()
        if kind == "text/event-stream":
            raise SerializationError("The node answered with events; follow them with stream().")
        try:
            text = response.read(_MAX_ANSWER_BYTES + 1)
        except TimeoutError as error:
            raise NetworkTimeoutError("The node did not finish its answer in time.") from error
        except (http.client.HTTPException, OSError) as error:
            raise ConnectionFailedError("The node closed the connection in the middle of an answer.") from error
        if len(text) > _MAX_ANSWER_BYTES:
            raise SerializationError("The node's answer is too long.")
        if response.length:
            raise ConnectionFailedError("The node closed the connection in the middle of an answer.")
        if response.status >= http.client.BAD_REQUEST:
            raise ApiError.from_problem(_decode(text) if kind == PROBLEM_TYPE else None, response.status)
        return _decode(text) if text else None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = _connected(
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(self._path), float(self.timeout or 0)
        )


class _TcpConnection(http.client.HTTPConnection):
    def __init__(self, endpoint: TcpEndpoint, timeout_s: float) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=timeout_s)

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.sock = _connected(
            lambda: socket.socket(family, socket.SOCK_STREAM), (self.host, self.port), float(self.timeout or 0)
        )


def _connected(make: Callable[[], socket.socket], address: Any, timeout_s: float) -> socket.socket:
    found = make()
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
