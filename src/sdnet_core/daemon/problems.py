"""Errors as problem documents (RFC 9457), and values as JSON."""

from __future__ import annotations

import inspect
import logging
from pathlib import PurePath
from typing import Any

import msgspec
from starlette.responses import Response

from ..errors import InvalidRequestError, NetworkingError
from ..events import NetworkEvent

__all__ = ["PROBLEM_TYPE", "encode_json", "http_problem", "problem_of", "problem_response", "single_cause"]

PROBLEM_TYPE = "application/problem+json"

_logger = logging.getLogger(__name__)


def encode_json(value: Any) -> bytes:
    """Encode plain values, dataclasses, msgspec structs, UUIDs, paths and events.

    :raises TypeError: something else is in it.
    """
    return msgspec.json.encode(value.to_dict() if isinstance(value, NetworkEvent) else value, enc_hook=_encode_other)


def problem_of(error: BaseException) -> dict[str, Any]:
    """Describe an error to a client; one that nobody foresaw is logged and described without its details."""
    cause = single_cause(error)
    if isinstance(cause, NetworkingError):
        return _problem(cause.code, _title(type(cause)), cause.http_status, cause.detail, cause.exit_code)
    _logger.error("Unexpected error in the local API", exc_info=error)
    return _problem(
        "internal", "The node made a mistake.", 500, "The node made a mistake; its log says more.", exit_code=1
    )


def problem_response(problem: dict[str, Any] | BaseException, *, headers: dict[str, str] | None = None) -> Response:
    """Answer with a problem document."""
    document = problem_of(problem) if isinstance(problem, BaseException) else problem
    return Response(encode_json(document), document["status"], headers, PROBLEM_TYPE)


def http_problem(status: int, detail: str) -> dict[str, Any]:
    """The problem document of an error of HTTP itself, such as an unknown path."""
    code, title = _HTTP_PROBLEMS.get(status, ("invalid-request", _title(InvalidRequestError)))
    return _problem(code, title, status, detail, exit_code=1)


def single_cause(error: BaseException) -> BaseException:
    """Look through exception groups of one, and through larger ones for an error that is ours."""
    while isinstance(error, BaseExceptionGroup):
        ours = [inner for inner in error.exceptions if isinstance(inner, NetworkingError)]
        if not ours and len(error.exceptions) > 1:
            return error
        error = (ours or error.exceptions)[0]
    return error


_HTTP_PROBLEMS = {
    401: ("unauthorized", "The bearer token is missing or wrong."),
    403: ("forbidden", "This request is not allowed here."),
    404: ("not-found", "There is no such thing."),
    405: ("method-not-allowed", "This cannot be done with that method."),
    408: ("timeout", "The request did not come in time."),
    413: ("too-large", "The request's body is too large."),
}


def _problem(code: str, title: str, status: int, detail: str, exit_code: int) -> dict[str, Any]:
    return {
        "type": f"urn:sdnet:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "exit_code": exit_code,
    }


def _title(type_: type[NetworkingError]) -> str:
    return (inspect.getdoc(type_) or type_.code).split("\n", 1)[0]


def _encode_other(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")
