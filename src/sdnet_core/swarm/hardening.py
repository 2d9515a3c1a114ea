"""What has to be changed inside py-libp2p 0.8.1, each change named and checked.

Most of the library's holes are closed by subclasses and by our own parts given to it (see ``host.py`` and
``yamux.py``). What remains are places that it looks up by module name. :func:`apply` replaces those, and fails loudly
when the version is another one or when what it replaces is no longer there.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

import libp2p.identity.identify.identify as identify_module
import libp2p.network.connection.swarm_connection as swarm_connection_module
import libp2p.protocol_muxer.multiselect_communicator as communicator_module
import libp2p.utils
from libp2p.exceptions import ParseError
from libp2p.io.abc import Reader
from libp2p.io.exceptions import MessageTooLarge
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

__all__ = ["LIBP2P_VERSION", "MAX_MULTISTREAM_MESSAGE_BYTES", "PatchTargetChangedError", "apply", "quiet_logs"]

LIBP2P_VERSION = "0.8.1"
"""The one version of py-libp2p that these patches were written for."""

MAX_MULTISTREAM_MESSAGE_BYTES = 1024
"""Longest multistream-select message read, in bytes; protocol ids are far shorter."""

# Modules of libp2p 0.8.1 that log ordinary events (a refused port, a peer that hangs up, a protocol that the other
# side does not speak) as errors or warnings. What matters of those, we report ourselves.
_CHATTERERS = (
    "libp2p.host.basic_host",
    "libp2p.host.ping",
    "libp2p.identity",
    "libp2p.network.stream",
    "libp2p.network.swarm",
    "libp2p.protocol_muxer",
    "libp2p.security",
    "libp2p.transport.manager",
    "libp2p.transport.tcp",
)


class PatchTargetChangedError(ImportError):
    """The installed py-libp2p is not the one that the patches in this module were written for."""


async def read_delim_bounded(reader: Reader) -> bytes:
    """Read one multistream-select message of at most :data:`MAX_MULTISTREAM_MESSAGE_BYTES`.

    libp2p 0.8.1 allocates whatever length the other side names, before it has authenticated.

    :raises ParseError: the message is longer, empty, not ended by a newline, or not text.
    """
    try:
        message = await read_varint_prefixed_bytes_limited(reader, MAX_MULTISTREAM_MESSAGE_BYTES)
    except MessageTooLarge as exc:
        raise ParseError(str(exc)) from exc
    if message[-1:] != b"\n" or not message.isascii():
        raise ParseError("A multistream message is not a line of ASCII text.")
    return message[:-1]


def _replace(module: Any, name: str, expected: Any, replacement: Any) -> None:
    """Replace what libp2p looks up as ``module.name``, if it is what we know."""
    current = getattr(module, name, None)
    if current is replacement:
        return
    if current is not expected:
        raise PatchTargetChangedError(
            f"sdnet patches {module.__name__}.{name} of libp2p {LIBP2P_VERSION}, but found {current!r} there."
        )
    setattr(module, name, replacement)


def check_version(version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Check that the installed py-libp2p is :data:`LIBP2P_VERSION`.

    :raises PatchTargetChangedError: it is another version.
    """
    installed = version("libp2p")
    if installed != LIBP2P_VERSION:
        raise PatchTargetChangedError(
            f"sdnet's patches were written for libp2p {LIBP2P_VERSION}, but {installed} is installed. "
            f"Install libp2p=={LIBP2P_VERSION}."
        )


def apply() -> None:
    """Apply every patch; once is enough, more often does no harm.

    :raises PatchTargetChangedError: the library is not the one the patches were written for.
    """
    check_version()
    # libp2p 0.8.1, protocol_muxer/multiselect_communicator.py: unbounded length before authentication.
    _replace(communicator_module, "read_delim", libp2p.utils.read_delim, read_delim_bounded)
    # libp2p 0.8.1, network/connection/swarm_connection.py: it logs on the root logger by `logging.debug()`, which
    # installs a handler that writes everybody's warnings to standard error.
    _replace(swarm_connection_module, "logging", logging, logging.getLogger(swarm_connection_module.__name__))


def quiet_logs() -> None:
    """Let libp2p's loggers say only what is out of the ordinary, and never write to standard error by themselves.

    libp2p 0.8.1 takes its logger out of the hierarchy without giving it a handler, so that Python's handler of last
    resort prints its warnings. A level that somebody has set on one of the loggers is left alone.
    """
    root = logging.getLogger("libp2p")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
        root.propagate = True
    for name in _CHATTERERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


def set_agent_version(agent_version: str) -> None:
    """Say ``agent_version`` in identify.

    libp2p 0.8.1 has the library's name there as a module constant.

    :raises PatchTargetChangedError: there is no such constant.
    """
    if not isinstance(getattr(identify_module, "AGENT_VERSION", None), str):
        raise PatchTargetChangedError("libp2p.identity.identify.identify.AGENT_VERSION is gone.")
    identify_module.AGENT_VERSION = agent_version
