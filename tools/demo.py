"""The main job, for real: two devices on this machine pair, talk, and send files; a third one is introduced.

Each device is a process of its own with a home of its own; everything goes through the ``sdnet`` command, as a person
would use it. Only the loopback interface is used. Nothing is left behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

SDNET = [sys.executable, "-m", "sdnet_core.cli"]
DROP_MIB = 64
FOLDER_FILES = 40
TIMEOUT_S = 120.0


class DemoError(Exception):
    """A stage did not do what it should."""


class Device:
    """One device: a home, and the command line in it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.home = folder / name
        self.downloads = self.home / "downloads"
        self.downloads.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SDNET_")}
        self.environ = {
            **kept,
            "HOME": str(self.home),
            "SDNET_HOME": str(self.home / "sdnet"),
            "SDNET_NODE_NAME": name,
            "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "SDNET_NODE_DOWNLOADS": str(self.downloads),
            "SDNET_DISCOVERY_MDNS_INTERFACES": "127.0.0.1",
            "XDG_RUNTIME_DIR": str(folder),
        }

    def run(self, *arguments: str, input: str | None = None) -> None:
        """Run a command and show what it prints."""
        say(f"{self.name}$ sdnet {' '.join(arguments)}")
        done = subprocess.run([*SDNET, *arguments], env=self.environ, input=input, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise DemoError(f"'sdnet {arguments[0]}' on the {self.name} ended with {done.returncode}")

    def json(self, *arguments: str) -> Any:
        """Run a command with ``--json`` and decode what it prints."""
        done = subprocess.run(
            [*SDNET, *arguments, "--json"], env=self.environ, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode != 0:
            raise DemoError(f"'sdnet {arguments[0]}' on the {self.name}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def background(self, *arguments: str, input: str | None = None) -> Background:
        """Start a command and show what it prints as it comes."""
        say(f"{self.name}$ sdnet {' '.join(arguments)}")
        return Background(self, arguments, input)

    def wait_connected(self) -> None:
        """Wait until the other device is connected."""
        wait_for(lambda: any(d["connected"] for d in self.json("devices")), f"the {self.name} is connected")


class Background:
    """A command that runs while the demo goes on."""

    def __init__(self, device: Device, arguments: tuple[str, ...], input: str | None) -> None:
        self._name = f"'sdnet {' '.join(arguments[:2])}' on the {device.name}"
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*SDNET, *arguments],
            env=device.environ,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if input is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(input)
            self._process.stdin.close()
        self._reader = threading.Thread(target=self._read, args=(device.name,), daemon=True)
        self._reader.start()

    def _read(self, name: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            print(f"   {name} | {line}", end="", flush=True)

    def finish(self) -> None:
        """Wait for its end."""
        code = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        if code != 0:
            raise DemoError(f"{self._name} ended with {code}")

    def end(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(TIMEOUT_S)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def wait_for(condition: Any, what: str, timeout_s: float = 30.0) -> Any:
    """Ask again and again until a condition holds; gives its value."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)
    return found


@contextmanager
def stage(title: str, times: list[tuple[str, float]]) -> Iterator[None]:
    """Name a stage and take its time."""
    say(f"\n== {title}")
    start = time.monotonic()
    yield
    times.append((title, time.monotonic() - start))
    say(f"   done in {times[-1][1]:.2f} s")


def digest(path: Path) -> str:
    """The BLAKE3 digest of a file, or of a folder: of the names and digests of all that is in it."""
    if path.is_file():
        hasher = blake3()
        hasher.update_mmap(path) if path.stat().st_size else None
        return hasher.hexdigest()
    lines = [f"{p.relative_to(path)} {digest(p) if p.is_file() else 'folder'}" for p in sorted(path.rglob("*"))]
    return blake3("\n".join(lines).encode()).hexdigest()


def make_files(folder: Path) -> tuple[Path, Path]:
    """A big file, and a folder with many files, an empty one and a sub-folder."""
    folder.mkdir()
    big = folder / "holiday.mp4"
    with big.open("wb") as file:
        for _ in range(DROP_MIB):
            file.write(os.urandom(1 << 20))
    album = folder / "album"
    (album / "raw" / "empty").mkdir(parents=True)
    chance = random.Random(1)
    for number in range(FOLDER_FILES):
        (album / f"picture {number:02}.jpg").write_bytes(chance.randbytes(chance.randrange(0, 300_000)))
    (album / "raw" / "nothing.txt").write_bytes(b"")
    return big, album


def check_same(sent: Path, received: Path) -> None:
    """Compare by BLAKE3 and say so."""
    ours, theirs = digest(sent), digest(received)
    say(f"   sent     {ours[:32]}…  {sent.name}")
    say(f"   received {theirs[:32]}…  {received.name}")
    if ours != theirs:
        raise DemoError(f"{received} is not what was sent")


def demo(
    folder: Path, laptop: Device, phone: Device, tablet: Device, running: list[Background]
) -> list[tuple[str, float]]:
    """All stages, one after the other."""
    times: list[tuple[str, float]] = []

    devices = (laptop, phone, tablet)
    with stage("Three nodes start, each a process with a home of its own", times):
        for starting in [device.background("start") for device in devices]:
            starting.finish()

    with stage("Two find each other by mDNS and pair with a 12-word code", times):
        showing = laptop.background("pair", "generate")
        running.append(showing)
        words = wait_for(
            lambda: next((w for line in showing.lines if len(w := line.split()) == 12), None), "a code is shown"
        )
        joining = phone.background("pair", "join", "-", input=" ".join(words) + "\n")
        running.append(joining)
        request = wait_for(lambda: laptop.json("pair", "pending"), "the phone asks to pair")[0]
        laptop.run("pair", "accept", request["id"])
        joining.finish()
        showing.finish()
        laptop.wait_connected()
        phone.wait_connected()
        laptop.run("devices")

    with stage("Ping: the round trip over the sealed session", times):
        laptop.run("ping", "phone")

    with stage("A message", times):
        laptop.run("msg", "send", "phone", "Dinner at eight?")
        phone.run("msg", "inbox")
        phone.run("msg", "send", "laptop", "Gladly!")

    big, album = make_files(folder / "files")

    with stage(f"Spacedrop of a {DROP_MIB} MiB file: the phone is asked, and accepts", times):
        dropping = laptop.background("drop", "send", str(big), "--to", "phone", "--message", "from our trip")
        running.append(dropping)
        offer = wait_for(lambda: phone.json("drop", "pending"), "the phone is asked")[0]
        phone.run("drop", "accept", offer["id"])
        dropping.finish()
        check_same(big, phone.downloads / big.name)

    with stage(f"A folder with {FOLDER_FILES} files", times):
        laptop.run("send", str(album), "--to", "phone")
        check_same(album, phone.downloads / album.name)

    with stage("The phone's node is killed (SIGKILL), started again, and both reconnect by themselves", times):
        pid = phone.json("status")["pid"]
        say(f"   kill -9 {pid}")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(d["connected"] for d in laptop.json("devices")), "the laptop notices")
        laptop.run("devices")
        phone.run("start")
        laptop.wait_connected()
        phone.wait_connected()
        laptop.run("devices")
        laptop.run("ping", "phone", "--count", "1")

    with stage("A third device pairs by the link of a QR code, and is introduced to the phone", times):
        showing = laptop.background("pair", "generate", "--qr", "--auto-accept")
        running.append(showing)
        link = wait_for(lambda: next((line for line in showing.lines if line.startswith("sdnet:")), None), "a link")
        tablet.run("pair", "join", "-", input=link)
        showing.finish()
        introducing = laptop.background("pair", "introduce", "tablet", "--to", "phone")
        running.append(introducing)
        for device in (tablet, phone):
            asked = wait_for(
                lambda device=device: device.json("pair", "pending"), f"the {device.name}'s person is asked"
            )
            device.run("pair", "accept", asked[0]["id"])
        introducing.finish()
        wait_for(lambda: [d["connected"] for d in tablet.json("devices")] == [True, True], "the tablet has both")
        tablet.run("devices")

    with stage("All stop", times):
        for stopping in [device.background("stop") for device in devices]:
            stopping.finish()
    return times


def main() -> int:
    """Run the demo in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="sdnet-demo-"))
    devices = [Device(folder, name) for name in ("laptop", "phone", "tablet")]
    running: list[Background] = []
    start = time.monotonic()
    try:
        times = demo(folder, *devices, running)
    except (DemoError, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        say(f"\nThe demo stopped: {error or 'interrupted'}")
        for device in devices:
            for log in sorted(device.home.rglob("sdnet.log")):
                say(f"\n-- the end of the {device.name}'s log\n{log.read_text(encoding='utf-8')[-3000:]}")
        return 1
    finally:
        for command in running:
            command.end()
        for device in devices:
            subprocess.run([*SDNET, "stop"], env=device.environ, capture_output=True, timeout=TIMEOUT_S)
        shutil.rmtree(folder)
    say("\n== What it did")
    for title, seconds in times:
        say(f"   {seconds:6.2f} s  {title}")
    say(f"   {time.monotonic() - start:6.2f} s  in all; nothing is left running, and {folder} is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
