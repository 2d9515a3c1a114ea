"""What is done before libp2p 0.8.1 is imported, so that it can be, and takes less time.

py-libp2p imports packages at its top that it hardly needs and that not every machine can install: ``coincurve``
(secp256k1 keys) and ``miniupnpc`` (UPnP) have no wheels for CPython 3.14. Where they are missing, stand-ins take their
places; everything but importing them raises. ``httpx``, a fifth of the import's time, is needed for AutoTLS alone and
is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["UnsupportedError", "prepare"]

_LATE = frozenset({"httpx"})


class UnsupportedError(NotImplementedError):
    """What is asked for needs an optional package that is not installed."""


def _refusing(package: str, purpose: str) -> type:
    """A class that cannot be made."""

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise UnsupportedError(f"{purpose} not supported here: the optional package {package} is not installed.")

    return type("Missing", (), {"__init__": refuse, "from_secret": staticmethod(refuse)})


def _stand_in(package: str, purpose: str, *classes: str) -> None:
    """Put a stand-in in the place of a package that cannot be imported."""
    try:
        importlib.import_module(package)
    except ImportError:
        module = ModuleType(package, "Stand-in made by sdnet_core.swarm._libp2p_imports.")
        module.__dict__.update(dict.fromkeys(classes, _refusing(package, purpose)), is_stand_in=True)
        sys.modules[package] = module


class _LateFinder:
    """Finds modules that are executed when something of theirs is first used."""

    def __init__(self) -> None:
        self._finding = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _LATE or self._finding:
            return None
        self._finding = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding = False
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextmanager
def _late_imports() -> Iterator[None]:
    finder = _LateFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def prepare() -> None:
    """Import libp2p, with stand-ins where packages are missing."""
    _stand_in("coincurve", "secp256k1 keys are", "PublicKey", "PrivateKey")
    _stand_in("miniupnpc", "UPnP is", "UPnP")
    if "libp2p" not in sys.modules:
        with _late_imports():
            importlib.import_module("libp2p")
