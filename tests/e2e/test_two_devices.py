"""Two devices, each a process, through the command line: the README's session."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import cbor2
import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.daemon.client import ApiClient, ApiError
from sdnet_core.storage import KeyFile, SecureStorage, Vault
from tests.e2e.conftest import MakeNode, Node


def show_code(node: Node, *options: str) -> tuple[str, subprocess.Popen[str]]:
    """Show a code; gives the words and the command that waits."""
    process = node.popen("pair", "generate", *options)
    assert process.stdout is not None
    for line in process.stdout:
        if len(words := line.split()) == 12:
            return " ".join(words), process
    raise AssertionError(f"no code: {process.stderr.read() if process.stderr else ''}")


def pending(node: Node) -> str:
    """Wait until a device asks to pair; gives the session's id."""
    node.wait_until(lambda: node.ask("/pairing/pending"), "a device asks to pair")
    session_id: str = node.json("pair", "pending")[0]["id"]
    return session_id


def pair(shows: Node, types: Node) -> str:
    """Pair two running nodes as two people would; gives the code."""
    words, showing = show_code(shows)
    joining = types.popen("pair", "join", "-", stdin=subprocess.PIPE)
    assert joining.stdin is not None
    joining.stdin.write(words)
    joining.stdin.close()
    joining.stdin = None
    shows.run("pair", "accept", pending(shows))
    for process in (joining, showing):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    shows.wait_connected()
    types.wait_connected()
    return words


@pytest.fixture(scope="module")
def paired(make_node: MakeNode) -> Iterator[tuple[Node, Node, str]]:
    """Two running, paired, connected nodes and the code they were paired with."""
    alice, bob = make_node("alice"), make_node("bob")
    alice.start()
    bob.start()
    yield alice, bob, pair(alice, bob)
    alice.stop()
    bob.stop()


def test_devices_and_ping(paired: tuple[Node, Node, str]) -> None:
    alice, bob, _ = paired
    (device,) = alice.json("devices")
    assert device["name"] == "bob"
    assert device["state"] == "connected"
    assert device["fingerprint"] == bob.json("status")["fingerprint"]
    assert "answered" in alice.run("ping", "bob", "--count", "2").stdout
    assert "bob" in alice.run("devices").stdout


def test_a_message_arrives_once(paired: tuple[Node, Node, str]) -> None:
    alice, bob, _ = paired
    alice.run("msg", "send", "bob", "Grüße aus dem Süden")
    alice.run("msg", "send", device_prefix(alice), "-", input="and a second one")
    texts = [message["text"] for message in bob.json("msg", "inbox")]
    assert texts == ["Grüße aus dem Süden", "and a second one"]


def device_prefix(node: Node) -> str:
    """The beginning of the other device's id."""
    device_id: str = node.json("devices")[0]["device_id"]
    return device_id[:8]


def test_a_drop_is_asked_for_and_accepted(paired: tuple[Node, Node, str], tmp_path: Path) -> None:
    alice, bob, _ = paired
    file = tmp_path / "photo.jpg"
    file.write_bytes(bytes(range(256)) * 8192)
    sending = alice.popen("drop", "send", str(file), "--to", "bob", "--message", "look")
    bob.wait_until(lambda: bob.ask("/spacedrop/pending"), "bob is asked")
    (offer,) = bob.json("drop", "pending")
    assert not (bob.downloads / "photo.jpg").exists()
    bob.run("drop", "accept", offer["id"])
    out, err = sending.communicate(timeout=60)
    assert sending.returncode == 0, out + err
    assert (bob.downloads / "photo.jpg").read_bytes() == file.read_bytes()
    assert bob.json("drop", "inbox")


def test_a_drop_that_is_rejected_ends_with_4_and_leaves_nothing(paired: tuple[Node, Node, str], tmp_path: Path) -> None:
    alice, bob, _ = paired
    file = tmp_path / "unwanted.bin"
    file.write_bytes(b"x" * 100_000)
    sending = alice.popen("drop", "send", str(file), "--to", "bob")
    bob.wait_until(lambda: bob.ask("/spacedrop/pending"), "bob is asked")
    (offer,) = bob.json("drop", "pending")
    bob.run("drop", "reject", offer["id"])
    _, err = sending.communicate(timeout=60)
    assert sending.returncode == 4
    assert "bob" in err
    assert not list(bob.downloads.rglob("unwanted*"))


def test_a_folder_arrives_whole(paired: tuple[Node, Node, str], tmp_path: Path) -> None:
    alice, bob, _ = paired
    folder = tmp_path / "album"
    (folder / "empty").mkdir(parents=True)
    (folder / "größe.txt").write_text("ü")
    script = folder / "run.sh"
    script.write_bytes(b"#!/bin/sh\n")
    script.chmod(0o755)
    alice.run("send", str(folder), "--to", "bob")
    got = bob.downloads / "album"
    assert sorted(p.name for p in got.iterdir()) == ["empty", "größe.txt", "run.sh"]
    assert (got / "größe.txt").read_text() == "ü"
    assert (got / "run.sh").stat().st_mode & 0o100
    assert alice.json("transfers")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_interrupting_the_command_cancels_the_transfer(
    paired: tuple[Node, Node, str], tmp_path: Path, options: list[str]
) -> None:
    alice, bob, _ = paired
    file = tmp_path / f"large{len(options)}.bin"
    file.write_bytes(bytes(64 << 20))
    alice.run("transfers", "limit", "--up", "1M")
    try:
        sending = alice.popen("send", str(file), "--to", "bob", *options)

        def moving() -> bool:
            return any(one["state"] == "transferring" for one in alice.ask("/file-transfer/transfers", state="active"))

        alice.wait_until(moving, "bytes move")
        sending.send_signal(signal.SIGINT)
        out, err = sending.communicate(timeout=60)
        assert (sending.returncode, out) == (130, "")
        assert "Cancelled. What has arrived is kept" in err
        for node in (alice, bob):
            node.wait_until(lambda node=node: not node.ask("/file-transfer/transfers", state="active"), "it is over")
            assert node.json("transfers")[0]["state"] == "cancelled"
    finally:
        alice.run("transfers", "limit", "--up", "off")
    assert not list(bob.downloads.glob(file.name))


def test_a_transfer_that_is_begun_by_one_request_is_followed_by_it(
    paired: tuple[Node, Node, str], tmp_path: Path
) -> None:
    alice, _, _ = paired
    (tmp_path / "a.txt").write_bytes(b"a")
    body = {"device": "bob", "paths": [str(tmp_path / "a.txt")]}
    client = ApiClient(alice.config)
    with client.stream("/file-transfer/transfers", body, watch=True) as states:
        found = list(states)
    assert [state["name"] for state in found] == ["a.txt"] * len(found)
    assert found[-1]["state"] == "completed"
    with pytest.raises(ApiError, match="carol"):
        client.stream("/file-transfer/transfers", body | {"device": "carol"}, watch=True)


def test_mistakes_are_named(paired: tuple[Node, Node, str], tmp_path: Path) -> None:
    alice, _, _ = paired
    missing = alice.run("send", str(tmp_path / "nothing"), "--to", "bob", expect=2)
    assert "nothing" in missing.stderr
    (tmp_path / "x").write_bytes(b"x")
    nobody = alice.run("send", str(tmp_path / "x"), "--to", "carol", expect=1)
    assert "carol" in nobody.stderr
    assert "bob" in nobody.stderr
    for wrong in (missing, nobody):
        assert "Traceback" not in wrong.stderr
    problem = json.loads(alice.run("ping", "carol", "--json", expect=1).stderr)
    assert problem["type"] == "urn:sdnet:error:device-not-found"


def test_events_are_followed(paired: tuple[Node, Node, str]) -> None:
    alice, bob, _ = paired
    alice.run("msg", "send", "bob", "before it follows")
    following = bob.popen("events", "--follow", "--since", "1h", "--type", "text-received", "--json")
    overdue = threading.Timer(60, following.kill)
    overdue.start()
    try:
        # What was before is shown from the same subscription, so what comes after is not missed.
        read_texts(following, "before it follows")
        alice.run("msg", "send", "bob", "while it follows")
        read_texts(following, "while it follows")
        assert following.poll() is None
    finally:
        overdue.cancel()
        following.terminate()
        following.communicate(timeout=30)


def read_texts(following: subprocess.Popen[str], text: str) -> None:
    """Read events of texts until one has this text."""
    assert following.stdout is not None
    for line in following.stdout:
        event = json.loads(line)
        assert event["kind"] == "text-received"
        if event["text"] == text:
            return
    raise AssertionError(f"no event tells of {text!r}: {following.stderr.read() if following.stderr else ''}")


def is_away(node: Node) -> bool:
    """Whether the node shows its other device as not connected."""
    return not node.ask("/devices")[0]["connected"]


def test_after_kill_9_they_reconnect_by_themselves(paired: tuple[Node, Node, str]) -> None:
    alice, bob, _ = paired
    for node, other in ((bob, alice), (alice, bob)):
        node.kill9()
        other.wait_until(partial(is_away, other), "the loss is noticed", timeout_s=10)
        node.start()
        node.wait_connected(timeout_s=10)
        other.wait_connected(timeout_s=10)
    alice.run("ping", "bob")


def test_no_secret_lies_in_the_data_folder_in_clear(paired: tuple[Node, Node, str]) -> None:
    alice, bob, words = paired
    for node in (alice, bob):
        secrets = secrets_of(node)
        assert len(secrets) >= 4
        # One word of the code can stand in a log by chance ("network"); two in a row do not.
        secrets += [" ".join(two).encode() for two in pairwise(words.split())]
        key_file = node.data / "vault.key"
        for file in [p for p in node.home.rglob("*") if p.is_file() and node.downloads not in p.parents]:
            content = file.read_bytes()
            for secret in secrets:
                for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                    assert form not in content, f"{file} holds a secret in clear"
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert node.json("status")["storage"]["protection"] == "unprotected"


def secrets_of(node: Node) -> list[bytes]:
    """The private key, and every pairing root and pairing id, read as the node reads them."""
    vault = Vault.open(node.data, KeyFile(), SystemClock(), SystemRandomness())
    storage = SecureStorage(
        node.data / "network",
        vault.subkey("network"),
        clock=SystemClock(),
        randomness=SystemRandomness(),
        runner=None,  # type: ignore[arg-type]
    )
    identity = cbor2.loads(storage._load(storage._path("identity"), "identity") or b"")
    secrets = [identity["seed"], vault.subkey("network"), vault.subkey("identity")]
    for name in storage._list(storage._folder("devices")):
        record = cbor2.loads(storage._load(storage._path(name), name) or b"")
        secrets.append(record["pairing_root"])
    return secrets


@pytest.fixture(scope="module")
def two_more(make_node: MakeNode) -> Iterator[tuple[Node, Node]]:
    """Two running nodes of their own."""
    ada, bill = make_node("ada"), make_node("bill")
    ada.start()
    bill.start()
    yield ada, bill
    ada.stop()
    bill.stop()


@pytest.fixture
def unpaired(two_more: tuple[Node, Node]) -> tuple[Node, Node]:
    """Two running nodes that know nobody."""
    for node in two_more:
        for device in node.ask("/devices"):
            node.run("devices", "forget", device["device_id"])
    return two_more


def test_a_code_is_good_once_and_wrong_codes_are_told_apart(unpaired: tuple[Node, Node]) -> None:
    ada, bill = unpaired
    words = pair(ada, bill)
    reused = bill.run("pair", "join", *words.split(), expect=None)
    assert reused.returncode in (1, 4)
    misspelt = bill.run("pair", "join", "abandom", *words.split()[1:], expect=2)
    assert "abandom" in misspelt.stderr
    assert "abandon" in misspelt.stderr
    checksum = bill.run("pair", "join", *(["abandon"] * 12), expect=2)
    assert "checksum" in checksum.stderr
    too_few = bill.run("pair", "join", "abandon", expect=2)
    assert "12" in too_few.stderr


def test_a_rejected_pairing_pairs_nobody(unpaired: tuple[Node, Node]) -> None:
    ada, bill = unpaired
    words, showing = show_code(ada)
    joining = bill.popen("pair", "join", *words.split())
    ada.run("pair", "reject", pending(ada))
    _, err = joining.communicate(timeout=60)
    assert joining.returncode == 4, err
    showing.communicate(timeout=60)
    assert showing.returncode == 1
    assert ada.json("devices") == bill.json("devices") == []
    assert ada.json("pair", "pending") == []


def test_auto_accept_asks_nobody(unpaired: tuple[Node, Node]) -> None:
    ada, bill = unpaired
    words, showing = show_code(ada, "--auto-accept")
    bill.run("pair", "join", *words.upper().split())
    showing.communicate(timeout=60)
    assert showing.returncode == 0
    assert bill.wait_connected()["name"] == "ada"
