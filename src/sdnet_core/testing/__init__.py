"""Tools to test plugins and host applications with: whole nodes in one process, linked in memory, no network.

Nothing here needs pytest; with pytest, the fixtures of `sdnet_core.testing.pytest_plugin` are there by themselves. The
names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..swarm.memory import MemoryNetwork
    from .clock import VirtualClock, run_in_virtual_time, run_inline
    from .daemons import Daemon, paired_daemons
    from .events import EventRecorder, record_events
    from .links import FaultyLink
    from .nodes import LinkedNodes, MemoryDiscovery, linked_nodes, memory_node, pair
    from .protocols import Attack, Attempt, ProtocolReport, check_protocol
    from .routes import call_route

_HOMES = {
    "..swarm.memory": ("MemoryNetwork",),
    ".clock": ("VirtualClock", "run_in_virtual_time", "run_inline"),
    ".daemons": ("Daemon", "paired_daemons"),
    ".events": ("EventRecorder", "record_events"),
    ".links": ("FaultyLink",),
    ".nodes": ("LinkedNodes", "MemoryDiscovery", "linked_nodes", "memory_node", "pair"),
    ".protocols": ("Attack", "Attempt", "ProtocolReport", "check_protocol"),
    ".routes": ("call_route",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Attack",
    "Attempt",
    "Daemon",
    "EventRecorder",
    "FaultyLink",
    "LinkedNodes",
    "MemoryDiscovery",
    "MemoryNetwork",
    "ProtocolReport",
    "VirtualClock",
    "call_route",
    "check_protocol",
    "linked_nodes",
    "memory_node",
    "pair",
    "paired_daemons",
    "record_events",
    "run_in_virtual_time",
    "run_inline",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)


def __dir__() -> list[str]:
    return __all__
