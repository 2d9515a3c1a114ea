"""The configuration file: what is set is checked, what was there stays, and nothing wrong replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdnet_core.config import load_config
from sdnet_core.errors import ConfigurationError, NotFoundError
from sdnet_core.settings_file import SettingsFile


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table of a plugin.

    :param unit: of temperatures.
    """

    unit: Literal["c", "f"] = "c"
    places: tuple[str, ...] = ()
    most: Annotated[int, msgspec.Meta(ge=1)] = 3


def types() -> Mapping[str, type[msgspec.Struct]]:
    return {"weather": Weather}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"SDNET_HOME": str(tmp_path)}


@pytest.fixture
def file(environ: dict[str, str]) -> SettingsFile:
    return SettingsFile(None, environ=environ, plugin_types=types)


def test_what_is_set_is_what_a_start_reads(file: SettingsFile, environ: dict[str, str]) -> None:
    file.set("node.name", ["living room"])
    file.set("node.transports", ["ws", "tcp"])
    file.set("connections.max_connections", ["7"])
    file.set("discovery.mdns", ["false"])
    config = load_config(environ=environ)
    assert config.node.name == "living room"
    assert config.node.transports == ("ws", "tcp")
    assert config.connections.max_connections == 7
    assert config.discovery.mdns is False


def test_comments_and_order_stay(file: SettingsFile) -> None:
    file.path.parent.mkdir(parents=True)
    file.path.write_text('# mine\n[connections]  # few\nmax_connections = 5\n\n[node]\nname = "a" # short\n')
    file.set("node.name", ["b"])
    assert file.text() == '# mine\n[connections]  # few\nmax_connections = 5\n\n[node]\nname = "b" # short\n'


@pytest.mark.parametrize(
    ("key", "words", "says"),
    [
        ("connections.max_connections", ["many"], "a whole number is needed"),
        ("connections.max_connections", ["0"], ">= 1"),
        ("node.transports", ["pigeon"], "pigeon"),
        ("node.downloads", ["relative/place"], "absolute"),
        ("plugins.weather.unit", ["k"], "'k'"),
        ("node.name", ["two", "words"], "one value"),
    ],
)
def test_a_wrong_value_changes_nothing(file: SettingsFile, key: str, words: list[str], says: str) -> None:
    file.set("node.name", ["before"])
    before = file.text()
    with pytest.raises(ConfigurationError, match=says):
        file.set(key, words)
    assert file.text() == before


@pytest.mark.parametrize("key", ["node.nmae", "nod.name", "node", "plugins.weather.units", "plugins.tables", "a.b.c"])
def test_an_unknown_key_is_said_and_a_near_one_named(file: SettingsFile, key: str) -> None:
    with pytest.raises(NotFoundError, match="There is no setting") as caught:
        file.set(key, ["x"])
    if key == "node.nmae":
        assert "Did you mean 'node.name'?" in caught.value.detail
    assert not file.path.exists()


def test_a_plugins_table_is_checked_by_its_type(file: SettingsFile) -> None:
    setting = file.set("plugins.weather.places", ["Oslo,", "Rome"])
    assert (list(setting.value), setting.origin) == (["Oslo,", "Rome"], "file")
    assert file.get("plugins.weather.unit").meaning == "of temperatures."
    assert [s.key for s in file.settings() if s.key.startswith("plugins.weather")] == [
        "plugins.weather.unit",
        "plugins.weather.places",
        "plugins.weather.most",
    ]


def test_settings_of_a_plugin_that_is_not_there_are_kept_as_toml(file: SettingsFile) -> None:
    file.set("plugins.away.count", ["3"])
    file.set("plugins.away.text", ["three of them"])
    assert {s.key: s.value for s in file.settings() if "away" in s.key} == {
        "plugins.away.count": 3,
        "plugins.away.text": "three of them",
    }


def test_a_variable_that_overrides_the_file_is_named(environ: dict[str, str]) -> None:
    file = SettingsFile(None, environ={**environ, "SDNET_NODE_NAME": "from outside"}, plugin_types=types)
    setting = file.set("node.name", ["inside"])
    assert (setting.value, setting.origin) == ("from outside", "SDNET_NODE_NAME")
    assert 'name = "inside"' in file.text()


def test_items_are_added_to_lists_and_taken_out(file: SettingsFile) -> None:
    assert file.add("plugins.disable", "weather")
    assert not file.add("plugins.disable", "weather")
    assert file.add("plugins.disable", "echo")
    assert list(file.get("plugins.disable").value) == ["weather", "echo"]
    assert file.remove("plugins.disable", "weather")
    assert file.remove("plugins.disable", "echo")
    assert not file.remove("plugins.disable", "echo")
    assert file.get("plugins.disable").origin == "default"


def test_unset_brings_the_default_back(file: SettingsFile) -> None:
    file.set("connections.keepalive_misses", ["9"])
    assert file.unset("connections.keepalive_misses")
    assert not file.unset("connections.keepalive_misses")
    assert file.get("connections.keepalive_misses").value == 3
    assert file.text().strip() == ""
    file.set("plugins.weather.most", ["2"])
    file.set("plugins.strict", ["true"])
    file.unset("plugins.weather.most")
    assert file.text().strip() == "[plugins]\nstrict = true"


def test_a_broken_file_is_said_and_not_touched(file: SettingsFile) -> None:
    file.path.parent.mkdir(parents=True)
    file.path.write_text("[node\n")
    for attempt in (lambda: file.set("node.name", ["x"]), lambda: file.get("node.name"), file.check):
        with pytest.raises(ConfigurationError, match="not valid TOML"):
            attempt()
    assert file.text() == "[node\n"


def test_a_whole_text_replaces_the_file_only_if_it_is_right(file: SettingsFile) -> None:
    file.set("node.name", ["before"])
    before = file.text()
    for wrong in ("[nod]\n", "[node]\nname = 3\nx = 1\n", "= 2", "[plugins.weather]\nmost = 0\n"):
        with pytest.raises(ConfigurationError):
            file.replace(wrong)
        assert file.text() == before
    assert file.replace('[node]\nname = "after"\n').device_name == "after"


@given(text=st.text(min_size=1, max_size=64).filter(lambda t: not t.startswith("-")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_any_name_comes_back_as_it_was_given(file: SettingsFile, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    file.set("node.name", [text])
    assert file.get("node.name").value == text
