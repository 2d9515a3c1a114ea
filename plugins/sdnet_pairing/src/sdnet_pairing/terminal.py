"""Asks this device's person at a terminal."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

import anyio

from sdnet_core.cli.kit import clean

from .introduction.status import IntroductionStatus
from .session import PairingStatus

__all__ = ["TerminalInterface", "ask_while"]

_YES, _NO = ("y", "yes"), ("", "n", "no")
_POLL_S = 1.0
_MAX_LINE_BYTES = 1024
_QUESTION = "Pair with this device? [y/N]: "


class TerminalInterface:
    """A `PairingUserInterface` for programs that host a node and have a terminal. One question at a time is asked.

    :param source: file descriptor that answers are read from; standard input by default.
    :param write: shows a text; on standard error by default.
    """

    def __init__(self, source: int | None = None, write: Callable[[str], None] | None = None) -> None:
        self._source = sys.stdin.fileno() if source is None else source
        self._write = write or _write_error
        self._free = anyio.Event()
        self._free.set()

    async def confirm_pairing(self, status: PairingStatus) -> bool:
        """Show the device's name, OS and fingerprint, and ask."""
        device = status.device
        assert device is not None
        os_name = f" ({device.os})" if device.os else ""
        return await self._ask(f"{device.name}{os_name}, fingerprint {device.fingerprint} asks to pair.")

    async def confirm_introduction(self, status: IntroductionStatus) -> bool:
        """Show who introduces which device, with its fingerprint, and ask."""
        (other,) = status.devices
        return await self._ask(f"{status.introducer} introduces {other.name}, fingerprint {other.fingerprint}.")

    def pairing_changed(self, status: PairingStatus) -> None:
        """Say how a pairing has ended."""
        if status.state.ended:
            name = status.device.name if status.device else "the other device"
            paired = f"Paired with {name}. {status.detail}".rstrip()
            self._say(paired if status.reason is None else status.detail)

    async def _ask(self, question: str) -> bool:
        while not self._free.is_set():
            await self._free.wait()
        self._free = anyio.Event()
        try:
            self._say(question)
            return await self._answer()
        except BaseException:
            self._write("\n")  # the time is up, or the answer came another way
            raise
        finally:
            self._free.set()

    async def _answer(self) -> bool:
        self._write(_QUESTION)
        answers = _Answers(self._write)
        while True:
            await anyio.wait_readable(self._source)
            if (answer := answers.take(os.read(self._source, 1024))) is not None:
                return answer

    def _say(self, text: str) -> None:
        self._write(f"{clean(text)}\n")


def ask_while(
    wanted: Callable[[], bool], *, source: int | None = None, write: Callable[[str], None] | None = None
) -> bool | None:
    """Ask "Pair with this device?" at the terminal, without an event loop.

    :param wanted: whether the answer is still waited for; asked every second.
    :returns: None if it was not waited for any more.
    """
    descriptor, show = sys.stdin.fileno() if source is None else source, write or _write_error
    show(_QUESTION)
    answers = _Answers(show)
    while wanted():
        if select.select([descriptor], [], [], _POLL_S)[0]:
            answer = answers.take(os.read(descriptor, 1024))
            if answer is not None:
                return answer
    show("\n")
    return None


class _Answers:
    """Reads lines until one is a yes or a no; the end of the input is a no."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._begun = b""

    def take(self, data: bytes) -> bool | None:
        if not data:
            self._write("\n")
            return False
        *lines, self._begun = (self._begun + data).split(b"\n")
        self._begun = self._begun[-_MAX_LINE_BYTES:]
        for line in lines:
            answer = line.decode(errors="replace").strip().lower()
            if answer in _YES or answer in _NO:
                return answer in _YES
            self._write(_QUESTION)
        return None


def _write_error(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
