"""Commands that plugins declare are found as `importlib.metadata` finds them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from sdnet_core.cli.declared import declared_command


def install(site: Path, name: str, entry_points: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def test_every_installed_command_is_found() -> None:
    installed = metadata.entry_points(group="sdnet.commands.v1")
    assert installed
    for entry in installed:
        found = declared_command(entry.name)
        assert found is not None
        assert found.value == entry.value
        assert found.load() is entry.load()
        assert entry.dist is not None
        assert found.plugins == {e.name for e in entry.dist.entry_points if e.group.startswith("sdnet.plugins.")}


@pytest.mark.parametrize("plugin", metadata.entry_points(group="sdnet.plugins.v1"), ids=lambda plugin: plugin.name)
def test_our_plugins_declare_their_commands_so_that_they_start_fast(plugin: metadata.EntryPoint) -> None:
    assert plugin.dist is not None
    declared = plugin.dist.entry_points.select(group="sdnet.commands.v1")
    assert {entry.name: entry.load() for entry in declared} == {c.name: c for c in plugin.load()().sdnet_commands()}


def test_forms_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "; a remark\n\n[ sdnet.commands.v1 ]\n  shout=voice.cli:shout\nwhisper  =  voice.cli:whisper\n"
        "# another\n[console_scripts]\nshow = other:main\n[sdnet.plugins.v1]\nvoice = voice:Plugin\n"
    )
    install(tmp_path, "voice", text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", str(tmp_path / "missing"), str(tmp_path)])
    for name in ("shout", "whisper"):
        found = declared_command(name)
        assert found is not None
        assert (found.value, found.plugins) == (f"voice.cli:{name}", {"voice"})
    for name in ("show", "voice", "sing", ""):
        assert declared_command(name) is None


def test_a_command_that_two_declare_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install(
            tmp_path / name, name, f"[sdnet.plugins.v1]\n{name} = {name}:P\n[sdnet.commands.v1]\nshout = {name}:c\n"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "one"), str(tmp_path / "two")])
    assert declared_command("shout") is None


def test_what_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "good", "[sdnet.plugins.v1]\ngood = good:P\n[sdnet.commands.v1]\nshout = good:c\n")
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[sdnet.commands.v1]\nshout = \xff\xfe\n")
    (tmp_path / "empty-1.0.dist-info").mkdir()
    (tmp_path / "file-1.0.dist-info").write_text("no folder")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = declared_command("shout")
    assert found is not None
    assert found.value == "good:c"
