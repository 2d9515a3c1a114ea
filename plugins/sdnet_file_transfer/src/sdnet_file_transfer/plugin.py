"""The hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from sdnet_core import hookimpl

if TYPE_CHECKING:
    import click

    from sdnet_core import PluginContext, ProtocolSpec, Route, ServiceSpec

    from .service import FileTransferService

__all__ = ["FileTransferPlugin"]


class FileTransferPlugin:
    """Files and folders to and from paired devices."""

    _service: FileTransferService

    @hookimpl
    def sdnet_config(self) -> type[msgspec.Struct]:
        from .config import FileTransferConfig

        return FileTransferConfig

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        from sdnet_core import ServiceSpec

        from .service import FileTransferService

        self._service = FileTransferService(ctx)
        return [
            ServiceSpec(name="transfers", run=self._service.run, api=self._service),
            ServiceSpec(name="contents", api=self._service.contents),
        ]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        from .handler import content_spec, fetch_spec, protocol_spec

        return [protocol_spec(self._service), fetch_spec(self._service), content_spec(self._service.contents)]

    @hookimpl
    def sdnet_routes(self, ctx: PluginContext) -> Iterable[Route]:
        from .api import routes

        return routes(self._service, ctx)

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        from .cli import send, transfers
        from .cli_shares import get, ls, share

        return [send, transfers, share, ls, get]
