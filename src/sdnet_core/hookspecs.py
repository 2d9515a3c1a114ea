"""Every hook of sdnet, and the records that hooks return.

A plugin is a class named by an entry point of the group ``sdnet.plugins.v1``; each node makes its own instance. Hooks
are plain functions (an ``async def`` hook is refused at load); what runs asynchronously is in the records they return.

Example::

    from sdnet_core import ProtocolHandler, ProtocolSpec, hookimpl


    class EchoHandler(ProtocolHandler):
        protocol_name = "echo"

        async def handle_request(self, device, data):
            return data


    class EchoPlugin:
        @hookimpl
        def sdnet_protocols(self, ctx):
            return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler())]
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

from .errors import InvalidRequestError

if TYPE_CHECKING:
    import click

    from .context import PluginContext
    from .devices.trust import RemoteDevice
    from .events import NetworkEvent
    from .protocols.handler import ProtocolSpec

__all__ = [
    "ENTRY_POINT_GROUP",
    "ApiRequest",
    "AuthorizationRequest",
    "Decision",
    "Route",
    "SdnetSpecs",
    "ServiceSpec",
    "hookimpl",
    "hookspec",
]

ENTRY_POINT_GROUP = "sdnet.plugins.v1"
"""Entry-point group; the number is the major version of this module's contract."""

hookspec = pluggy.HookspecMarker("sdnet")
hookimpl = pluggy.HookimplMarker("sdnet")
"""Marks a plugin's method as a hook."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A plugin's background task and its Python interface, returned from ``sdnet_services``.

    :param name: unique within the plugin.
    :param run: ``async def run(*, task_status)``: called when the node starts; calls ``task_status.started()`` when it
        is ready (the node waits 10 s for that), runs until it is cancelled when the node stops. None for no task.
    :param api: the object that other plugins and host applications get with ``get_service(type(api))``.
    """

    name: str
    run: Callable[..., Awaitable[None]] | None = None
    api: object | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request to a plugin's route in the local API.

    :param path: values of the ``{names}`` in the route's path.
    :param query: the query parameters, last value of each.
    :param body: the decoded JSON body, an empty mapping if there was none.
    :param last_event_id: where a client that follows a stream of events was when it lost it; empty for nowhere.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = field(default_factory=dict)
    last_event_id: str = ""

    def body_as(self, type_: type[T]) -> T:
        """The body checked against a type.

        :raises InvalidRequestError: it does not fit; says which field.
        """
        try:
            return msgspec.convert(self.body, type_)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"The request's body is not right: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of the local API under ``/v1/<plugin>/``, returned from ``sdnet_routes``.

    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: below the plugin's own prefix, such as ``/transfers/{id}``.
    :param endpoint: takes an `ApiRequest`; returns plain values, dataclasses or msgspec structs (answered as JSON), or
        an async iterator of such (answered as server-sent events, closed when the client goes away or the node stops).
        A `NetworkingError` it raises becomes a problem document (RFC 9457).
    :param summary: one line for the reference.
    """

    method: str
    path: str
    endpoint: Callable[[ApiRequest], Awaitable[Any | AsyncIterator[Any]]]
    summary: str = ""


class Decision(StrEnum):
    """What an ``sdnet_authorize`` hook says. None means no opinion. Deny wins over ask, ask over allow."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """A device that passed the core's own gate is about to open a stream.

    :param protocol_name: the protocol it asks for.
    :param device: the paired device; None for a stranger on a protocol that takes strangers.
    """

    protocol_name: str
    peer_id: str
    device: RemoteDevice | None


class SdnetSpecs:
    """The hooks. Implement those you need; a parameter you do not need may be left out."""

    @hookspec
    def sdnet_config(self) -> type[msgspec.Struct]:  # type: ignore[empty-body]
        """Give the type of the plugin's ``[plugins.<name>]`` table; the validated value is ``ctx.config``."""

    @hookspec
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:  # type: ignore[empty-body]
        """Give background tasks and Python interfaces. Called once a node, before ``sdnet_protocols``."""

    @hookspec
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:  # type: ignore[empty-body]
        """Give the protocols this plugin serves. Called once a node."""

    @hookspec
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:  # type: ignore[empty-body]
        """Give routes of the local API. Called once a node that has a local API."""

    @hookspec
    def sdnet_commands(self) -> Iterable[click.Command]:  # type: ignore[empty-body]
        """Give commands for ``sdnet``. Called without a node; must not import anything heavy."""

    @hookspec
    def sdnet_event(self, ctx: PluginContext, event: NetworkEvent) -> None:
        """Observe what happens. Called from the event loop: return at once."""

    @hookspec
    def sdnet_authorize(self, ctx: PluginContext, request: AuthorizationRequest) -> Decision | None:
        """Narrow what the core's gate allows.

        Every plugin is asked. One ``DENY``, or an exception, denies; no plugin can allow what the core denies.
        """
