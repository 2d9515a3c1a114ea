"""Collaborative documents as field values: a mark, and the state of a Yjs document.

Whatever devices wrote side by side is merged, and all replicas merge alike. A document is only ever handled in the
thread that made it, so everything here makes documents of its own and lets go of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdnet_core.errors import SerializationError

__all__ = ["MAX_DOCUMENT_BYTES", "MAX_UPDATE_BYTES", "check_update", "document_state", "is_document", "merge_documents"]

MARK = b"\xffsdnet-document\x01"
MAX_DOCUMENT_BYTES = 192 << 10
"""Longest state of a document: it has to fit into one operation."""
MAX_UPDATE_BYTES = 60 << 10
"""Longest update that is sent live; longer ones come with the state."""


def is_document(value: Any) -> bool:
    """Whether a field's value says that it is a document."""
    return type(value) is bytes and value.startswith(MARK)


def document_state(value: Any) -> bytes | None:
    """The state in a field's value; None if it is none, or is longer than it may be."""
    if not is_document(value) or len(value) > MAX_DOCUMENT_BYTES + len(MARK):
        return None
    return bytes(value[len(MARK) :])


def document_value(state: bytes) -> bytes:
    """A field's value for a state."""
    return MARK + state


def check_update(update: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> None:
    """Check that an update, or a state, from another device is one.

    :raises SerializationError: it is not.
    """
    from pycrdt import Doc

    if len(update) > max_bytes:
        raise SerializationError("An update of a document is too long.")
    try:
        # In a document of its own: whatever it does, it does not do it to ours.
        Doc().apply_update(update)  # type: ignore[no-untyped-call, unused-ignore]
    except Exception as error:
        raise SerializationError("An update of a document is malformed.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what the library's own code raises when it gives up
            raise
        raise SerializationError("An update of a document is malformed.") from error


def merge_documents(values: Sequence[Any]) -> bytes | None:
    """What several documents that were written side by side are together; those that are malformed do not count.

    :returns: a field's value, the same for whatever order; None if none of them makes sense.
    """
    from pycrdt import Doc

    states = []
    for value in values:
        state = document_state(value)
        if state is None:
            continue
        try:
            check_update(state)
        except SerializationError:
            continue
        states.append(state)
    if not states:
        return None
    if len(states) == 1:
        return document_value(states[0])
    merged: Doc[Any] = Doc()
    for state in sorted(states):
        merged.apply_update(state)
    return document_value(merged.get_update())
