"""What is done before libp2p 0.8.1 is imported, so that it can be, and takes less time.

py-libp2p imports packages at its top that it hardly needs and that not every machine can install: ``coincurve``
(secp256k1 keys) and ``miniupnpc`` (UPnP) have no wheels for CPython 3.14. Where they are missing, stand-ins take their
places; everything but importing them raises. ``httpx`` and ``requests``, a fifth of the import's time and 5 MB, are
needed for AutoTLS alone and are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["UnsupportedError", "prepare"]

_LATE = frozenset({"httpx", "requests"})


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


class _LateModule(ModuleType):
    """Takes the place of a module until something of it is used. It may be imported any number of times meanwhile;
    `importlib.util.LazyLoader` would load it at the second one."""

    def __getattr__(self, name: str) -> Any:
        # What the import system itself asks for, but for the path below which submodules are found.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def prepare() -> None:
    """Import libp2p, with stand-ins where packages are missing."""
    _stand_in("coincurve", "secp256k1 keys are", "PublicKey", "PrivateKey")
    _stand_in("miniupnpc", "UPnP is", "UPnP")
    if "libp2p" not in sys.modules:
        for name in _LATE:
            if name not in sys.modules and importlib.util.find_spec(name) is not None:
                sys.modules[name] = _LateModule(name)
        importlib.import_module("libp2p")
