"""How a public name goes away: it warns for two minor versions, and the warning says what to use instead.

A hook that is to go away is marked with pluggy's own ``hookspec(warn_on_impl=SdnetDeprecationWarning(…))``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

__all__ = ["Deprecation", "SdnetDeprecationWarning", "deprecated"]

F = TypeVar("F", bound=Callable[..., Any])
MINORS_KEPT = 2


class SdnetDeprecationWarning(DeprecationWarning):
    """Something of sdnet's public interface is used that will go away; says when, and what to use instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """What is said of a name that goes away.

    :param since: the first version that warns, ``MAJOR.MINOR``.
    :param gone_in: the first version without it.
    :param instead: what to use.
    """

    name: str
    since: str
    gone_in: str
    instead: str

    def __str__(self) -> str:
        return f"{self.name} is deprecated since sdnet {self.since} and gone in {self.gone_in}: use {self.instead}."


def deprecated(*, since: str, gone_in: str, instead: str) -> Callable[[F], F]:
    """Mark a function or method, plain or async: each call warns at the place of the call.

    :raises ValueError: ``gone_in`` is less than two minor versions after ``since``.
    """
    if _distance(since, gone_in) < MINORS_KEPT:
        raise ValueError(f"what is deprecated in {since} is kept for {MINORS_KEPT} minor versions")

    def mark(function: F) -> F:
        notice = Deprecation(name=function.__qualname__, since=since, gone_in=gone_in, instead=instead)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # Async functions are called, too, before they are awaited: the warning names the place of the call.
            warnings.warn(SdnetDeprecationWarning(str(notice)), stacklevel=2)
            return function(*args, **kwargs)

        wrapper.__deprecated__ = notice  # type: ignore[attr-defined]
        return cast(F, wrapper)

    return mark


def _distance(since: str, gone_in: str) -> float:
    """Minor versions from one to the other; a new major version is further than any minor."""
    (major, minor), (later_major, later_minor) = ([int(part) for part in text.split(".")] for text in (since, gone_in))
    return float(later_minor - minor) if later_major == major else float("inf") * (later_major - major)
