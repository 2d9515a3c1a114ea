"""The processes of `benchmarks.bench_start`; each writes one line of JSON when it is ready.

- ``node HOME SETTINGS``: the daemon's own run of a node, its data under a passphrase;
- ``imports FILE``: imports the modules whose names are in the file, and ends;
- ``libp2p``: imports stock py-libp2p and nothing of ours but the stand-in for ``fastecdsa``, and waits;
- ``partners HOMES SETTINGS``: several nodes in one process.

They end when their standard input does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio

PASSPHRASE = "a passphrase for the benchmark"
_ANSWERS = os.dup(1)
"""What was standard output; a node sends that to its log."""


def tell(**values: Any) -> None:
    """Write the line."""
    os.write(_ANSWERS, json.dumps(values).encode() + b"\n")


def config_of(home: Path, settings: dict[str, str]) -> Any:
    """The configuration of a node."""
    from sdnet_core.config import load_config

    return load_config(environ={"SDNET_HOME": str(home), "XDG_RUNTIME_DIR": str(home), **settings})


def run_node(home: Path, settings: dict[str, str]) -> None:
    """Run a node as the daemon does."""
    from sdnet_core.daemon import run
    from sdnet_core.storage import Passphrase, envelope

    calls = 0
    real = envelope.PBKDF2HMAC

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            self._real = real(*arguments)

        def derive(self, secret: bytes) -> bytes:
            nonlocal calls
            calls += 1
            return self._real.derive(secret)

    envelope.PBKDF2HMAC = Counting  # type: ignore[misc,assignment]
    threading.Thread(target=end_with_input, daemon=True).start()
    run.run_node(
        config_of(home, settings),
        on_ready=lambda status: tell(
            modules=sorted(sys.modules), kdf_calls=calls, paired=status["devices"]["paired"], pid=os.getpid()
        ),
        unlock=Passphrase(PASSPHRASE),
    )


def end_with_input() -> None:
    """Stop the node when whoever started us goes."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


async def run_partners(homes: list[str], settings: dict[str, str]) -> None:
    """Run nodes until standard input ends."""
    from sdnet_core import NetworkingCore

    async with AsyncExitStack() as stack:
        for home in homes:
            await stack.enter_async_context(NetworkingCore(config_of(Path(home), settings), plugins=()))
        tell(pid=os.getpid())
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


def main() -> None:
    """Be one of them."""
    what, *arguments = sys.argv[1:]
    match what:
        case "node":
            run_node(Path(arguments[0]), json.loads(arguments[1]))
        case "imports":
            importlib.import_module("sdnet_core.swarm._fastecdsa")
            for name in Path(arguments[0]).read_text().split():
                with contextlib.suppress(ImportError):  # made by other modules, and not to be imported alone
                    importlib.import_module(name)
            tell()
        case "libp2p":
            for name in ("httpx", "requests"):  # which our own import of libp2p would leave for later
                importlib.import_module(name)
            importlib.import_module("sdnet_core.swarm._fastecdsa")
            importlib.import_module("libp2p")
            tell(pid=os.getpid())
            sys.stdin.buffer.read()
        case "partners":
            anyio.run(run_partners, json.loads(arguments[0]), json.loads(arguments[1]), backend="trio")


if __name__ == "__main__":
    main()
