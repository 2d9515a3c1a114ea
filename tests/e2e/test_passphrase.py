"""A passphrase from every place it may come from, to daemons and to commands without one."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND, TIMEOUT_S, Node

OLD, NEW = "correct horse battery", "staple häuser 🐎"

# A keyring as a desktop's: another program that keeps what it is given. Only what keeps it differs.
BACKEND = """
import json, os, pathlib
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

FILE = pathlib.Path(os.environ["TEST_KEYRING"])

class FileKeyring(KeyringBackend):
    priority = 1

    def _read(self):
        return json.loads(FILE.read_text()) if FILE.exists() else {}

    def get_password(self, service, username):
        if os.environ.get("TEST_KEYRING_LOCKED"):
            raise RuntimeError("the collection is locked")
        return self._read().get(f"{service}/{username}")

    def set_password(self, service, username, password):
        FILE.write_text(json.dumps({**self._read(), f"{service}/{username}": password}))

    def delete_password(self, service, username):
        entries = self._read()
        if entries.pop(f"{service}/{username}", None) is None:
            raise PasswordDeleteError("no such entry")
        FILE.write_text(json.dumps(entries))
"""


def at_terminal(node: Node, *arguments: str, answers: list[str]) -> tuple[int, str]:
    """Run ``sdnet`` at a terminal, answering each question for a passphrase.

    :returns: the exit code, and all that the terminal showed.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [*COMMAND, *arguments], node.environ)
    shown, left = b"", list(answers)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
        if shown.rstrip(b" ").endswith(b":") and left:
            os.write(terminal, left.pop(0).encode() + b"\n")
            shown += b"\n"
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


def protection(node: Node) -> str:
    return str(node.json("passphrase")["protection"])


def with_keyring(node: Node, folder: Path) -> Path:
    """Give a node's commands a keyring.

    :returns: the file that it keeps its entries in.
    """
    folder.mkdir(exist_ok=True)
    (folder / "test_file_keyring.py").write_text(BACKEND)
    node.environ |= {
        "PYTHONPATH": str(folder),
        "PYTHON_KEYRING_BACKEND": "test_file_keyring.FileKeyring",
        "TEST_KEYRING": str(folder / "entries.json"),
    }
    return folder / "entries.json"


def test_set_while_it_runs_and_start_through_a_descriptor(node: Node) -> None:
    before = node.start()
    assert protection(node) == "unprotected"
    done = node.run("passphrase", "set", "--passphrase-fd", "0", input=f"{OLD}\n")
    assert "protected (passphrase, pbkdf2-sha256, 600,000 iterations)" in done.stdout
    assert node.json("status")["storage"]["protection"] == "protected"
    assert "protected (passphrase, pbkdf2-sha256, 600,000 iterations)" in node.run("status").stdout
    assert "already" in node.run("passphrase", "set", "--passphrase-fd", "0", input="other", expect=1).stderr
    node.stop()

    refused = node.run("start", expect=1)
    assert "--passphrase-fd" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    files = {path: path.read_bytes() for path in node.data.rglob("*") if path.is_file() and path.name != "lock"}
    for _ in range(3):  # no lock-out
        wrong = node.run("start", "--passphrase-fd", "0", input="wrong\n", expect=1)
        assert "The passphrase is wrong" in wrong.stderr
        assert len(wrong.stderr.strip().splitlines()) == 1
    assert files == {path: path.read_bytes() for path in files}
    started = node.run("start", "--json", "--passphrase-fd", "0", input=f"{OLD}\n")
    assert json.loads(started.stdout)["peer_id"] == before["peer_id"]
    secret = OLD.encode()
    command_line = Path(f"/proc/{node.pid}/cmdline").read_bytes()
    assert secret not in command_line
    assert secret not in Path(f"/proc/{node.pid}/environ").read_bytes()
    assert secret not in node.log_file.read_bytes()

    wrong = node.run("restart", "--passphrase-fd", "0", input="wrong\n", expect=1)
    assert "wrong" in wrong.stderr
    assert node.json("status")["pid"]  # it still runs
    node.run("restart", "--passphrase-fd", "0", input=f"{OLD}\n")

    both = ["--passphrase-fd", "0", "--new-passphrase-fd", "0"]
    assert "wrong" in node.run("passphrase", "change", *both, input=f"bad\n{NEW}\n", expect=1).stderr
    node.run("passphrase", "change", *both, "--kdf", "argon2id", input=f"{OLD}\n{NEW}\n")
    assert "argon2id" in node.run("status").stdout
    node.stop()
    assert "wrong" in node.run("start", "--passphrase-fd", "0", input=OLD, expect=1).stderr
    node.run("start", "--passphrase-fd", "0", input=NEW)
    node.run("passphrase", "remove", "--passphrase-fd", "0", input=NEW)
    node.stop()
    assert node.start()["peer_id"] == before["peer_id"]
    lines = map(json.loads, node.run("audit", "--json").stdout.splitlines())
    kinds = [line["mode"] for line in lines if line["kind"] == "vault-changed"]
    assert kinds == ["passphrase", "passphrase", "key-file"]
    node.stop()


def test_without_a_node(node: Node) -> None:
    assert "no data yet" in node.run("passphrase").stdout
    assert "no passphrase yet" in node.run("passphrase", "change", expect=1).stderr
    assert "descriptor" in node.run("passphrase", "set", expect=2).stderr
    node.run("passphrase", "set", "--passphrase-fd", "0", input=OLD)
    assert protection(node) == "protected"
    node.run("passphrase", "change", "--passphrase-fd", "0", "--new-passphrase-fd", "0", input=f"{OLD}\n{NEW}\n")
    assert "wrong" in node.run("passphrase", "remove", "--passphrase-fd", "0", input=OLD, expect=1).stderr
    node.run("start", "--passphrase-fd", "0", input=NEW)
    node.stop()
    node.run("passphrase", "remove", "--passphrase-fd", "0", input=NEW)
    node.start()
    node.stop()


@pytest.mark.parametrize(("text", "says"), [("", "no passphrase in"), ("x" * 1100, "longer"), ("\udcff", "UTF-8")])
def test_what_is_no_passphrase(node: Node, text: str, says: str) -> None:
    done = subprocess.run(
        [*COMMAND, "passphrase", "set", "--passphrase-fd", "0"],
        env=node.environ,
        input=text.encode(errors="surrogateescape"),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert says in done.stderr.decode()
    assert protection(node) == "None"
    assert "descriptor 87" in node.run("start", "--passphrase-fd", "87", expect=2).stderr


def test_from_a_systemd_credential(node: Node, tmp_path: Path) -> None:
    credential = tmp_path / "sdnet.passphrase"
    credential.write_text(OLD + "\n")
    node.environ["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    node.start()  # the first start takes it as the passphrase to set
    assert protection(node) == "protected"
    node.stop()
    credential.write_text(NEW)
    assert "wrong" in node.run("start", expect=1).stderr
    credential.write_text(OLD)
    node.start()
    node.stop()


def test_at_a_terminal(node: Node) -> None:
    code, shown = at_terminal(node, "passphrase", "set", answers=[OLD, OLD + "?", OLD, OLD])
    assert code == 0, shown
    assert "do not match" in shown
    assert OLD not in shown
    code, shown = at_terminal(node, "start", answers=["wrong", OLD])
    assert code == 0, shown
    assert "try again" in shown
    assert "Peer id" in shown
    code, shown = at_terminal(node, "start", answers=[])
    assert (code, "already running" in shown) == (1, True)  # and nobody was asked
    code, shown = at_terminal(node, "passphrase", "change", answers=[OLD, "short", "short"])
    assert code == 0, shown
    assert "soon guessed" in shown
    node.stop()
    code, shown = at_terminal(node, "start", answers=["a", "b", "c", "d"])
    assert code == 1
    assert "The passphrase is wrong" in shown
    assert node.pid is None


def test_from_the_keyring(node: Node, tmp_path: Path) -> None:
    entries = with_keyring(node, tmp_path / "keyring")

    def kept() -> list[str]:
        return list(json.loads(entries.read_text()).values())

    node.run("passphrase", "set", "--keyring", "--passphrase-fd", "0", input=OLD)
    assert kept() == [OLD]
    assert node.json("passphrase")["keyring"] is True
    assert "in the keyring" in node.run("passphrase").stdout
    node.start()
    both = ["--passphrase-fd", "0", "--new-passphrase-fd", "0"]
    node.run("passphrase", "change", *both, input=f"wrong\n{NEW}\n", expect=1)
    assert kept() == [OLD]
    node.run("passphrase", "change", *both, input=f"{OLD}\n{NEW}\n")
    assert kept() == [NEW]
    node.run("restart")

    node.environ["TEST_KEYRING_LOCKED"] = "1"
    assert "locked" in node.run("restart", expect=1).stderr
    assert node.json("status")["pid"]
    del node.environ["TEST_KEYRING_LOCKED"]
    node.stop()
    content = entries.read_text()
    entries.write_text("{}")  # lost: the passphrase itself still opens the data
    assert "any more" in node.run("start", expect=1).stderr
    code, shown = at_terminal(node, "start", answers=[NEW])
    assert code == 0, shown
    entries.write_text(content)
    node.run("passphrase", "change", "--no-keyring", *both, input=f"{NEW}\n{OLD}\n")
    assert kept() == []
    assert node.json("passphrase")["keyring"] is False
    node.run("passphrase", "remove", "--passphrase-fd", "0", input=OLD)
    node.stop()


@pytest.mark.parametrize(
    ("shadow", "says"),
    [("raise ImportError('no such module')", "sdnet-core[keyring]"), (None, "There is no keyring on this machine")],
)
def test_no_keyring_is_said_before_anything_changes(node: Node, tmp_path: Path, shadow: str | None, says: str) -> None:
    if shadow is not None:
        (tmp_path / "keyring.py").write_text(shadow)
        node.environ["PYTHONPATH"] = str(tmp_path)
    else:
        node.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
    failed = node.run("passphrase", "set", "--keyring", "--passphrase-fd", "0", input=OLD, expect=1)
    assert says in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert protection(node) == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
def test_the_memory_is_nobody_elses(running: Any) -> None:
    """No core file, and no debugger of the same user: what lies in /proc belongs to root then."""
    script = (
        "import os, sys; from sdnet_core.daemon.memory import keep_memory_private; keep_memory_private()\n"
        "import ctypes, resource; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(4)[:1])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # as it is without
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            Path(f"/proc/{running.pid}/environ").read_bytes()
