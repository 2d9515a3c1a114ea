"""What counts when devices wrote the same field without knowing of each other (pure).

All replicas see the same writes and choose alike, so a strategy must depend on nothing but them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cbor2

from .clock import stamp_time_s
from .document_values import is_document, merge_documents
from .records import Conflict, Entry, Value
from .state import EntryState, Write

__all__ = ["BUILT_IN", "KEEP_BOTH", "LAST_WRITER", "Merge", "conflicts_of", "entry_of", "strategy_of"]

Merge = Callable[[Sequence[Any]], Any]
"""A custom strategy: the concurrent values, earliest first, to the one that counts. The same on all devices."""

LAST_WRITER, KEEP_BOTH, DOCUMENT = "last-writer", "keep-both", "document"


def _last(values: Sequence[Any]) -> Any:
    return values[-1]


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _order(value: Any) -> tuple[int, Any]:
    """A total order over everything that a field can hold."""
    if isinstance(value, int | float):
        return 1, value
    return (0, b"") if value is None else (2, cbor2.dumps(value, canonical=True))


def _max(values: Sequence[Any]) -> Any:
    return max(values, key=_order)


def _min(values: Sequence[Any]) -> Any:
    return min(values, key=_order)


def _union(values: Sequence[Any]) -> Any:
    """All items of lists, those of earlier ones first; what is no list counts as its only item."""
    result: list[Any] = []
    for value in values:
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if not any(type(item) is type(other) and item == other for other in result):
                result.append(item)
    return result


BUILT_IN: Mapping[str, Merge] = {
    LAST_WRITER: _last,
    "first-writer": _first,
    KEEP_BOTH: _last,
    "max": _max,
    "min": _min,
    "union": _union,
}
"""Strategies by name. ``keep-both`` shows the last writer's value and leaves the conflict to a person."""


def strategy_of(settings: Mapping[str, Mapping[str, Any]], kind: str, name: str) -> str:
    """The name of the strategy for a field."""
    table = settings.get(kind) or settings.get("*") or {}
    found = table.get(name) or table.get("*") or KEEP_BOTH
    return found if isinstance(found, str) else KEEP_BOTH


def _strategy(settings: Mapping[str, Mapping[str, Any]], kind: str, name: str, writes: Sequence[Write]) -> str:
    """Documents are merged, whatever was decided about the field."""
    if all(is_document(write.value) for write in writes):
        return DOCUMENT
    return strategy_of(settings, kind, name)


def _value(writes: Sequence[Write], strategy: str, merges: Mapping[str, Merge]) -> Any:
    if len(writes) == 1:
        return writes[0].value
    if strategy == DOCUMENT:
        merged = merge_documents([write.value for write in writes])
        return writes[-1].value if merged is None else merged
    merge = BUILT_IN.get(strategy) or merges.get(strategy, _last)
    return merge([write.value for write in writes])


def entry_of(state: EntryState, settings: Mapping[str, Mapping[str, Any]], merges: Mapping[str, Merge]) -> Entry | None:
    """An entry for those who ask; None if it is deleted."""
    if not state.visible:
        return None
    fields = {}
    last: Write | None = None
    conflicted = False
    for name, writes in state.fields.items():
        if last is None or writes[-1][:3] > last[:3]:
            last = writes[-1]
        if len(writes) > 1:
            strategy = _strategy(settings, state.kind, name, writes)
            conflicted = conflicted or strategy == KEEP_BOTH
            value = _value(writes, strategy, merges)
        else:
            value = writes[0].value
        if value is not None:
            fields[name] = value
    assert last is not None
    return Entry(
        kind=state.kind,
        id=state.id,
        fields=fields,
        modified_at=stamp_time_s(last.stamp),
        author=uuid.UUID(bytes=last.author),
        conflicted=conflicted,
    )


def conflicts_of(
    state: EntryState, settings: Mapping[str, Mapping[str, Any]], merges: Mapping[str, Merge]
) -> list[Conflict]:
    """The conflicts of an entry, by field."""
    if state.deletions and state.fields:
        edits = sorted({write[:3] for writes in state.fields.values() for write in writes})
        values = [
            Value(
                index=index,
                value={
                    name: write.value for name, writes in state.fields.items() for write in writes if write[:3] == place
                },
                author=uuid.UUID(bytes=place[1]),
                at=stamp_time_s(place[0]),
            )
            for index, place in enumerate(edits)
        ]
        deletion = state.deletions[-1]
        values.append(
            Value(
                index=len(values),
                value=None,
                author=uuid.UUID(bytes=deletion.author),
                at=stamp_time_s(deletion.stamp),
                deletes=True,
            )
        )
        return [
            Conflict(
                kind=state.kind, id=state.id, field="", sides=tuple(values), settled=False, strategy="deleted-stays"
            )
        ]
    found = []
    for name, writes in sorted(state.fields.items()):
        if len(writes) > 1:
            strategy = _strategy(settings, state.kind, name, writes)
            sides = tuple(
                Value(
                    index=index,
                    value=write.value,
                    author=uuid.UUID(bytes=write.author),
                    at=stamp_time_s(write.stamp),
                )
                for index, write in enumerate(writes)
            )
            found.append(
                Conflict(
                    kind=state.kind,
                    id=state.id,
                    field=name,
                    sides=sides,
                    settled=strategy == DOCUMENT
                    or (strategy != KEEP_BOTH and (strategy in BUILT_IN or strategy in merges)),
                    strategy=strategy,
                )
            )
    return found
