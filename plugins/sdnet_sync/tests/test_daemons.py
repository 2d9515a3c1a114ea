"""Daemons as processes: three that share a library, and two that are killed again and again while they mirror."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdnet_core import load_config
from sdnet_core.cli.kit import ApiClient, ApiError
from sdnet_core.testing import Daemon, paired_daemons

WITHIN_S = 90.0
KILLS = int(os.environ.get("SDNET_SYNC_KILLS", "3"))


def until(condition: Callable[[], bool], what: str, *, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


def client(daemon: Daemon) -> ApiClient:
    """Its local API: quicker than a command, for what is asked again and again."""
    return ApiClient(load_config(daemon.name, environ=daemon.environment))


def ask(daemon: Daemon, path: str = "", **query: str) -> Any:
    """Ask for something of the library; None if it is not there."""
    try:
        return client(daemon).get(f"/sync/libraries/Recipes{path}", **query)
    except ApiError as error:
        if error.http_status != 404:
            raise
        return None


def entries(daemon: Daemon) -> int:
    return int(ask(daemon)["entries"])


def in_step(*daemons: Daemon) -> bool:
    """Whether all are equal to each other: `sync verify` says so at each of them."""
    for daemon in daemons:
        try:
            rows = client(daemon).post("/sync/libraries/Recipes/verify", {"device": None, "repair": False})
        except ApiError:
            return False  # the other side was away just then
        if len(rows) < len(daemons) - 1 or not all(row["equal"] and row["in_step"] for row in rows):
            return False
    for daemon in daemons:
        rows = daemon.json("sync", "verify", "Recipes")
        assert all(row["equal"] for row in rows), rows
    return True


def fields(daemon: Daemon, entry_id: str) -> Any:
    found = ask(daemon, "/entry", kind="recipe", id=entry_id)
    return None if found is None else found["fields"]


def share(owner: Daemon, *others: Daemon) -> None:
    owner.run("sync", "create", "Recipes")
    for other in others:
        owner.run("sync", "invite", "Recipes", other.name)
        other.run("sync", "join", "Recipes")
    for other in others:
        until(lambda other=other: ask(other)["state"] == "active", "membership")


def test_three_devices(tmp_path: Path) -> None:
    with paired_daemons(tmp_path, ("alice", "bob", "carol")) as (alice, bob, carol):
        share(alice, bob, carol)
        alice.run("sync", "put", "Recipes", "recipe", "pancakes", "eggs=3")
        for other in (bob, carol):
            until(lambda other=other: fields(other, "pancakes") == {"eggs": 3}, f"{other.name} sees it")
            assert other.json("sync", "get", "Recipes", "recipe", "pancakes")["fields"] == {"eggs": 3}

        carol.stop()
        lines = "".join(f'{{"kind": "note", "id": "{n}", "fields": {{"n": {n}}}}}\n' for n in range(10_000))
        (tmp_path / "notes.jsonl").write_text(lines)
        alice.run("sync", "import", "Recipes", str(tmp_path / "notes.jsonl"))
        carol.start()
        until(lambda: entries(carol) == 10_001, "carol catches up with 10,000 changes")

        for daemon in (alice, bob):
            daemon.run("sync", "pause", "Recipes")
        alice.run("sync", "put", "Recipes", "recipe", "pancakes", "eggs=4")
        bob.run("sync", "put", "Recipes", "recipe", "pancakes", "eggs=5")
        for daemon in (alice, bob):
            daemon.run("sync", "resume", "Recipes")

        def sides(daemon: Daemon) -> list[int]:
            return sorted(side["value"] for row in ask(daemon, "/conflicts") for side in row["sides"])

        for daemon in (alice, bob, carol):
            until(lambda daemon=daemon: sides(daemon) == [4, 5], f"{daemon.name} lists both")
            assert len(daemon.json("sync", "conflicts", "Recipes")) == 1
        carol.run("sync", "resolve", "Recipes", "recipe", "pancakes", "eggs=6")
        for daemon in (alice, bob, carol):
            until(lambda daemon=daemon: sides(daemon) == [], f"{daemon.name} hears of the resolution")
            assert daemon.json("sync", "get", "Recipes", "recipe", "pancakes")["fields"] == {"eggs": 6}
        until(lambda: in_step(alice, bob, carol), "all are in step")


def test_kill_9_while_mirroring(tmp_path: Path) -> None:
    rng = random.Random(11)
    with paired_daemons(tmp_path / "home") as daemons:
        alice, bob = daemons
        share(alice, bob)
        roots = {daemon.name: tmp_path / f"{daemon.name} files" for daemon in daemons}
        for daemon in daemons:
            roots[daemon.name].mkdir()
        alice.run("sync", "mirror", "Recipes", str(roots["alice"]), "--name", "Files")
        until(lambda: bool(ask(bob, "/files")), "bob knows of the mirror")
        bob.run("sync", "mirror", "Recipes", str(roots["bob"]))
        expected: dict[str, bytes] = {}
        for number in range(KILLS):
            for name, root in roots.items():
                for _ in range(30):
                    # Each side changes its own files, so that it is known what has to come out.
                    path = f"{name}/{rng.randrange(80)}.bin"
                    if path in expected and rng.random() < 0.2:
                        (root / path).unlink()
                        del expected[path]
                        continue
                    expected[path] = rng.randbytes(rng.choice((0, 10, 3000, 200_000, 500_000)))
                    (root / path).parent.mkdir(exist_ok=True)
                    (root / path).write_bytes(expected[path])
            victim = rng.choice(daemons)
            pid = client(victim).get("/status")["pid"]
            time.sleep(rng.uniform(0.0, 1.0))  # the moment is the point of the test
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not _runs(pid), f"kill {number}")
            victim.start()
        for daemon in daemons:
            root = roots[daemon.name]
            try:
                until(lambda root=root: files(root) == expected, f"{daemon.name} has all", within_s=120)
            except AssertionError:
                found = files(root)
                wrong = sorted(path for path in expected.keys() | found if expected.get(path) != found.get(path))
                raise AssertionError(f"{daemon.name}: {wrong}, {daemon.json('sync', 'locations', 'Recipes')}") from None
        until(lambda: in_step(*daemons), "the libraries are equal")
        assert [daemon.json("sync", "conflicts", "Recipes") for daemon in daemons] == [[], []]


def _runs(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].startswith(("Z", "X"))
    except OSError:
        return False


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] != ".sdnet"
    }
