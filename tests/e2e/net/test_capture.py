"""What somebody who records the network learns from a pairing, a message and a transfer: none of what they say."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdnet_pairing import PairingCode, PairingUri
from tests.e2e.conftest import MakeNode, Node
from tests.e2e.net.cables import Namespace, Switch, why_not
from tests.e2e.net.stage import LONG, Stage, relayed
from tests.e2e.net.test_cables import SETTINGS, start
from tests.e2e.test_two_devices import pending

REASON = why_not()
if os.environ.get("SDNET_NET") == "required" and REASON:
    raise RuntimeError(REASON)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

RECORDER = """
import socket, struct, sys
every_protocol = 3
recorder = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every_protocol))
recorder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
recorder.bind(("port1", 0))
print("ready", flush=True)
with open(sys.argv[1], "wb") as file:
    while True:
        frame = recorder.recv(70000)
        file.write(struct.pack(">I", len(frame)) + frame)
        file.flush()
"""
SAID_OPENLY = (
    b"/multistream/1.0.0 /noise /yamux/1.0.0 /ipfs/id/1.0.0 /ipfs/ping/1.0.0 _p2p _udp local dnsaddr sdnet /p2p/ /tcp/"
)


class Recording:
    """All frames that pass the switch's first port, from when it is made until it is closed."""

    def __init__(self, middle: Namespace, file: Path) -> None:
        self._file = file
        command = [*middle.enter, sys.executable, "-c", RECORDER, str(file)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def frames(self) -> Iterator[bytes]:
        """Each frame as it was."""
        data, place = self._file.read_bytes(), 0
        while place + 4 <= len(data):
            (length,) = struct.unpack_from(">I", data, place)
            yield data[place + 4 : place + 4 + length]
            place += 4 + length

    def streams(self) -> list[bytes]:
        """What went over each TCP connection in each direction, put together."""
        parts: dict[bytes, dict[int, bytes]] = defaultdict(dict)
        for frame in self.frames():
            if frame[12:14] != b"\x08\x00" or frame[23] != 6:
                continue
            header = (frame[14] & 15) * 4
            tcp = frame[14 + header : 14 + struct.unpack_from(">H", frame, 16)[0]]
            payload = tcp[(tcp[12] >> 4) * 4 :]
            if payload:
                parts[frame[26:34] + tcp[:4]][struct.unpack_from(">I", tcp, 4)[0]] = payload
        return [b"".join(payload for _, payload in sorted(stream.items())) for stream in parts.values()]


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch()
    yield made
    made.close()


@pytest.fixture
def stage(make_node: MakeNode) -> Iterator[Stage]:
    made = Stage(make_node)
    yield made
    made.close()


def speak(alice: Node, bob: Node, folder: Path) -> list[bytes]:
    """Pair by words, send a text and a folder.

    :returns: what nobody else may learn.
    """
    showing = alice.popen("pair", "generate", "--json")
    assert showing.stdout is not None
    shown = json.loads(showing.stdout.readline())
    joining = bob.popen("pair", "join", "-", stdin=subprocess.PIPE)
    assert joining.stdin is not None
    joining.stdin.write(shown["code"])
    joining.stdin.close()
    joining.stdin = None
    alice.run("pair", "accept", pending(alice))
    for process in (joining, showing):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    alice.wait_connected()
    bob.wait_connected()
    alice.run("msg", "send", "canary-phone", "canary text between the two")
    album = folder / "canary-folder"
    album.mkdir()
    # Noise, which is sent as it is: what repeats would be compressed to nothing that could be missed.
    contents = b"".join(b"canary contents of the file " + os.urandom(8192) for _ in range(200))
    (album / "canary-picture.jpg").write_bytes(contents)
    alice.run("send", str(album), "--to", "canary-phone")
    assert (bob.downloads / "canary-folder" / "canary-picture.jpg").exists()

    code = PairingUri.parse(shown["uri"]).code
    assert code == PairingCode.parse(shown["words"])
    keys = code.keys()
    secrets = [code.entropy, keys.psk, keys.discovery, keys.record]
    needles = [form for secret in secrets for form in (secret, secret.hex().encode(), base64.urlsafe_b64encode(secret))]
    needles += [" ".join(pair).encode() for pair in zip(shown["words"], shown["words"][1:], strict=False)]
    # A short word occurs in 1 MiB of noise by chance; these do not.
    needles += [word.encode() for word in shown["words"] if len(word) >= 6 and word.encode() not in SAID_OPENLY]
    ids = [node.json("status")["device_id"] for node in (alice, bob)]
    return [*needles, b"canary", *(uuid.UUID(each).bytes for each in ids), *(each.encode() for each in ids)]


def found(needles: list[bytes], recording: Recording) -> list[bytes]:
    """Those of them that were heard."""
    everything = b"\0".join([*recording.frames(), *recording.streams()]).lower()
    # It has heard all of it: the file has passed.
    assert max(map(len, recording.streams())) > 1_000_000
    return [needle for needle in needles if needle.lower() in everything]


def test_a_recording_of_everything_holds_none_of_what_was_said(
    switch: Switch, make_node: MakeNode, tmp_path: Path
) -> None:
    alice, bob = make_node("canary-laptop", **SETTINGS), make_node("canary-phone", **SETTINGS)
    recording = Recording(switch.middle, tmp_path / "frames")
    try:
        for node, machine in zip((alice, bob), switch.machines, strict=True):
            start(node, machine)
        needles = speak(alice, bob, tmp_path)
        peers = [node.json("status")["peer_id"].encode() for node in (alice, bob)]
    finally:
        recording.close()
        for node in (alice, bob):
            if node.pid is not None:
                node.stop()
    assert found(needles, recording) == []
    # Who is there is told openly on a local network.
    assert found(peers, recording) == peers


@pytest.mark.skipif(not LONG, reason="Part of nox -s net.")
def test_a_recording_at_a_public_node_holds_none_of_it_either(stage: Stage, tmp_path: Path) -> None:
    """All goes through its DHT and relay."""
    point = stage.point(stage.internet.machine())
    recording = Recording(stage.internet.lan.switch, tmp_path / "frames")
    try:
        alice, bob = (
            stage.device(name, stage.internet.site(symmetric=True).machine(), point)
            for name in ("canary-laptop", "canary-phone")
        )
        needles = speak(alice, bob, tmp_path)
        assert relayed(alice)
        needles += [node.json("status")["peer_id"].encode() for node in (alice, bob)]
    finally:
        recording.close()
    assert found(needles, recording) == []
