"""Bars as SVG, for the pages of the documentation: no fonts or scripts from elsewhere, readable on light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

__all__ = ["bars"]

_WIDTH, _NAME_WIDTH, _VALUE_WIDTH = 760, 130, 90
_BAR, _GAP, _TITLE = 20, 6, 34


def bars(groups: Mapping[str, Mapping[str, float]], *, ours: str, unit: str) -> str:
    """A chart with one block of bars for each group, the shortest first.

    :param groups: title to name to value.
    :param ours: the name that stands out.
    """
    parts: list[str] = []
    y = 0
    for title, values in groups.items():
        parts.append(f'<text class="title" x="0" y="{y + 22}">{escape(title)}</text>')
        y += _TITLE
        longest = max(values.values())
        for name, value in sorted(values.items(), key=lambda one: one[1]):
            width = max(1.0, (_WIDTH - _NAME_WIDTH - _VALUE_WIDTH) * value / longest)
            middle = y + _BAR - 5
            kind = "ours" if name == ours else "other"
            parts += [
                f'<text class="name" x="{_NAME_WIDTH - 8}" y="{middle}">{escape(name)}</text>',
                f'<rect class="{kind}" x="{_NAME_WIDTH}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
                f'<text x="{_NAME_WIDTH + width + 6:.1f}" y="{middle}">{value:.2f} {escape(unit)}</text>',
            ]
            y += _BAR + _GAP
        y += 10
    style = (
        "text{font:13px system-ui,sans-serif;fill:#555}.name{text-anchor:end}.title{font-weight:600;font-size:15px}"
        ".ours{fill:#2a7de1}.other{fill:#b8bec6}"
        "@media(prefers-color-scheme:dark){text{fill:#bbb}.other{fill:#5b626b}}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img">'
    )
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])
