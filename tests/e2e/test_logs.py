"""What two daemons write into their logs at the finest level, and that nothing in it is a secret."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.test_two_devices import pair, secrets_of

TEXT = "canary-text-8c41"
TITLE = "canary-title-77b0"
CONTENTS = b"canary-contents-51fe" * 1000
FILE_NAME = "canary-file-29ad.txt"
LIBRARIES = "libp2p=debug,hypercorn=debug,zeroconf=debug,anyio=debug"


def logs_of(node: Node) -> str:
    """All of its logs, what was rotated away included."""
    return "".join(file.read_text() for file in sorted(node.log_file.parent.iterdir()))


def test_no_secret_and_no_payload_is_logged_at_the_finest_level(make_node: MakeNode, tmp_path: Path) -> None:
    alice = make_node("alma", SDNET_LOG_LEVEL="debug", SDNET_LOG_FORMAT="json", SDNET_LOG_LEVELS=LIBRARIES)
    bob = make_node("bert", SDNET_LOG_LEVELS=LIBRARIES)
    alice.start()
    bob.start("--log-level", "debug")
    words = pair(alice, bob)
    alice.run("msg", "send", "bert", TEXT)
    bob.run("notify", "alma", TITLE, TEXT)
    file = tmp_path / FILE_NAME
    file.write_bytes(CONTENTS)
    alice.run("send", str(file), "--to", "bert")
    bob.run("send", str(file), "--to", "alma")
    bob.kill9()
    alice.run("msg", "send", "bert", TEXT)
    bob.start("--log-level", "debug")
    bob.wait_until(lambda: len(bob.ask("/messaging/inbox")) == 2, "the second message arrives")
    alice.run("ping", "bert")
    alice.run("msg", "send", "nobody", TEXT, expect=1)
    alice.stop()
    bob.stop()

    canaries = [TEXT.encode(), TITLE.encode(), CONTENTS[:20], FILE_NAME.encode(), words.encode()]
    for node in (alice, bob):
        written = logs_of(node)
        assert "DEBUG" in written or '"level": "debug"' in written
        for secret in (*canaries, *secrets_of(node)):
            forms = (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1], str(list(secret))[1:-1])
            found = [form for form in forms if form in written]
            assert not found, f"{node.name}'s log holds a secret"
        shown = {word for word in words.split() if len(word) > 6 and f" {word} " in written}
        assert len(shown) < 2, shown

    entries = [json.loads(line) for line in logs_of(alice).splitlines()]
    about_bert = [entry for entry in entries if entry["message"].endswith("(bert) is connected")]
    assert len(about_bert) >= 2
    assert all(entry["device_id"] and entry["peer_id"] for entry in about_bert)


def test_kinds_that_do_not_exist_are_told(running: Node) -> None:
    known = {found["kind"] for found in running.ask("/events/kinds")}
    of_plugins = {"transfer-progress", "text-received", "pairing-state-changed", "spacedrop-offered", "library-changed"}
    assert known >= {"node-started", *of_plugins}
    assert running.run("events", "--type", ",".join(of_plugins)).stdout == ""
    assert "'text-received'" in running.run("events", "--type", "text-recieved", expect=2).stderr
    wrong = running.run("events", "--follow", "--type", "node-started,bogus", "--json", expect=2).stderr
    assert "There are no events of the kind 'bogus'." in json.loads(wrong)["detail"]
    assert "node-started" in running.run("audit", "--kinds", "node-started, device-revoked").stdout
    assert "Did you mean 'device-revoked'" in running.run("audit", "--kinds", "device-revokd", expect=2).stderr
    # Events that are not of concern for security are no lines of it.
    assert "'peer-discovered'" in running.run("audit", "-f", "--kinds", "peer-discovered", expect=2).stderr
    assert "Did you mean 'swarm'" in running.run("logs", "--component", "swarn", expect=2).stderr
    assert "Nothing in the log is of asyncio." in running.run("logs", "--component", "asyncio").stderr


def test_levels_change_while_it_runs(running: Node) -> None:
    found = running.json("logs", "level", "session=debug", "daemon=warning")
    assert found["levels"]["session"] == "debug"
    assert "warning" in running.run("logs", "level").stdout
    running.run("logs", "level", "session=default", "daemon=default")
    assert "sessions" in running.run("logs", "level", "sessions=debug", expect=1).stderr
    shown = running.run("logs", "-n", "5").stdout
    assert "ready" in shown
    entries = [json.loads(line) for line in running.run("logs", "--json", "--component", "daemon").stdout.splitlines()]
    assert {entry["component"] for entry in entries} == {"daemon"}
