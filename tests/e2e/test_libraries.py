"""A library on two devices, each a process, through the command line."""

from __future__ import annotations

from tests.e2e.conftest import MakeNode, Node
from tests.e2e.test_two_devices import pair


def entries(node: Node) -> int:
    count: int = node.ask("/sync/libraries/Recipes")["entries"]
    return count


def test_a_library_is_the_same_on_two_devices_and_after_a_kill(make_node: MakeNode) -> None:
    alice, bob = make_node("alice"), make_node("bob")
    alice.start()
    bob.start()
    pair(alice, bob)

    alice.run("sync", "create", "Recipes")
    alice.run("sync", "put", "Recipes", "recipe", "pancakes", "eggs=3")
    alice.run("sync", "invite", "Recipes", alice.json("devices")[0]["name"])
    bob.run("sync", "join", "Recipes")
    bob.wait_until(lambda: entries(bob) == 1, "the library fills")
    bob.run("sync", "put", "Recipes", "recipe", "waffles", "eggs=2")
    alice.wait_until(lambda: entries(alice) == 2, "what bob wrote comes")

    bob.kill9()
    lines = "".join(f'{{"kind": "note", "id": "{n}", "fields": {{"n": {n}}}}}\n' for n in range(300))
    (alice.data / "notes.jsonl").write_text(lines)
    alice.run("sync", "import", "Recipes", str(alice.data / "notes.jsonl"))
    bob.start()
    bob.wait_until(lambda: entries(bob) == 302, "bob catches up")
    [verification] = alice.json("sync", "verify", "Recipes")
    assert verification["equal"]
    assert alice.json("sync", "get", "Recipes", "recipe", "waffles")["fields"] == {"eggs": 2}
