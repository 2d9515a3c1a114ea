"""Clean environments made from the built wheels and the pinned packages."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"
# What uv says when the package index cannot be reached.
NO_NETWORK = ("error sending request", "dns error", "network was disabled", "operation timed out")


class NoNetworkError(Exception):
    """A package is not in uv's cache and the index cannot be reached."""


def run_captured(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with its output captured, in an environment free of the caller's own settings."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SDNET_", "PYTHON", "COVERAGE", "UV_", "VIRTUAL_ENV")) or name == "UV_CACHE_DIR"
    }
    variables |= options.pop("env", {})
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False, **options)


def run_uv(*arguments: str | Path) -> None:
    """Run uv on its cache alone, or with the network if that is not enough.

    :raises NoNetworkError: if it needs the network and there is none
    """
    for offline in ("--offline", None):
        command: list[str | Path] = [UV, *([offline] if offline else []), *arguments]
        done = run_captured(command, cwd=ROOT)
        if done.returncode == 0:
            return
    if any(words in done.stderr for words in NO_NETWORK):
        raise NoNetworkError
    pytest.fail(f"uv {' '.join(map(str, arguments))} failed:\n{done.stderr}", pytrace=False)


def build_wheel(source: Path, into: Path, *options: str) -> None:
    """Build wheels with the pinned build tools of this environment."""
    done = run_captured(
        [UV, "build", "-q", "--wheel", "--offline", "--no-build-isolation", "-o", into, *options, source]
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment, and a home for the `sdnet` in it."""

    path: Path
    wheels: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.path / "bin" / "python"

    def install(self, *distributions: str) -> None:
        """Install our own distributions; whatever else they need must be pinned, thus there already."""
        index: list[str | Path] = ["--no-index", "--find-links", self.wheels]
        run_uv("pip", "install", "-q", "--python", self.python, *index, *distributions)

    def uninstall(self, distribution: str) -> None:
        """Remove one distribution."""
        run_uv("pip", "uninstall", "-q", "--python", self.python, distribution)

    def sdnet(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the installed `sdnet`."""
        home = {"SDNET_HOME": str(self.path / "sdnet-home"), "HOME": str(self.path), **variables}
        return run_captured([self.path / "bin" / "sdnet", *arguments], env=home, cwd=self.path)

    def plugins(self, **variables: str) -> dict[str, dict[str, Any]]:
        """Return what `sdnet plugins --json` lists, by name."""
        done = self.sdnet("plugins", "--json", **variables)
        assert done.returncode == 0, done.stderr
        return {record["name"]: record for record in json.loads(done.stdout)}

    def modules_after(self, code: str) -> set[str]:
        """Return the top-level modules that are loaded after some code has run."""
        report = "import json, sys; sys.stderr.write(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
        program = f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}"
        home = {"SDNET_HOME": str(self.path / "sdnet-home"), "HOME": str(self.path)}
        done = run_captured([self.python, "-c", program], env=home, cwd=self.path)
        assert "Traceback" not in done.stderr, done.stderr
        return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build every distribution of the workspace, once for all the workers of a run."""
    own = tmp_path_factory.getbasetemp()
    directory = (own if worker_id == "master" else own.parent) / "wheels"
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = directory / "complete"
        if not built.exists():
            build_wheel(ROOT, directory, "--all-packages")
            built.touch()
    return directory


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give `run_captured` to tests."""
    return run_captured


@pytest.fixture(scope="session")
def wheel_of() -> Callable[[Path, Path], Path]:
    """Build the wheel of a source directory into another directory, and return its path."""

    def build(source: Path, into: Path) -> Path:
        build_wheel(source, into)
        (wheel,) = into.glob("*.whl")
        return wheel

    return build


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Callable[..., Environment]:
    """Make environments that hold the pinned packages and the distributions asked for."""

    def make(*distributions: str) -> Environment:
        environment = Environment(tmp_path_factory.mktemp("environment"), wheels)
        pins = ["--build-constraints", "requirements/build.txt", "requirements/runtime.txt"]
        try:
            run_uv("venv", "-q", "--clear", "--python", sys.executable, environment.path)
            run_uv("pip", "sync", "-q", "--require-hashes", "--python", environment.python, *pins)
        except NoNetworkError:
            pytest.skip("the pinned packages are not in uv's cache and there is no network")
        environment.install(*distributions)
        return environment

    return make
