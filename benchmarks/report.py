"""What comes out of a benchmark: a table on the terminal, a JSON file, a part of a page of the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figures, Ratio

__all__ = ["result", "show", "write_docs", "write_json"]


def _short(value: float) -> float:
    """Four significant digits say more than a measurement can keep."""
    return float(f"{value:.4g}")


def result(
    figures: Figures,
    ratios: Sequence[Ratio],
    limits: Mapping[str, tuple[float, str, float | None, float | None]],
    **about: Any,
) -> dict[str, Any]:
    """The result as it is written to JSON.

    :param limits: figures that are no ratios but have a target: name to value, unit, least, most.
    """
    targets: dict[str, Any] = {}

    def target(name: str, value: float, at_least: float | None, at_most: float | None, unit: str = "") -> None:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        given = {"at_least": at_least, "at_most": at_most, "value": value, "unit": unit or None, "met": met}
        targets[name] = {key: one for key, one in given.items() if one is not None}

    values: dict[str, float] = {}
    for ratio in ratios:
        measured = ratio.value(figures)
        if measured is None:
            continue
        values[ratio.name] = _short(measured)
        if ratio.at_least is not None or ratio.at_most is not None:
            target(ratio.name, _short(measured), ratio.at_least, ratio.at_most)
    for name, (value, unit, at_least, at_most) in limits.items():
        target(name, _short(value), at_least, at_most, unit)
    raw = {
        case: {
            contender: {
                name: {
                    "median": _short(figures.median(case, contender, name) or 0.0),
                    "unit": figures.units[name],
                    "rounds": [_short(value) for value in rounds],
                }
                for name, rounds in by_name.items()
            }
            for contender, by_name in by_contender.items()
        }
        for case, by_contender in figures.rounds.items()
    }
    return {**about, "ratios": values, "targets": targets, "raw": raw}


def show(console: Console, found: Mapping[str, Any], ratios: Sequence[Ratio]) -> None:
    """Print the figures and the ratios."""
    contenders = list(dict.fromkeys(name for case in found["raw"].values() for name in case))
    table = Table(title="Medians")
    table.add_column("case")
    table.add_column("figure")
    for name in contenders:
        table.add_column(name, justify="right")
    for case, by_contender in found["raw"].items():
        names = list(dict.fromkeys(name for one in by_contender.values() for name in one))
        for at, name in enumerate(names):
            row = [by_contender.get(contender, {}).get(name) for contender in contenders]
            unit = next(cell["unit"] for cell in row if cell)
            cells = [f"{cell['median']:,.4g}" if cell else "" for cell in row]
            table.add_row(case if at == 0 else "", f"{name} [{unit}]".replace("[", r"\["), *cells)
        table.add_section()
    console.print(table)
    table = Table(title="Ratios and targets")
    for heading in ("ratio", "value", "target", "what"):
        table.add_column(heading, justify="right" if heading in {"value", "target"} else "left")
    meanings = {ratio.name: ratio.meaning for ratio in ratios}
    for name in [*found["ratios"], *(name for name in found["targets"] if name not in found["ratios"])]:
        target = found["targets"].get(name, {})
        value = found["ratios"].get(name, target.get("value"))
        colour = "" if not target else "[green]" if target["met"] else "[red]"
        table.add_row(name, f"{colour}{value:,.4g}", _bound(target), meanings.get(name) or target["unit"])
    console.print(table)


def _bound(target: Mapping[str, Any]) -> str:
    return " ".join(f"{sign} {target[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if key in target)


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    # The rounds of a figure on one line.
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def write_docs(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace a benchmark's part of a page, or add it at the end."""
    begin, end = f"<!-- {name}: begin, written by the benchmark -->", f"<!-- {name}: end -->"
    part = "\n".join([begin, *lines, end])
    page = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    if begin in page and end in page:
        page = page[: page.index(begin)] + part + page[page.index(end) + len(end) :]
    else:
        page = page.rstrip("\n") + "\n\n" + part + "\n"
    path.write_text(page, encoding="utf-8")


def tables_as_markdown(found: Mapping[str, Any], ratios: Sequence[Ratio]) -> list[str]:
    """The ratios with their targets, and the medians, as Markdown."""
    meanings = {ratio.name: ratio.meaning for ratio in ratios}
    lines = ["| ratio | value | target | met | |", "|---|--:|--:|---|---|"]
    for name, value in found["ratios"].items():
        target = found["targets"].get(name, {})
        met = {True: "yes", False: "no", None: ""}[target.get("met")]
        lines.append(f"| `{name}` | {value:,.3g} | {_bound(target)} | {met} | {meanings.get(name, '')} |")
    for name, target in found["targets"].items():
        if name not in found["ratios"]:
            met = "yes" if target["met"] else "no"
            lines.append(f"| `{name}` | {target['value']:,.4g} | {_bound(target)} | {met} | {target['unit']} |")
    contenders = list(dict.fromkeys(name for case in found["raw"].values() for name in case))
    lines += ["", f"| case | figure | {' | '.join(contenders)} |", f"|---|---|{'--:|' * len(contenders)}"]
    for case, by_contender in found["raw"].items():
        for name in dict.fromkeys(name for one in by_contender.values() for name in one):
            row = [by_contender.get(contender, {}).get(name) for contender in contenders]
            unit = next(cell["unit"] for cell in row if cell)
            cells = " | ".join(f"{cell['median']:,.4g}" if cell else "" for cell in row)
            lines.append(f"| {case} | {name} ({unit}) | {cells} |")
    return lines
