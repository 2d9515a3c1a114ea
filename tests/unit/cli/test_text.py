"""Texts for people."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.cli.kit import clean, format_duration, format_size, format_time
from sdnet_core.cli.text import format_fields


def test_fields() -> None:
    values = {"kind": "x", "name": "a\x1b", "none": None, "empty": "", "no": [], "count": 0, "told": True}
    found = format_fields({**values, "addresses": ["/ip4/1", "/ip4/2"], "previous": {"number": 0}}, but=["kind"])
    assert (
        found == 'name=a\N{REPLACEMENT CHARACTER}  count=0  told=true  addresses=/ip4/1,/ip4/2  previous={"number": 0}'
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (64 << 20, "64.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 70, "1048576.0 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (-1, "0.0 ms"),
        (0.0004, "0.4 ms"),
        (0.35, "350 ms"),
        (0.9996, "1.0 s"),
        (9.96, "10 s"),
        (12, "12 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (18120, "5 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert format_time(1_740_837_909) == "2025-03-01 14:05:09"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert format_time(None) == format_time(0) == format_time(1e300) == format_time(float("nan")) == "-"


def test_what_could_act_on_a_terminal_is_replaced() -> None:
    assert clean("a\x1b[31mred\x07\u202egnp.exe\r\n") == "a�[31mred��gnp.exe��"
    assert clean("two\nlines\x85", keep_newlines=True) == "two\nlines�"
    assert clean("Zoë's 👩\u200d💻 - 日本") == "Zoë's 👩\u200d💻 - 日本"


@given(st.text())
def test_clean_leaves_nothing_that_controls(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in cleaned)
    assert clean(cleaned) == cleaned
    assert cleaned.encode().decode() == cleaned
