"""Lines of the log, written and read again; whom they are about."""

from __future__ import annotations

import json
import logging
import sys
import uuid

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.log_context import current_log_context, log_context
from sdnet_core.log_lines import HumanFormatter, JsonFormatter, component_of, parse_line

DEVICE = uuid.UUID(int=5)
FORMATTERS = (HumanFormatter(), JsonFormatter())


def record(message: str, *, name: str = "sdnet_core.swarm.libp2p", trace: bool = False) -> logging.LogRecord:
    info = None
    if trace:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, None, info)


@pytest.mark.parametrize(
    ("logger", "component"),
    [
        ("sdnet_core.swarm.libp2p", "swarm"),
        ("sdnet_core.core", "core"),
        ("sdnet_core.pairings", "core"),
        ("sdnet_core", "core"),
        ("sdnet_file_transfer.service", "file_transfer"),
        ("someone.else", "someone"),
        ("libp2p.network", "libp2p"),
    ],
)
def test_components(logger: str, component: str) -> None:
    assert component_of(logger) == component
    for formatter in FORMATTERS:
        found = parse_line(formatter.format(record("x", name=logger)))
        assert found is not None
        assert found["component"] == component


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_a_line_names_whom_it_is_about(formatter: logging.Formatter) -> None:
    with log_context(device_id=DEVICE), log_context(peer_id="12D3"):
        line = formatter.format(record("hello"))
    found = parse_line(line)
    assert found is not None
    assert (found["device_id"], found["peer_id"]) == (str(DEVICE), "12D3")
    assert (found["message"], found["level"], found["component"]) == ("hello", "warning", "swarm")
    bare = parse_line(formatter.format(record("hello")))
    assert bare is not None
    assert "device_id" not in bare


@given(st.text())
def test_a_text_never_looks_like_another_line(text: str) -> None:
    lines = HumanFormatter().format(record("%s")).splitlines()
    assert len(lines) == 1
    made = record(f"{text}\n2030-01-01T00:00:00.000Z ERROR core: forged".replace("%", "%%"))
    human, as_json = HumanFormatter().format(made), JsonFormatter().format(made)
    assert len(human.split("\n")) == len(as_json.split("\n")) == 1
    assert human.isprintable()
    found = parse_line(human)
    assert found is not None
    assert found["component"] == "swarm"


def test_a_traceback_is_indented_and_cannot_forge_a_line() -> None:
    first, *rest = HumanFormatter().format(record("failed", trace=True)).split("\n")
    assert parse_line(first) is not None
    assert rest[-1] == "  second"
    assert all(line.startswith("  ") and parse_line(line) is None for line in rest)
    assert json.loads(JsonFormatter().format(record("failed", trace=True)))["traceback"].endswith("first\nsecond")


@pytest.mark.anyio
async def test_tasks_and_threads_inherit_whom_they_are_about() -> None:
    seen = []

    async def note() -> None:
        seen.append(dict(current_log_context()))

    async with anyio.create_task_group() as tasks:
        with log_context(device_id=DEVICE):
            tasks.start_soon(note)
            seen.append(dict(await anyio.to_thread.run_sync(current_log_context)))
        tasks.start_soon(note)
    assert sorted(map(len, seen)) == [0, 1, 1]
    assert not current_log_context()
