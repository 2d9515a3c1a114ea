"""A process that the crash tests kill: ``storage_writer.py`` forks one writer for each line of its standard input.

A line is ``<directory> <job> <step>``: the writer does its job and kills itself with SIGKILL just before its
``step``-th system call on the disk; with step 0 it goes on until somebody else kills it. What it has been told is
durable, it acknowledges on standard output.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.storage import Kdf, KdfParameters, KeyFile, Passphrase, SecureStorage, Vault

T = TypeVar("T")

SYSTEM_CALLS = ("open", "write", "fsync", "link", "rename", "replace", "unlink", "mkdir", "chmod", "close")
PASSPHRASE = Passphrase("correct horse", KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000))
OTHER = Passphrase("battery staple", KdfParameters(Kdf.PBKDF2_SHA256, iterations=100_000))
NAMES = ("identity", "devices/one")
acknowledge = os.write  # before it is counted


async def inline(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function here: one thread, so that the steps come in the same order every time."""
    return function(*args)


def die_at(step: int) -> None:
    """Kill this process just before its ``step``-th system call on the disk."""
    done = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, counting(getattr(os, name)))


def contents(number: int) -> bytes:
    """Give what the writer stores as its ``number``-th version, of changing length."""
    return f"{number} ".encode() * (1 + number * 37 % 400)


def open_vault(directory: Path) -> Vault:
    """Open or create the vault of the crash tests."""
    return Vault.open_or_create(directory, KeyFile(), SystemClock(), SystemRandomness())


def storage_of(directory: Path, vault: Vault) -> SecureStorage:
    """Give the storage that the writer writes."""
    return SecureStorage(
        directory / "network",
        vault.subkey("network"),
        clock=SystemClock(),
        randomness=SystemRandomness(),
        runner=inline,
    )


async def write(storage: SecureStorage, count: int) -> None:
    """Store version after version under each name, going on from what is there."""
    first = int((await storage.load(NAMES[0]) or b"0").split(b" ")[0]) + 1
    for number in range(first, first + count):
        for name in NAMES:
            await storage.store(name, contents(number))
        acknowledge(1, f"{number}\n".encode())


async def replace_and_delete(storage: SecureStorage) -> None:
    """Replace both generations of one name, delete another."""
    await storage.store(NAMES[0], b"revoked", both_generations=True)
    acknowledge(1, b"replaced\n")
    await storage.delete(NAMES[1])
    acknowledge(1, b"deleted\n")


def work(directory: Path, job: str, step: int) -> None:
    """Do one job."""
    if step:
        die_at(step)
    match job:
        case "create":
            open_vault(directory)
        case "write":
            anyio.run(write, storage_of(directory, open_vault(directory)), 2 if step else 10**9)
        case "replace":
            anyio.run(replace_and_delete, storage_of(directory, open_vault(directory)))
        case "protect":
            open_vault(directory).change_secret(PASSPHRASE)
        case "change":
            Vault.open(directory, OTHER, SystemClock(), SystemRandomness()).change_secret(PASSPHRASE, current=OTHER)
        case "unprotect":
            Vault.open(directory, PASSPHRASE, SystemClock(), SystemRandomness()).change_secret(KeyFile())
        case _:
            raise ValueError(job)


def main() -> None:
    """Fork a writer for each line, one at a time."""
    for line in sys.stdin:
        directory, job, step = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(Path(directory), job, int(step))
                code = 0
            finally:
                os._exit(code)
        acknowledge(1, f"pid {child}\n".encode())
        _, status = os.waitpid(child, 0)
        acknowledge(1, f"end {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
