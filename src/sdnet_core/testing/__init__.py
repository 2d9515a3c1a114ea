"""Tools to test plugins and host applications with: whole nodes in one process, linked in memory, no network."""

from __future__ import annotations

from ..swarm.memory import MemoryNetwork
from .nodes import LinkedNodes, MemoryDiscovery, linked_nodes, memory_node, pair

__all__ = ["LinkedNodes", "MemoryDiscovery", "MemoryNetwork", "linked_nodes", "memory_node", "pair"]
