"""The protocols a node serves, by libp2p protocol id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import PluginError
from .handler import Access, Capability, ProtocolSpec

__all__ = ["ProtocolRegistry", "RegisteredProtocol"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RESERVED = frozenset({"session"})


@dataclass(frozen=True, slots=True)
class RegisteredProtocol:
    """A protocol and the plugin that serves it."""

    spec: ProtocolSpec
    plugin: str
    distribution: str


class ProtocolRegistry:
    """Which handler serves which protocol id."""

    def __init__(self) -> None:
        self._protocols: dict[str, RegisteredProtocol] = {}

    def check(self, spec: ProtocolSpec, *, plugin: str, distribution: str) -> None:
        """Whether a protocol can be registered.

        :raises PluginError: its name, version or limits are wrong, it needs a capability it does not declare, or
            another plugin serves its id already (both distributions are named).
        """
        if not _NAME.fullmatch(spec.protocol_name) or len(spec.protocol_name) > 64 or spec.protocol_name in _RESERVED:
            raise PluginError(
                f"{spec.protocol_name!r} cannot be a protocol name: up to 64 lower-case letters, digits and single "
                f"hyphens, and not one of {', '.join(sorted(_RESERVED))}."
            )
        if spec.version < 1 or min(spec.max_message_bytes, spec.max_streams, spec.max_streams_per_peer) < 1:
            raise PluginError(f"{spec.protocol_id}: the version and every limit must be at least 1.")
        if not spec.max_streams_per_s > 0:
            raise PluginError(f"{spec.protocol_id}: max_streams_per_s must be above 0.")
        if spec.access is Access.STRANGER and Capability.STRANGERS not in spec.capabilities:
            raise PluginError(
                f"{spec.protocol_id} is open to strangers, but the capability {Capability.STRANGERS.value!r} is not "
                "declared."
            )
        other = self._protocols.get(spec.protocol_id)
        if other is not None:
            raise PluginError(
                f"{spec.protocol_id} is served by plugin {other.plugin} ({other.distribution}) already; {plugin} "
                f"({distribution}) cannot serve it too. Disable one of the two."
            )

    def register(self, spec: ProtocolSpec, *, plugin: str, distribution: str) -> None:
        """Add a protocol.

        :raises PluginError: as `check`.
        """
        self.check(spec, plugin=plugin, distribution=distribution)
        spec.handler.max_message_bytes = spec.max_message_bytes
        self._protocols[spec.protocol_id] = RegisteredProtocol(spec, plugin, distribution)

    def unregister(self, plugin: str) -> tuple[str, ...]:
        """Remove a plugin's protocols.

        :returns: their ids.
        """
        gone = tuple(i for i, registered in self._protocols.items() if registered.plugin == plugin)
        for protocol_id in gone:
            del self._protocols[protocol_id]
        return gone

    def get(self, protocol_id: str) -> RegisteredProtocol | None:
        """The protocol of an id, None if nobody serves it."""
        return self._protocols.get(protocol_id)

    def by_name(self, protocol_name: str) -> RegisteredProtocol | None:
        """The newest version of a protocol that we serve."""
        versions = [r for r in self if r.spec.protocol_name == protocol_name]
        return max(versions, key=lambda r: r.spec.version, default=None)

    def versions(self, protocol_name: str) -> tuple[int, ...]:
        """The versions of a protocol that we serve, newest first."""
        return tuple(sorted((r.spec.version for r in self if r.spec.protocol_name == protocol_name), reverse=True))

    def __iter__(self) -> Iterator[RegisteredProtocol]:
        return iter(tuple(self._protocols.values()))
