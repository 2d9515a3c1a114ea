"""Numbers that plugins count."""

from __future__ import annotations

import pytest

from sdnet_core.errors import InvalidRequestError
from sdnet_core.metrics import MAX_LABEL_SETS, PluginMetrics, render


def text(*metrics: PluginMetrics) -> str:
    return render([one.families for one in metrics]).decode()


def test_the_same_name_gives_the_same_metric() -> None:
    metrics = PluginMetrics("my-plugin")
    metrics.counter("things", "Things.").inc()
    metrics.counter("things", "Things.").inc(2)
    assert "sdnet_my_plugin_things_total 3.0" in text(metrics)
    with pytest.raises(InvalidRequestError, match="another metric"):
        metrics.gauge("things", "Things.")
    with pytest.raises(InvalidRequestError, match="another metric"):
        metrics.counter("things", "Things.", labels=("by",))


def test_mistakes_are_told() -> None:
    metrics = PluginMetrics("p")
    for name in ("Upper", "with-hyphen", "", "0digit", "a" * 100):
        with pytest.raises(InvalidRequestError, match="no name"):
            metrics.counter(name, "x")
    counter = metrics.counter("c", "x", labels=("a",))
    with pytest.raises(InvalidRequestError, match="labels a"):
        counter.inc()
    with pytest.raises(InvalidRequestError, match="only grows"):
        counter.inc(-1, a="x")
    with pytest.raises(InvalidRequestError, match="no labels"):
        metrics.gauge("g", "x", labels=("a",), function=lambda: 1.0)


def test_labels_are_bounded_and_escaped() -> None:
    metrics = PluginMetrics("p")
    counter = metrics.counter("c", "x", labels=("a",))
    counter.inc(a='quote " and \n newline')
    for number in range(MAX_LABEL_SETS * 2):
        counter.inc(a=number)
    counter.inc(5, a=0)
    lines = [line for line in text(metrics).splitlines() if line.startswith("sdnet_p_c_total")]
    assert len(lines) == MAX_LABEL_SETS
    assert 'sdnet_p_c_total{a="0"} 6.0' in lines


def test_a_gauge_forgets() -> None:
    metrics = PluginMetrics("p")
    gauge = metrics.gauge("g", "x", labels=("a",))
    gauge.set(1.5, a="one")
    gauge.set(2, a="two")
    gauge.remove(a="one")
    assert [line for line in text(metrics).splitlines() if line.startswith("sdnet_p_g")] == ['sdnet_p_g{a="two"} 2.0']
