"""Numbers that plugins count, and how all of a node's become Prometheus' text format. Nothing is kept in a module."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .errors import InvalidRequestError

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Counter", "Gauge", "PluginMetrics", "render"]

logger = logging.getLogger(__name__)

MAX_LABEL_SETS = 1000
"""Combinations of label values of one metric; further ones are left out, so that no peer can make it grow for ever."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class _Metric:
    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._full = False

    def _key(self, labels: dict[str, object]) -> tuple[str, ...] | None:
        if labels.keys() != set(self.labels):
            raise InvalidRequestError(f"{self.name} has the labels {', '.join(self.labels) or '(none)'}.")
        key = tuple(str(labels[label]) for label in self.labels)
        if key not in self._values:
            if len(self._values) >= MAX_LABEL_SETS:
                if not self._full:
                    self._full = True
                    logger.warning("%s has %d label sets; more are left out", self.name, MAX_LABEL_SETS)
                return None
            self._values[key] = 0.0
        return key

    def values(self) -> list[tuple[tuple[str, ...], float]]:
        """The label values, each with its number."""
        return list(self._values.items())


class Counter(_Metric):
    """A number that only grows. Its name in the export ends with ``_total``."""

    def inc(self, amount: float = 1, **labels: object) -> None:
        """Count.

        :param labels: a value for each of its labels.
        """
        if amount < 0:
            raise InvalidRequestError("A counter only grows.")
        if (key := self._key(labels)) is not None:
            self._values[key] += amount


class Gauge(_Metric):
    """A number that goes up and down."""

    def __init__(
        self, name: str, help: str, labels: tuple[str, ...], function: Callable[[], float] | None = None
    ) -> None:
        super().__init__(name, help, labels)
        self.function = function

    def set(self, value: float, **labels: object) -> None:
        """Set it."""
        if (key := self._key(labels)) is not None:
            self._values[key] = value

    def remove(self, **labels: object) -> None:
        """Forget one combination of label values."""
        self._values.pop(tuple(str(labels[label]) for label in self.labels), None)

    def values(self) -> list[tuple[tuple[str, ...], float]]:
        """The label values, each with its number."""
        return super().values() if self.function is None else [((), float(self.function()))]


class PluginMetrics:
    """A plugin's own metrics: ``ctx.metrics``.

    Example::

        self._greeted = ctx.metrics.counter("greetings", "Greetings sent.", labels=("how",))
        ...
        self._greeted.inc(how="politely")

    They are exported as ``sdnet_<plugin>_<name>``. Asking for the same name again gives the same metric.
    """

    def __init__(self, plugin: str) -> None:
        self._prefix = f"sdnet_{re.sub(r'[^a-z0-9_]', '_', plugin.lower())}_"
        self._metrics: dict[str, Counter | Gauge] = {}

    def counter(self, name: str, help: str, *, labels: Iterable[str] = ()) -> Counter:
        """A number that only grows.

        :param name: lower-case letters, digits, underscores.
        :param help: one sentence.
        :param labels: names of what it is counted by; the values should be few.
        :raises InvalidRequestError: the name is not right, or taken by another kind of metric.
        """
        found = self._get(name, tuple(labels), Counter)
        if found is None:
            found = self._metrics[name] = Counter(self._prefix + name, help, tuple(labels))
        assert isinstance(found, Counter)
        return found

    def gauge(
        self, name: str, help: str, *, labels: Iterable[str] = (), function: Callable[[], float] | None = None
    ) -> Gauge:
        """A number that goes up and down.

        :param function: gives its value when somebody looks, instead of `Gauge.set`; only without labels.
        :raises InvalidRequestError: the name is not right, or taken by another kind of metric.
        """
        if function is not None and tuple(labels):
            raise InvalidRequestError("A gauge that asks a function has no labels.")
        found = self._get(name, tuple(labels), Gauge)
        if found is None:
            found = self._metrics[name] = Gauge(self._prefix + name, help, tuple(labels))
        assert isinstance(found, Gauge)
        found.function = function
        return found

    def _get(self, name: str, labels: tuple[str, ...], kind: type) -> Counter | Gauge | None:
        if not all(_NAME.fullmatch(text) for text in (name, *labels)):
            raise InvalidRequestError(f"{name!r} or a label of it is no name for a metric.")
        found = self._metrics.get(name)
        if found is not None and (not isinstance(found, kind) or found.labels != labels):
            raise InvalidRequestError(f"There is another metric called {found.name} already.")
        return found

    def families(self) -> Iterator[Metric]:
        """All of them for the export; one whose function fails is left out, and the log says why."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in self._metrics.values():
            kind = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            try:
                for labels, value in metric.values():
                    family.add_metric(labels, value)
            except Exception:
                logger.exception("%s could not be read", metric.name)
                continue
            yield family


class _Collector:
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        """Nothing: without it, registering would collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families()


def render(families: Iterable[Callable[[], Iterable[Metric]]]) -> bytes:
    """Prometheus' text format, with what there is to know of the process."""
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    for source in families:
        registry.register(_Collector(source))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)
