"""Copy a file or a folder over a bare socket, without any protection: what the machine can do at best.

``raw_copy receive PORT FOLDER`` waits for one sender, ``raw_copy send PORT PATH`` is that.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import cast

_HEADER = struct.Struct(">HQ")
_BUFFER_BYTES = 1 << 20
_PATIENCE_S = 10.0


def _receive(port: int, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        connection, _ = server.accept()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    stream = cast(io.BufferedReader, connection.makefile("rb", buffering=_BUFFER_BYTES))
    with connection, stream as incoming:
        while header := incoming.read(_HEADER.size):
            length, left = _HEADER.unpack(header)
            path = folder / incoming.read(length).decode()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                while left:
                    count = incoming.readinto(buffer[: min(left, len(buffer))])
                    file.write(buffer[:count])
                    left -= count


def _send(port: int, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    with connection, connection.makefile("wb", buffering=_BUFFER_BYTES) as outgoing:
        for file in files:
            name = str(file.relative_to(path.parent)).encode()
            outgoing.write(_HEADER.pack(len(name), os.stat(file).st_size) + name)
            with file.open("rb", buffering=0) as content:
                while piece := content.read(_BUFFER_BYTES):
                    outgoing.write(piece)


if __name__ == "__main__":
    action, port, place = sys.argv[1:]
    (_receive if action == "receive" else _send)(int(port), Path(place))
