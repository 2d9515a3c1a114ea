from collections.abc import Iterable
from typing import Any

import click
import pytest

from sdnet_core import hookimpl
from sdnet_core.plugins import PluginSet, given_plugins


class Good:
    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        return [click.Command("hello")]


class Raises:
    def __init__(self) -> None:
        raise RuntimeError("out of luck")


class Exits:
    def __init__(self) -> None:
        raise SystemExit(3)


class AsyncHook:
    @hookimpl
    async def sdnet_commands(self) -> Iterable[click.Command]:
        return []


class Wrapper:
    @hookimpl(wrapper=True)
    def sdnet_commands(self) -> Any:
        return (yield)


class UnknownHook:
    @hookimpl
    def sdnet_future(self) -> None: ...


class BadArgument:
    @hookimpl
    def sdnet_commands(self, more: int) -> None: ...


class SameCommand:
    name = "zz_same"

    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        return [click.Command("hello")]


class BrokenCommands:
    @hookimpl
    def sdnet_commands(self) -> Iterable[click.Command]:
        raise ImportError("no module named what")


def states(plugins: PluginSet) -> dict[str, tuple[str, str]]:
    return {record.name: (str(record.state), record.reason) for record in plugins.records}


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (Raises, "RuntimeError: out of luck"),
        (Exits, "SystemExit: 3"),
        (AsyncHook, "sdnet_commands is an async function"),
        (Wrapper, "hook wrapper"),
        (UnknownHook, "sdnet_future is no hook"),
        (BadArgument, "more"),
    ],
)
def test_a_bad_plugin_is_failed_with_its_reason_and_the_others_work(plugin: type, reason: str) -> None:
    plugins = given_plugins([Good, plugin])
    (bad,) = (record for record in plugins.records if record.name != "good")
    assert bad.state == "failed"
    assert reason in bad.reason
    assert bad.traceback
    assert [record.name for record in plugins.loaded] == ["good"]
    assert [command.name for command in plugins.commands()] == ["hello"]


def test_commands_that_raise_or_clash_fail_their_plugin_only() -> None:
    plugins = given_plugins([Good, SameCommand, BrokenCommands])
    assert [command.name for command in plugins.commands()] == ["hello"]
    found = states(plugins)
    assert found["good"][0] == "loaded"
    assert found["zz_same"][0] == "failed"
    assert "'hello'" in found["zz_same"][1]
    assert "no module named what" in found["broken_commands"][1]


def test_records_turn_into_plain_values_without_the_traceback() -> None:
    (record,) = given_plugins([Raises]).records
    assert record.to_dict() == {
        "name": "raises",
        "distribution": "",
        "version": "",
        "state": "failed",
        "protocols": [],
        "capabilities": [],
        "reason": record.reason,
    }
