"""What a field can hold, and names that are allowed (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdnet_core.errors import InvalidRequestError

from .limits import MAX_FIELD_NAME, MAX_FIELDS, MAX_ID, MAX_KIND, MAX_VALUE_DEPTH

__all__ = ["check_fields", "check_id", "check_kind", "from_json", "is_value", "plain", "to_json"]

_INTEGERS = range(-(1 << 63), 1 << 63)
_SIMPLE = frozenset((str, bytes, bool, type(None)))
_SCALARS = frozenset((str, bytes, bool, type(None), int, float))


def is_value(value: Any, depth: int = 0) -> bool:
    """Whether a value can be carried: None, booleans, 64-bit integers, finite floats, text, bytes, lists and maps."""
    kind = type(value)
    if kind in _SIMPLE:
        return True
    if kind is int:
        return value in _INTEGERS
    if kind is float:
        return math.isfinite(value)
    if depth >= MAX_VALUE_DEPTH:
        return False
    if kind is list:
        return all(is_value(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and is_value(item, depth + 1) for key, item in value.items())
    return False


def plain(value: Any) -> Any:
    """Give tuples as lists and mappings as dicts, so that equal contents have one form."""
    if type(value) in _SCALARS:
        return value  # nearly always, and asking for abstract types costs more than all the rest
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return value


def check_kind(kind: str, *, reserved: bool = False) -> None:
    """Check the kind of an entry.

    :param reserved: allow the kinds that begin with ``$``, which are settings of the library.
    :raises InvalidRequestError: it is not one.
    """
    if not 0 < len(kind) <= MAX_KIND or not kind.isprintable() or (kind.startswith("$") and not reserved):
        raise InvalidRequestError(f"A kind is 1 to {MAX_KIND} printable characters and does not begin with $.")


def check_id(entry_id: str) -> None:
    """Check the id of an entry.

    :raises InvalidRequestError: it is not one.
    """
    if not 0 < len(entry_id) <= MAX_ID or not _encodes(entry_id):
        raise InvalidRequestError(f"An entry's id is 1 to {MAX_ID} characters.")


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of an entry and give them in their plain form.

    :raises InvalidRequestError: a name or a value cannot be carried; says which.
    """
    if not 0 < len(fields) <= MAX_FIELDS:
        raise InvalidRequestError(f"An entry is written with 1 to {MAX_FIELDS} fields.")
    result = {}
    for name, value in fields.items():
        if type(name) is not str or not 0 < len(name) <= MAX_FIELD_NAME or not name.isprintable():
            raise InvalidRequestError(f"A field's name is 1 to {MAX_FIELD_NAME} printable characters.")
        value = plain(value)
        if not is_value(value):
            raise InvalidRequestError(
                f"The field {name} holds what cannot be carried: None, booleans, integers of 64 bits, finite numbers, "
                f"text, bytes, and lists and maps of these to a depth of {MAX_VALUE_DEPTH} can."
            )
        result[name] = value
    return result


def to_json(value: Any) -> Any:
    """A value for JSON: bytes become ``{"$bytes": "<hexadecimal>"}``."""
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(value: Any) -> Any:
    """The reverse of `to_json`.

    :raises InvalidRequestError: what claims to be bytes is not.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$bytes"}:
            try:
                return bytes.fromhex(value["$bytes"])
            except (ValueError, TypeError) as error:
                raise InvalidRequestError("What $bytes holds is not hexadecimal.") from error
        return {key: from_json(item) for key, item in value.items()}
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
