"""What a QUIC connection asks of its socket."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from typing import TYPE_CHECKING, Any, Protocol

from libp2p.exceptions import BaseLibp2pError

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["QuicError", "Socket"]


class QuicError(BaseLibp2pError):
    """A QUIC connection did not come about, or is lost."""


class Socket(Protocol):
    """Where a connection's datagrams go, and where it is known by its connection ids."""

    def send(self, datagram: bytes, address: Any) -> bool:
        """Send, or drop what cannot be sent; False if it has to wait until :meth:`writable`."""

    async def writable(self) -> None:
        """Wait until sending is possible."""

    def add_id(self, connection_id: bytes, connection: Connection) -> None:
        """Datagrams with this id are the connection's."""

    def remove_id(self, connection_id: bytes) -> None:
        """They are no more."""

    def forget(self, connection: Connection, farewell: bytes | None) -> None:
        """The connection is gone; who still sends to it is told the farewell."""
