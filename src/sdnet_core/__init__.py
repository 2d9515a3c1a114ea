"""sdnet: networking between a person's own devices.

The names below are the public interface. They are imported when first used, so that ``import sdnet_core`` costs
nothing: neither libp2p nor trio nor cryptography is loaded before a node is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import Clock, Randomness, Runner
    from .config import Config, load_config
    from .context import PluginContext
    from .core import NetworkingCore
    from .core_messages import WaitingMessage
    from .devices.delivery import Delivery, DeliveryOutcome, InboundMessage, Priority
    from .devices.trust import Access, RemoteDevice, Trust
    from .discovery.candidates import Candidate
    from .discovery.search import Way, WayState
    from .hookspecs import (
        ApiRequest,
        AuthorizationRequest,
        Decision,
        Route,
        ServiceSpec,
        hookimpl,
    )
    from .identity import (
        DeviceInfo,
        Fingerprint,
        HostIdentity,
        NetworkIdentity,
        is_small_order,
        peer_id_from_public_key,
        public_key_from_peer_id,
        verify,
    )
    from .metrics import PluginMetrics
    from .plugins import PluginRecord, PluginState
    from .protocols.handler import Capability, PeerStream, ProtocolHandler, ProtocolSpec
    from .storage import SecureStorage
    from .wording import format_count

_HOMES = {
    "clock": ("Clock", "Randomness", "Runner"),
    "config": ("Config", "load_config"),
    "context": ("PluginContext",),
    "core": ("NetworkingCore",),
    "core_messages": ("WaitingMessage",),
    "devices.delivery": ("Delivery", "DeliveryOutcome", "InboundMessage", "Priority"),
    "devices.trust": ("Access", "RemoteDevice", "Trust"),
    "discovery.candidates": ("Candidate",),
    "discovery.search": ("Way", "WayState"),
    "hookspecs": ("ApiRequest", "AuthorizationRequest", "Decision", "Route", "ServiceSpec", "hookimpl"),
    "identity": (
        "DeviceInfo",
        "Fingerprint",
        "HostIdentity",
        "NetworkIdentity",
        "is_small_order",
        "peer_id_from_public_key",
        "public_key_from_peer_id",
        "verify",
    ),
    "metrics": ("PluginMetrics",),
    "plugins": ("PluginRecord", "PluginState"),
    "protocols.handler": ("Capability", "PeerStream", "ProtocolHandler", "ProtocolSpec"),
    "storage": ("SecureStorage",),
    "wording": ("format_count",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Access",
    "ApiRequest",
    "AuthorizationRequest",
    "Candidate",
    "Capability",
    "Clock",
    "Config",
    "Decision",
    "Delivery",
    "DeliveryOutcome",
    "DeviceInfo",
    "Fingerprint",
    "HostIdentity",
    "InboundMessage",
    "NetworkIdentity",
    "NetworkingCore",
    "PeerStream",
    "PluginContext",
    "PluginMetrics",
    "PluginRecord",
    "PluginState",
    "Priority",
    "ProtocolHandler",
    "ProtocolSpec",
    "Randomness",
    "RemoteDevice",
    "Route",
    "Runner",
    "SecureStorage",
    "ServiceSpec",
    "Trust",
    "WaitingMessage",
    "Way",
    "WayState",
    "format_count",
    "hookimpl",
    "is_small_order",
    "load_config",
    "peer_id_from_public_key",
    "public_key_from_peer_id",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return __all__
