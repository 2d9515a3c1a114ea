"""``python -m sdnet_core.daemon``: the background process that ``sdnet start`` starts."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import Any

from ..config import load_config, log_overrides
from ..errors import NetworkingError
from ..storage import Passphrase


def main() -> int:
    """Run a node, telling the process that started us over a pipe how the start went.

    :returns: the exit code.
    """
    parser = argparse.ArgumentParser(prog="sdnet_core.daemon")
    parser.add_argument("--instance", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--passphrase-fd", type=int)
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--log-level", action="append", default=[])
    arguments = parser.parse_args()
    report = _Report(arguments.ready_fd)
    try:
        config = load_config(arguments.instance, overrides={"log": log_overrides(arguments.log_level)})
        unlock = None if arguments.passphrase_fd is None else _read_passphrase(arguments.passphrase_fd)
        from .run import run_node

        run_node(config, on_ready=lambda status: report.send({"status": status}), unlock=unlock, tcp=arguments.tcp)
    except NetworkingError as error:
        report.send(
            {
                "problem": {
                    "type": f"urn:sdnet:error:{error.code}",
                    "status": error.http_status,
                    "detail": error.detail,
                    "exit_code": error.exit_code,
                }
            }
        )
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _read_passphrase(descriptor: int) -> Passphrase:
    with os.fdopen(descriptor, "rb") as pipe:
        return Passphrase(pipe.read())


class _Report:
    """The pipe to our starter: one line, then it is closed."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor: int | None = descriptor

    def send(self, answer: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # The starter may have left; we run on.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, json.dumps(answer).encode() + b"\n")
        os.close(descriptor)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # All is closed. Taking down some thousand modules one by one would make a stop take twice as long.
    os._exit(code)
