"""Words for people that depend on numbers and on what was typed."""

from __future__ import annotations

import pytest

from sdnet_core.wording import format_count, nearest


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1250, "1,250 files"), (-1, "-1 files")]
)
def test_one_is_not_many(count: int, text: str) -> None:
    assert format_count(count, "file") == text


def test_what_has_a_form_of_its_own() -> None:
    assert [format_count(n, "entry differs", "entries differ") for n in (1, 2)] == [
        "1 entry differs",
        "2 entries differ",
    ]


def test_the_nearest_names_are_suggested() -> None:
    known = ["device-paired", "device-removed", "node-started"]
    assert nearest("device-pared", known) == " Did you mean 'device-paired'?"
    assert nearest("device-xxxx", known, most=3) == " Did you mean 'device-paired' or 'device-removed'?"
    assert nearest("zzz", known) == ""
