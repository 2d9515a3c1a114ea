"""The errors a user or a plugin can meet.

Every one is a :class:`NetworkingError`. Messages are whole sentences for the person who reads them: what
happened, and what to do where that is known. They never contain keys, codes or payloads.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyRunningError",
    "AuthenticationFailedError",
    "ConfigurationError",
    "ConflictError",
    "ConnectionFailedError",
    "DeviceNotFoundError",
    "EncryptionError",
    "InvalidRequestError",
    "NetworkTimeoutError",
    "NetworkingError",
    "NotFoundError",
    "NotRunningError",
    "PluginError",
    "ProtocolError",
    "RefusedError",
    "SerializationError",
    "StorageError",
    "TransportError",
    "TryLaterError",
]


class NetworkingError(Exception):
    """Something in sdnet failed in a way that the caller can understand."""

    code: ClassVar[str] = "networking"
    """Stable machine-readable name, part of the local API (RFC 9457 ``type``)."""
    http_status: ClassVar[int] = 500
    """Status the local API answers with."""
    exit_code: ClassVar[int] = 1
    """Status the command line ends with: 1 failed, 2 usage, 3 daemon not running, 4 refused by the other side."""

    @property
    def detail(self) -> str:
        """The message for a person."""
        return str(self) or (self.__doc__ or self.code).split("\n", 1)[0]


class ConfigurationError(NetworkingError):
    """A setting in the configuration file, the environment or the arguments is wrong."""

    code = "configuration"
    http_status = 400
    exit_code = 2


class InvalidRequestError(NetworkingError):
    """What was asked for does not make sense as it stands."""

    code = "invalid-request"
    http_status = 400


class ConflictError(NetworkingError):
    """The thing is not in a state in which this can be done."""

    code = "conflict"
    http_status = 409


class NotFoundError(NetworkingError):
    """There is no such thing."""

    code = "not-found"
    http_status = 404


class DeviceNotFoundError(NotFoundError):
    """No paired device has that name or id, or several have."""

    code = "device-not-found"


class NotRunningError(NetworkingError):
    """No node is running for this instance."""

    code = "not-running"
    http_status = 503
    exit_code = 3


class AlreadyRunningError(NetworkingError):
    """A node is already running on this data directory."""

    code = "already-running"
    http_status = 409


class TransportError(NetworkingError):
    """The network below failed: a socket, a listener, a broken stream."""

    code = "transport"
    http_status = 502


class ConnectionFailedError(TransportError):
    """The other device could not be reached, or the connection to it ended."""

    code = "connection-failed"
    http_status = 503


class NetworkTimeoutError(NetworkingError):
    """The other side did not answer in time."""

    code = "timeout"
    http_status = 504


class ProtocolError(NetworkingError):
    """The other side sent something the protocol does not allow."""

    code = "protocol"
    http_status = 502


class SerializationError(ProtocolError):
    """Bytes from the other side, or from disk, do not decode to what they should be."""

    code = "serialization"


class AuthenticationFailedError(NetworkingError):
    """The other side did not prove who it is."""

    code = "authentication-failed"
    http_status = 403
    exit_code = 4


class RefusedError(NetworkingError):
    """The other side, or its person, said no."""

    code = "refused"
    http_status = 403
    exit_code = 4


class TryLaterError(RefusedError):
    """It cannot be taken now, for want of room. A message stays in the sender's outbox and comes again later."""


class EncryptionError(NetworkingError):
    """Sealed data did not open: wrong key, or changed on the way."""

    code = "encryption"


class StorageError(NetworkingError):
    """The data directory cannot be read or written, or what it holds is damaged."""

    code = "storage"


class PluginError(NetworkingError):
    """A plugin is missing, broken or asked for something it has not declared."""

    code = "plugin"
