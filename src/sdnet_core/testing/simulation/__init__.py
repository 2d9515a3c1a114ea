"""Whole networks under one seed and in virtual time: the same seed gives the same events, byte for byte.

Devices are real nodes, down to the swarm, which is the one in memory, and the disk, which forgets what was not synced
when its power is cut. ``python -m sdnet_core.testing.simulation --seeds 100`` runs some.
"""

from .scenario import Outcome, run_seed

__all__ = ["Outcome", "run_seed"]
