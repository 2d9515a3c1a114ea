"""Sends numbered texts through the local API, over kills and restarts of the node, and notes what it accepted."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from sdnet_core.config import load_config
from sdnet_core.daemon.client import ApiClient
from sdnet_core.errors import NetworkingError

PAUSE_S = 0.05


def main(receiver: str, accepted: str) -> None:
    """Send until SIGTERM; a text is noted when the node has answered, and one without an answer is not sent again."""
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    client = ApiClient(load_config(), timeout_s=10)
    with open(accepted, "a", buffering=1) as file:
        number = 0
        while not stopping:
            number += 1
            text = f"{os.getpid()} {number:08}"
            try:
                client.post("/messaging/messages", {"device": receiver, "text": text})
            except NetworkingError:
                time.sleep(0.1)  # it is killed or starting
                continue
            file.write(text + "\n")
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
