"""The client against a server that sends whatever a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from sdnet_core.config import Config
from sdnet_core.daemon import client as client_module
from sdnet_core.daemon.client import ApiClient, ApiError, quote_segment
from sdnet_core.errors import (
    ConnectionFailedError,
    NetworkingError,
    NetworkTimeoutError,
    NotRunningError,
    SerializationError,
    StorageError,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def answer_with(config: Config) -> Iterator[Callable[[bytes], list[bytes]]]:
    """Answers the next connection with some bytes and closes it; gives what the client will have sent."""
    config.paths.runtime.mkdir(mode=0o700)
    threads: list[threading.Thread] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(config.paths.socket))
        listener.listen()

        def prepare(data: bytes) -> list[bytes]:
            requests: list[bytes] = []

            def serve() -> None:
                connection, _ = listener.accept()
                with closing(connection):
                    connection.settimeout(5)
                    requests.append(connection.recv(65536))
                    if data != b"silence":
                        connection.sendall(data)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):  # closing before all is read would take the answer back
                            pass
                    else:
                        connection.recv(1)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            threads.append(thread)
            return requests

        yield prepare
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


def with_length(body: bytes, start: bytes = OK) -> bytes:
    return start + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_requests(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    sent = answer_with(with_length(b'{"a": 1}'))
    assert ApiClient(config).get("/x", text="a b&c", yes=True, none=None, kinds=["a", "b"]) == {"a": 1}
    assert sent[0].startswith(b"GET /v1/x?text=a+b%26c&yes=true&kinds=a%2Cb HTTP/1.1\r\n")
    sent = answer_with(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert ApiClient(config).post("/y", {"k": "é"}) is None
    assert sent[0].startswith(b"POST /v1/y HTTP/1.1\r\n")
    assert b"Content-Type: application/json\r\n" in sent[0]
    sent = answer_with(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert ApiClient(config).delete("/z") is None
    assert sent[0].startswith(b"DELETE /v1/z HTTP/1.1\r\n")


def test_problems(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\n"
    body = b'{"type": "urn:sdnet:error:refused", "status": 403, "detail": "No.", "exit_code": 4}'
    answer_with(with_length(body, head))
    with pytest.raises(ApiError) as raised:
        ApiClient(config).get("/x")
    error = raised.value
    assert (error.code, error.http_status, error.exit_code, error.detail) == ("refused", 403, 4, "No.")
    answer_with(with_length(b"<html>", b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\n"))
    with pytest.raises(ApiError, match="502"):
        ApiClient(config).get("/x")
    answer_with(with_length(body, head))
    with pytest.raises(ApiError, match="No"):
        ApiClient(config).stream("/x")
    answer_with(with_length(b'{"exit_code": "quite"}', head))
    with pytest.raises(ApiError) as raised:
        ApiClient(config).get("/x")
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ConnectionFailedError),
        (b"nonsense\r\n\r\n", ConnectionFailedError),
        (with_length(b"{}")[:-1], ConnectionFailedError),
        (with_length(b"{nope"), SerializationError),
        (STREAM, SerializationError),
        (b"silence", NetworkTimeoutError),
    ],
)
def test_bad_answers(
    config: Config,
    answer_with: Callable[[bytes], list[bytes]],
    data: bytes,
    expected: type[NetworkingError],
) -> None:
    answer_with(data)
    with pytest.raises(expected):
        ApiClient(config, timeout_s=0.1).get("/x")


def test_event_streams(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    text = (
        b": open\n\n"
        b'data: {"a":\ndata: 1}\n\n'
        b": keepalive\n\n"
        b'id: 7\nretry: 10\nevent: message\ndata:"no space"\r\n\r\n'
        b"event: empty\n\n"
        b'data: "\xc3\xa9"\n\n'
        b'data: "unfinished"\n'
    )
    answer_with(STREAM + text)
    with ApiClient(config).stream("/events") as events:
        assert list(events) == [{"a": 1}, "no space", "é"]
    pieces = b"".join(b"1\r\n" + text[i : i + 1] + b"\r\n" for i in range(len(text)))
    answer_with(CHUNKED + pieces + b"0\r\n\r\n")
    assert list(ApiClient(config).stream("/events")) == [{"a": 1}, "no space", "é"]


def test_a_stream_of_what_is_to_be_done(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    sent = answer_with(STREAM + b'data: {"state": "done"}\n\n')
    assert list(ApiClient(config).stream("/x", {"k": "v"}, watch=True)) == [{"state": "done"}]
    head, _, content = sent[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x?watch=true HTTP/1.1\r\n")
    assert content == b'{"k": "v"}'


def test_a_stream_that_breaks_off(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    answer_with(CHUNKED + b"9\r\ndata: 1\n\n\r\n")
    events = ApiClient(config).stream("/events")
    assert next(events) == 1
    with pytest.raises(ConnectionFailedError):
        next(events)


def test_a_problem_in_a_stream(config: Config, answer_with: Callable[[bytes], list[bytes]]) -> None:
    answer_with(
        STREAM + b'data: 1\n\nevent: problem\ndata: {"type": "urn:sdnet:error:refused", "exit_code": 4}\n\ndata: 2\n\n'
    )
    events = ApiClient(config).stream("/events")
    assert next(events) == 1
    with pytest.raises(ApiError) as raised:
        next(events)
    assert raised.value.exit_code == 4
    assert list(events) == []


def test_an_endless_line(
    config: Config, answer_with: Callable[[bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MAX_LINE_BYTES", 1000)
    answer_with(STREAM + b"data: " + b"x" * 5000)
    with pytest.raises(SerializationError, match="too long"):
        next(ApiClient(config).stream("/events"))


def test_a_silent_stream(
    config: Config, answer_with: Callable[[bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STREAM_SILENCE_S", 0.05)
    answer_with(b"silence")
    with pytest.raises(NetworkTimeoutError):
        ApiClient(config).stream("/events")


def test_nobody_there(config: Config) -> None:
    config.paths.runtime.mkdir(mode=0o700)
    with pytest.raises(NotRunningError, match="sdnet --instance work start"):
        ApiClient(config).get("/status")
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(config.paths.socket))
    with pytest.raises(NotRunningError):
        ApiClient(config).get("/status")
    config.paths.socket.unlink()
    config.paths.runtime.rmdir()
    with pytest.raises(NotRunningError):
        ApiClient(config).get("/status")


def test_a_runtime_directory_that_others_can_write_to_is_not_trusted(config: Config) -> None:
    config.paths.runtime.mkdir(mode=0o700)
    config.paths.runtime.chmod(0o777)
    with pytest.raises(StorageError, match="chmod 700"):
        ApiClient(config).get("/status")
    config.paths.runtime.chmod(0o700)
    with pytest.raises(NotRunningError):
        ApiClient(config).get("/status")


@pytest.mark.parametrize("text", ["a/b", "..", ".", "a b", "ü%", "...x"])
def test_quoted_segments(text: str) -> None:
    from urllib.parse import unquote

    quoted = quote_segment(text)
    assert unquote(quoted) == text
    assert not set("/ ?#") & set(quoted)
    assert quoted not in (".", "..")
