"""A stand-in for ``fastecdsa``, which py-libp2p imports but which has no wheel for Linux.

Importing this module puts the stand-in into :data:`sys.modules` if, and only if, the real package cannot be
imported, and then imports libp2p; every module here that imports libp2p imports this one first. py-libp2p uses
fastecdsa for P-256 keys alone, which libp2p peers hardly use and we never do: everything but importing it raises
:exc:`UnsupportedKeyError`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, NoReturn

from . import _libp2p_imports

__all__ = ["UnsupportedKeyError", "install"]


class UnsupportedKeyError(NotImplementedError):
    """A peer's key is on the curve P-256, for which the package fastecdsa would be needed."""


def _refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise UnsupportedKeyError(
        "P-256 keys are not supported here: the optional package fastecdsa is not installed. "
        "Peers with Ed25519 keys work."
    )


class Curve:
    """Stands for ``fastecdsa.curve.Curve``; there are no usable ones."""


class Point:
    """Stands for ``fastecdsa.point.Point``; there are no usable ones."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _refuse()


class SEC1Encoder:
    """Stands for ``fastecdsa.encoding.sec1.SEC1Encoder``."""

    encode_public_key = staticmethod(_refuse)
    decode_public_key = staticmethod(_refuse)


class PEMEncoder:
    """Stands for ``fastecdsa.keys.PEMEncoder``."""


def _int_bytelen(value: int) -> int:
    return max(1, (value.bit_length() + 7) // 8)


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name, "Stand-in made by sdnet_core.swarm._fastecdsa.")
    module.__dict__.update(content)
    return module


def install() -> bool:
    """Put the stand-in in place unless fastecdsa can be imported.

    :returns: whether the stand-in is in use.
    """
    try:
        package = importlib.import_module("fastecdsa")
    except ImportError:
        pass
    else:
        return getattr(package, "is_stand_in", False)
    curve = _module("fastecdsa.curve", Curve=Curve, P256=Curve())
    keys = _module(
        "fastecdsa.keys",
        gen_private_key=_refuse,
        get_public_key=_refuse,
        export_key=_refuse,
        PEMEncoder=PEMEncoder,
    )
    point = _module("fastecdsa.point", Point=Point)
    sec1 = _module("fastecdsa.encoding.sec1", SEC1Encoder=SEC1Encoder)
    util = _module("fastecdsa.encoding.util", int_bytelen=_int_bytelen)
    encoding = _module("fastecdsa.encoding", __path__=[], sec1=sec1, util=util)
    package = _module(
        "fastecdsa", __path__=[], is_stand_in=True, curve=curve, keys=keys, point=point, encoding=encoding
    )
    for module in (package, curve, keys, point, encoding, sec1, util):
        sys.modules[module.__name__] = module
    return True


install()
_libp2p_imports.prepare()
