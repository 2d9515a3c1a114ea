"""The bounds of the sync protocol, in one place; ``docs/protocol/sync.md`` lists them."""

from __future__ import annotations

__all__ = [
    "LEAF_BITS",
    "LEAVES",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_OPERATIONS",
    "MAX_DRIFT_MS",
    "MAX_FIELDS",
    "MAX_FIELD_NAME",
    "MAX_ID",
    "MAX_KIND",
    "MAX_MEMBERS",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME",
    "MAX_NUMBER",
    "MAX_OPERATION_BYTES",
    "MAX_PUSH_BATCHES",
    "MAX_PUSH_BYTES",
    "MAX_VALUE_DEPTH",
    "WINDOW_BYTES",
]

MAX_DRIFT_MS = 24 * 3600 * 1000
"""A stamp further ahead of our wall clock than this is not accepted yet, milliseconds."""

MAX_NUMBER = (1 << 53) - 1
"""Largest sequence number, which every JSON reader can hold."""
MAX_MEMBERS = 256
"""Devices that ever were members of one library."""
MAX_NAME = 64
"""Characters in the name of a library or a member."""
MAX_KIND = 64
"""Characters in an entry's kind."""
MAX_ID = 512
"""Characters in an entry's id."""
MAX_FIELDS = 64
"""Fields in one operation, and in one entry."""
MAX_FIELD_NAME = 64
"""Characters in a field's name."""
MAX_VALUE_DEPTH = 6
"""Nesting of lists and maps in a value."""

MAX_OPERATION_BYTES = 256 << 10
"""Longest encoded operation."""
MAX_BATCH_OPERATIONS = 2048
MAX_BATCH_BYTES = 384 << 10
"""Longest encoded body of a batch."""
MAX_PUSH_BATCHES = 512
MAX_PUSH_BYTES = 512 << 10
"""Batches or entries joined in one message: another one is added while they have fewer bytes than this."""
MAX_MESSAGE_BYTES = 1 << 20
WINDOW_BYTES = 4 << 20
"""Bytes sent to a device that it has not acknowledged yet, for one library."""

LEAF_BITS = 14
LEAVES = 1 << LEAF_BITS
"""Ranges of entry keys whose fingerprints are kept."""
