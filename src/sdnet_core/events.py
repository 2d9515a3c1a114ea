"""What happens in a node, as typed events; :mod:`sdnet_core.event_bus` brings them to whoever listens.

Plugins define their own events as further subclasses of :class:`NetworkEvent`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from .event_bus import EventBus, EventsDropped, NetworkEvent, Subscription, event_kinds

__all__ = [
    "ApprovalDecided",
    "ApprovalRequested",
    "AuthenticationFailed",
    "ConnectionEstablished",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionStateChanged",
    "DeviceConfirmed",
    "DevicePaired",
    "DeviceRemoved",
    "DeviceRenamed",
    "DeviceRevoked",
    "EventBus",
    "EventsDropped",
    "MessageReceived",
    "NetworkEvent",
    "NodeStarted",
    "PairingEnded",
    "PairingStarted",
    "PeerDisconnected",
    "PeerDiscovered",
    "PeerRefused",
    "PluginFailed",
    "PluginStateChanged",
    "SearchProgress",
    "StoreRecovered",
    "Subscription",
    "TrustChanged",
    "VaultChanged",
    "event_kinds",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted(NetworkEvent):
    """The node listens and is ready."""

    kind = "node-started"
    audited = True
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDiscovered(NetworkEvent):
    """A peer was seen on the network."""

    kind = "peer-discovered"
    peer_id: str
    addresses: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress(NetworkEvent):
    """A way of finding peers stands elsewhere than before.

    :param way: ``mdns`` for the local network, ``dht`` for meeting points and what they know.
    :param state: ``starting``, ``looking``, ``off``, ``unreachable`` or ``failed``.
    :param detail: more for a person, one sentence; empty if there is none.
    """

    kind = "search-progress"
    way: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDisconnected(NetworkEvent):
    """The last connection to a peer, paired or not, is gone."""

    kind = "peer-disconnected"
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEstablished(NetworkEvent):
    """A paired device is connected and has proven itself."""

    kind = "connection-established"
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost(NetworkEvent):
    """A paired device is no longer connected."""

    kind = "connection-lost"
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFailed(NetworkEvent):
    """An attempt to connect to a paired device failed; it will be tried again."""

    kind = "connection-error"
    device_id: uuid.UUID
    device_name: str
    reason: str
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStateChanged(NetworkEvent):
    """The way to a paired device has come to another state.

    :param state: ``connecting``, ``authenticating``, ``connected``, ``reconnecting``, ``disconnected`` or ``failed``.
    :param reason: why, where there is more to say.
    """

    kind = "connection-state"
    device_id: uuid.UUID
    device_name: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePaired(NetworkEvent):
    """A device was stored as paired."""

    kind = "device-paired"
    audited = True
    device_id: uuid.UUID
    device_name: str
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRemoved(NetworkEvent):
    """A device is no longer paired: it was revoked or forgotten, or it told us that it has forgotten us."""

    kind = "device-removed"
    audited = True
    device_id: uuid.UUID
    device_name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingStarted(NetworkEvent):
    """A pairing with a peer has begun; ends with `DevicePaired` or `PairingEnded`."""

    kind = "peer-pairing-started"
    peer_id: str
    session_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingEnded(NetworkEvent):
    """A pairing with a peer has ended without success."""

    kind = "peer-pairing-ended"
    peer_id: str
    session_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfirmed(NetworkEvent):
    """The other side has confirmed a pairing that was pending."""

    kind = "device-confirmed"
    audited = True
    device_id: uuid.UUID
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRevoked(NetworkEvent):
    """A person has revoked a device: its connections are cut and it is refused from now on.

    :param told: whether it was connected, so that it could be told.
    """

    kind = "device-revoked"
    audited = True
    device_id: uuid.UUID
    device_name: str
    peer_id: str
    told: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChanged(NetworkEvent):
    """A device is trusted more or less than before."""

    kind = "trust-changed"
    audited = True
    device_id: uuid.UUID
    device_name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRenamed(NetworkEvent):
    """A device has got another name on this one."""

    kind = "device-renamed"
    audited = True
    device_id: uuid.UUID
    old_name: str
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused(NetworkEvent):
    """Somebody was refused. Told at a bounded rate.

    :param what: was asked for: ``connection``, ``session``, or a protocol's name.
    :param device_id: None for a stranger.
    :param count: refusals of that kind since this was last told.
    """

    kind = "peer-refused"
    audited = True
    peer_id: str
    device_id: uuid.UUID | None
    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationFailed(NetworkEvent):
    """Somebody did not prove to be the device it should be. Told at a bounded rate.

    :param count: failures since this was last told.
    """

    kind = "authentication-failed"
    audited = True
    peer_id: str
    device_id: uuid.UUID | None
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested(NetworkEvent):
    """A device waits for a person to allow what it asks for.

    :param protocol: the protocol's name.
    :param what: more about it, for the person; may be empty.
    :param expires_at: when it counts as denied, seconds since the epoch.
    """

    kind = "approval-requested"
    audited = True
    approval_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    protocol: str
    what: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided(NetworkEvent):
    """What a device waited for was allowed or not.

    :param decision: ``approved``, ``denied``, ``timed-out``, or ``withdrawn`` when the device left before.
    """

    kind = "approval-decided"
    audited = True
    approval_id: uuid.UUID
    device_id: uuid.UUID
    device_name: str
    protocol: str
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultChanged(NetworkEvent):
    """Another secret protects what lies on disk.

    :param mode: what protects it now, as `sdnet status` shows it.
    """

    kind = "vault-changed"
    audited = True
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered(NetworkEvent):
    """Something on disk was damaged, or was older than it should be, and was put right.

    :param detail: what and how, for a person.
    """

    kind = "store-recovered"
    audited = True
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived(NetworkEvent):
    """A protocol's handler has taken a request or messages from a paired device. Carries no content.

    :param protocol: its name.
    :param size_bytes: of all of them together.
    :param count: messages that came together and were taken at once.
    """

    kind = "message-received"
    device_id: uuid.UUID
    protocol: str
    size_bytes: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStateChanged(NetworkEvent):
    """A plugin was stopped, quarantined or started while the node runs.

    :param state: as ``sdnet plugins`` shows it.
    :param reason: empty if it was started.
    """

    kind = "plugin-state-changed"
    plugin: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailed(NetworkEvent):
    """A plugin raised where it should not; the node goes on."""

    kind = "plugin-failed"
    plugin: str
    reason: str
