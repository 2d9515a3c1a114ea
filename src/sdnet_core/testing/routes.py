"""Calls the plugins' routes of the local API without a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ..errors import NotFoundError
from ..hookspecs import ApiRequest

if TYPE_CHECKING:
    from ..core import NetworkingCore

__all__ = ["call_route"]


async def call_route(core: NetworkingCore, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Call a plugin's route of a running node as a client of the local API would.

    Example::

        answer = await call_route(node, "POST", "/v1/echo/echoes", {"device": "node1", "text": "hello"})

    :param path: with the plugin's prefix and, if need be, a query; names in it are percent-encoded.
    :param body: plain values, as JSON has them.
    :returns: plain values, as they would come back as JSON; for a route that follows something, its async iterator.
    :raises NotFoundError: no plugin has that route.
    :raises NetworkingError: what the route raised.
    """
    parts = urlsplit(path)
    for plugin, route in core.routes():
        template = f"/v1/{plugin.replace('_', '-')}/{route.path.strip('/')}".rstrip("/")
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
        match = re.fullmatch(pattern, parts.path.rstrip("/"))
        if match is None or route.method.upper() != method.upper():
            continue
        result = await route.endpoint(
            ApiRequest(
                path={name: unquote(value) for name, value in match.groupdict().items()},
                query=dict(parse_qsl(parts.query)),
                body=msgspec.json.decode(msgspec.json.encode({} if body is None else body)),
            )
        )
        if hasattr(result, "__aiter__"):
            return result
        return msgspec.json.decode(msgspec.json.encode(result))
    raise NotFoundError(f"No plugin answers {method.upper()} {parts.path}.")
