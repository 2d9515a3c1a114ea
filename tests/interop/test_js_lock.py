"""The locked packages of the js-libp2p peer."""

from __future__ import annotations

import json

from tests.interop.js_setup import DIRECTORY


def test_every_package_has_its_hash_and_no_host() -> None:
    packages = json.loads((DIRECTORY / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = json.loads((DIRECTORY / "package.json").read_text(encoding="utf-8"))["dependencies"]
    root = packages.pop("")
    assert root["dependencies"] == wanted
    assert len(packages) > len(wanted)
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version
