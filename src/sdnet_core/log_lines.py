"""Lines of the log: how a record becomes text for people or JSON, and how either is read again (pure)."""

from __future__ import annotations

import json
import logging
import re
import traceback
from datetime import UTC, datetime
from typing import Any

from .log_context import current_log_context

__all__ = [
    "CORE_COMPONENTS",
    "LEVELS",
    "LIBRARIES",
    "HumanFormatter",
    "JsonFormatter",
    "component_of",
    "loggers_of",
    "parse_line",
]

LEVELS = ("debug", "info", "warning", "error")
CORE_COMPONENTS = (
    "core",
    "cli",
    "daemon",
    "devices",
    "discovery",
    "protocols",
    "session",
    "storage",
    "swarm",
    "testing",
)
"""The parts of the core that have a level of their own; ``core`` is what is in none of the others."""

LIBRARIES = ("anyio", "hypercorn", "libp2p", "multiaddr", "multiformats", "zeroconf")
"""Libraries that have a level of their own, for what they say below a warning is about their own insides."""

_PREFIX = "sdnet_"
_CORE = "sdnet_core"
_MAX_MESSAGE_LENGTH = 8192
_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>[A-Z]+) (?P<logger>[^\s:]+): (?P<message>.*?)"
    r"(?: \{(?P<about>(?:device|peer)=\S+(?: (?:device|peer)=\S+)*)\})?"
)


def component_of(logger: str) -> str:
    """The component that a logger belongs to: a part of the core, a plugin, or a library."""
    first, _, rest = logger.partition(".")
    if first == _CORE:
        second = rest.partition(".")[0]
        return second if second in CORE_COMPONENTS else "core"
    return first.removeprefix(_PREFIX)


def loggers_of(component: str) -> tuple[str, ...]:
    """The names of the loggers that a component's level is set on."""
    if component == "core":
        return (_CORE,)
    if component in CORE_COMPONENTS:
        return (f"{_CORE}.{component}",)
    return component, _PREFIX + component


def _about(record: logging.LogRecord) -> dict[str, str]:
    """The device and the peer that a record is about: named by itself, or by where it was written."""
    named = dict(current_log_context())
    for key in ("device_id", "peer_id"):
        if (value := getattr(record, key, None)) is not None:
            named[key] = str(value)
    return named


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = message[:_MAX_MESSAGE_LENGTH] + "…"
    return message


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(part.rstrip("\n") for part in parts)


class HumanFormatter(logging.Formatter):
    """``2025-03-01T14:05:09.120Z INFO swarm.libp2p: text {device=… peer=…}``; a traceback follows, indented.

    Whatever a text holds, it is one line: names and reasons come from other devices too, and must not look like lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{key.removesuffix('_id')}={value}" for key, value in _about(record).items())
        line = f"{_time(record.created)} {record.levelname} {_short(record.name)}: {_one_line(_message(record))}"
        if about:
            line += f" {{{about}}}"
        if trace := _trace(record):
            line += "".join(f"\n  {_one_line(part)}" for part in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``at``, ``level``, ``component``, ``logger``, ``message``, and what is known of
    ``device_id``, ``peer_id`` and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _time(record.created),
            "level": record.levelname.lower(),
            "component": component_of(record.name),
            "logger": record.name,
            "message": _message(record),
            **_about(record),
        }
        if trace := _trace(record):
            line["traceback"] = trace
        return json.dumps(line)


def parse_line(line: str) -> dict[str, Any] | None:
    """Read a line of either form.

    :returns: the fields that `JsonFormatter` writes; None for a line that begins no entry, as in a traceback.
    """
    if line.startswith("{"):
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) and "message" in found else None
    if (match := _LINE.fullmatch(line)) is None:
        return None
    about = dict(pair.split("=", 1) for pair in (match["about"] or "").split())
    return {
        "at": match["at"],
        "level": match["level"].lower(),
        "component": match["logger"].partition(".")[0],
        "logger": match["logger"],
        "message": match["message"],
        **{f"{key}_id": value for key, value in about.items()},
    }


def _short(logger: str) -> str:
    """A logger's name, beginning with its component."""
    component, rest = component_of(logger), logger.partition(".")[2]
    if logger.startswith(_CORE) and component != "core":
        return rest
    return f"{component}.{rest}" if rest and rest != component else component


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
