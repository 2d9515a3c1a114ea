"""Lets stock py-libp2p be imported where ``fastecdsa``, which has no wheel for Linux, is not installed.

py-libp2p uses it for P-256 keys alone, and the benchmarks use Ed25519 keys; nothing here is ever called. It is the
benchmarks' own, so that a process that measures stock py-libp2p contains nothing of this project's. Importing this
module installs it.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["install"]


def _refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise NotImplementedError("P-256 keys need the package fastecdsa.")


class _Unusable:
    """Stands for any of the package's classes."""

    encode_public_key = staticmethod(_refuse)
    decode_public_key = staticmethod(_refuse)


def install() -> None:
    """Put the stand-in among the loaded modules unless the package is installed."""
    if importlib.util.find_spec("fastecdsa") is not None:
        return
    contents: dict[str, dict[str, Any]] = {
        "fastecdsa": {"__path__": []},
        "fastecdsa.curve": {"Curve": _Unusable, "P256": _Unusable()},
        "fastecdsa.keys": {
            "gen_private_key": _refuse,
            "get_public_key": _refuse,
            "export_key": _refuse,
            "PEMEncoder": _Unusable,
        },
        "fastecdsa.point": {"Point": _Unusable},
        "fastecdsa.encoding": {"__path__": []},
        "fastecdsa.encoding.sec1": {"SEC1Encoder": _Unusable},
        "fastecdsa.encoding.util": {"int_bytelen": _refuse},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


install()
