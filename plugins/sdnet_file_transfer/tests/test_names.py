from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdnet_file_transfer.messages import MAX_DEPTH
from sdnet_file_transfer.names import (
    MAX_COMPONENT_BYTES,
    STAGING_PREFIX,
    InvalidNameError,
    check_component,
    check_path,
    numbered,
    printable,
)

BAD = [
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "a\\b",
    "..\\x",
    "a\0b",
    "line\nbreak",
    "tab\t",
    "bell\x07",
    "del\x7f",
    "c1\x85",
    "sep\u2028x",
    "sep\u2029x",
    "gpj.\u202eexe",
    "\u2066iso",
    "end.",
    "end ",
    "CON",
    "con",
    "nul.txt",
    "Com1",
    "LPT9.tar.gz",
    "COM\u00b9",
    "AUX .txt",
    "CONOUT$",
    "\uff0e\uff0e",  # full-width full stops
    "\u2024\u2024",  # one-dot leaders
    "\u2025",  # two-dot leader
    "a\uff0fb",  # full-width solidus
    "a\uff3cb",  # full-width reverse solidus
    "\uff23\uff2f\uff2e",  # full-width CON
    "lone\ud800",
    "x" * 256,
    "é" * 128,
]
GOOD = [
    "a",
    "photo.jpg",
    ".bashrc",
    "a b",
    "...a",
    "-rf",
    "CONSOLE",
    "com",
    "com10",
    "nullable",
    "x" * 255,
    "é" * 127,
    "日本語.txt",
    "עברית.txt",
    "👩‍👩‍👧.png",
    "what? why: <this>|*.txt",
]


@pytest.mark.parametrize("name", BAD)
def test_a_dangerous_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_component(name)


@pytest.mark.parametrize("name", GOOD)
def test_an_ordinary_name_is_kept(name: str) -> None:
    assert check_component(name) == name


def test_a_name_is_normalised_before_it_is_checked() -> None:
    assert check_component("e\u0301te\u0301") == "été"
    with pytest.raises(InvalidNameError):
        check_component("\u0340" + "\u0000")


@given(st.text(max_size=300))
@example("a\u0301" * 85)
def test_what_passes_is_one_component_that_a_file_system_takes(name: str) -> None:
    try:
        checked = check_component(name)
    except InvalidNameError:
        return
    assert checked == unicodedata.normalize("NFC", name)
    assert check_component(checked) == checked
    assert 0 < len(checked.encode()) <= MAX_COMPONENT_BYTES
    assert Path("/base", checked).name == checked
    assert os.path.normpath(os.path.join("/base", checked)) == "/base/" + checked
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        changed = unicodedata.normalize(form, checked)
        assert "/" not in changed
        assert "\\" not in changed
        assert changed not in (".", "..")


@given(st.lists(st.text(max_size=20), max_size=70))
def test_a_path_is_as_good_as_its_components(path: list[str]) -> None:
    try:
        checked = check_path(path)
    except InvalidNameError:
        return
    assert 0 < len(checked) <= MAX_DEPTH
    assert all(check_component(component) == component for component in checked)


@pytest.mark.parametrize(
    "path",
    [
        [],
        ["a"] * 65,
        ["x" * 255] * 17,
        ["..", "a"],
        ["a", "..", "b"],
        [STAGING_PREFIX + "0"],
        [".SDNET-Partial-x", "a"],
    ],
)
def test_a_bad_path_is_refused(path: list[str]) -> None:
    with pytest.raises(InvalidNameError):
        check_path(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("report.pdf", "report (1).pdf"),
        ("archive.tar.gz", "archive (1).tar.gz"),
        ("README", "README (1)"),
        (".bashrc", ".bashrc (1)"),
        ("a.b c", "a.b c (1)"),
        ("x" * 255, "x" * 251 + " (1)"),
        ("é" * 127, "é" * 125 + " (1)"),
    ],
)
def test_a_taken_name_gets_a_number(name: str, expected: str) -> None:
    assert numbered(name, 1) == expected
    assert numbered(name, 0) == name


def test_a_folder_is_numbered_at_its_end() -> None:
    assert numbered("v1.2", 3, directory=True) == "v1.2 (3)"


@given(st.text(min_size=1, max_size=255), st.integers(1, 9999), st.booleans())
def test_a_numbered_name_is_as_valid_as_the_name(name: str, number: int, directory: bool) -> None:
    try:
        checked = check_component(name)
    except InvalidNameError:
        return
    assert check_component(numbered(checked, number, directory=directory)) != checked


@given(st.text(max_size=400))
def test_a_printable_text_controls_nothing(text: str) -> None:
    safe = printable(text)
    assert len(safe) <= 200
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in safe)
