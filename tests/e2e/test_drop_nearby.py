"""Two devices that are not paired, each a process, found by multicast on loopback: a drop through the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeNode, Node

NUMBER = re.compile(r"\b(\d{4} \d{4})\b")


class Screen:
    """What a command prints, as a person sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,)) for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: object) -> None:
        while character := stream.read(1):  # type: ignore[attr-defined]
            with self._changed:
                self.text += character
                self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Wait until something is shown.

        :returns: what a group in the pattern matched, or all of it.
        """
        with self._changed:
            shown = self._changed.wait_for(lambda: re.search(pattern, self.text), timeout=60)
        assert shown is not None, f"{pattern!r} is not shown: {self.text}"
        return str(shown[1] if shown.re.groups else shown[0])

    def type(self, text: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for the end of the command; gives its exit code."""
        code = self.process.wait(timeout=60)
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@pytest.fixture(scope="module")
def strangers(make_node: MakeNode) -> tuple[Node, Node]:
    """Two running nodes that are not paired; the second lets everyone find it. Names that no other test uses."""
    mark = uuid.uuid4().hex[:6]
    anna, ben = make_node(f"anna-{mark}"), make_node(f"ben-{mark}")
    anna.start()
    ben.start()
    ben.run("drop", "visibility", "everyone", "--for", "1h")
    return anna, ben


def screen(node: Node, *arguments: str) -> Screen:
    return Screen(node.popen(*arguments, stdin=subprocess.PIPE))


def test_a_person_finds_compares_and_sends(strangers: tuple[Node, Node], tmp_path: Path) -> None:
    anna, ben = strangers
    found = anna.wait_until(
        lambda: [device for device in anna.ask("/spacedrop/nearby") if device["name"] == ben.name], "ben is near"
    )
    assert (found[0]["paired"], found[0]["device_id"]) == (False, None)
    assert anna.name not in ben.run("drop", "nearby").stdout  # she lets nobody find her
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(bytes(range(256)) * 20_000)

    listening = screen(ben, "drop", "listen", "--to", str(tmp_path / "in"))
    listening.wait_for("everyone near")
    sending = screen(anna, "drop", "send", str(photo), "--to", ben.name, "--nearby", "--message", "from the lake")
    here, there = sending.wait_for(NUMBER.pattern), listening.wait_for(NUMBER.pattern)
    assert here == there
    assert "photo.jpg" not in listening.text  # nothing is told before the numbers were compared
    sending.wait_for(r"show the same number\?")
    sending.type("y")
    listening.wait_for(r"Take it\?")
    assert "photo.jpg" in listening.text
    assert "from the lake" in listening.text
    assert not (tmp_path / "in").exists()
    listening.type("y")
    assert sending.finish() == 0, sending.text
    assert f"{ben.name} has received photo.jpg" in sending.text
    listening.wait_for("Received photo.jpg")
    assert (tmp_path / "in" / "photo.jpg").read_bytes() == photo.read_bytes()
    listening.process.send_signal(signal.SIGINT)
    assert listening.finish() == 130
    assert "Traceback" not in listening.text
    (received,) = ben.json("drop", "inbox")
    assert received["check"] == here
    assert [entry["state"] for entry in anna.json("drop", "history")] == ["completed"]


def test_numbers_that_differ_end_it(strangers: tuple[Node, Node], tmp_path: Path) -> None:
    anna, ben = strangers
    (tmp_path / "secret.txt").write_text("secret")
    sending = screen(anna, "drop", "send", str(tmp_path / "secret.txt"), "--to", ben.name, "--nearby")
    number = sending.wait_for(NUMBER.pattern)
    ben.wait_until(lambda: ben.ask("/spacedrop/pending"), "ben is asked")
    (offer,) = ben.json("drop", "pending")
    assert (offer["check"], offer["items"], offer["state"]) == (number, [], "comparing")
    sending.wait_for(r"show the same number\?")
    sending.type("n")
    assert sending.finish() == 1
    ben.wait_until(lambda: ben.ask("/spacedrop/pending") == [], "ben is not asked any more")
    assert not list(ben.downloads.glob("*")) or not (ben.downloads / "secret.txt").exists()


def test_ctrl_c_at_the_question_cancels(strangers: tuple[Node, Node], tmp_path: Path) -> None:
    anna, ben = strangers
    (tmp_path / "a.txt").write_text("a")
    sending = screen(anna, "drop", "send", str(tmp_path / "a.txt"), "--to", ben.name, "--nearby")
    sending.wait_for(r"show the same number\?")
    ben.wait_until(lambda: ben.ask("/spacedrop/pending"), "ben is asked")
    sending.process.send_signal(signal.SIGINT)
    assert sending.finish() in (1, 130)
    assert "Traceback" not in sending.text
    ben.wait_until(lambda: ben.ask("/spacedrop/pending") == [], "ben is not asked any more")


def test_programs_do_the_same_in_json(strangers: tuple[Node, Node], tmp_path: Path) -> None:
    anna, ben = strangers
    (tmp_path / "report.txt").write_text("done")
    ben.wait_until(lambda: ben.ask("/spacedrop/pending") == [], "nothing is pending")
    sent = json.loads(
        anna.run(
            "drop", "send", str(tmp_path / "report.txt"), "--to", ben.name, "--nearby", "--detach", "--json"
        ).stdout
    )
    (offer,) = ben.json("drop", "pending")
    assert (offer["id"], offer["check"]) == (sent["id"], sent["check"])
    anna.run("drop", "confirm", sent["id"])
    ben.wait_until(lambda: ben.ask("/spacedrop/pending")[0]["state"] == "asking", "the offer is there")
    accepted = ben.json("drop", "accept", sent["id"])
    assert accepted["state"] == "completed"
    assert Path(accepted["paths"][0]).read_text() == "done"


def test_who_is_not_visible_is_not_found(strangers: tuple[Node, Node], tmp_path: Path) -> None:
    anna, ben = strangers
    ben.run("drop", "visibility", "paired")
    anna.wait_until(
        lambda: all(device["name"] != ben.name for device in anna.ask("/spacedrop/nearby")), "ben is not near any more"
    )
    (tmp_path / "a.txt").write_text("a")
    refused = anna.run("drop", "send", str(tmp_path / "a.txt"), "--to", ben.name, "--nearby", expect=1)
    assert "sdnet drop visibility everyone" in refused.stderr
