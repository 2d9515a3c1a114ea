"""Key pairs of every kind that an identity key of libp2p may have and that can be checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import pytest

import sdnet_core.swarm  # noqa: F401 - py-libp2p imports without its optional packages behind this

# isort: split
from libp2p.crypto import ed25519, rsa, secp256k1
from libp2p.crypto.keys import KeyPair

__all__ = ["KEY_KINDS", "make_key_pair"]

_MAKE: dict[str, Callable[[], KeyPair]] = {
    "ed25519": lambda: ed25519.create_new_key_pair(b"a" * 32),
    "rsa": functools.cache(lambda: rsa.create_new_key_pair(2048)),
    "secp256k1": lambda: secp256k1.create_new_key_pair(b"k" * 32),
}


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


KEY_KINDS = [
    "ed25519",
    "rsa",
    pytest.param(
        "secp256k1",
        marks=pytest.mark.skipif(
            not _installed("coincurve"), reason="coincurve is not installed, which has no wheels for the newest Pythons"
        ),
    ),
]
"""For ``pytest.mark.parametrize``."""


def make_key_pair(kind: str) -> KeyPair:
    """A key pair of a kind, the same each time."""
    return _MAKE[kind]()
