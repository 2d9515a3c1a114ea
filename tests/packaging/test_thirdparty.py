"""A third party's way: the core's wheel in a clean environment, a plugin beside it, its own tests there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from tests.packaging.conftest import Environment

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def install_from_registry(run: Run, environment: Environment, *arguments: str) -> None:
    """Install packages in the versions that are pinned where they are; skip if they cannot be had."""
    pins = ["--constraint", str(ROOT / "requirements" / "dev.txt")]
    for offline in (["--offline"], []):
        done = run([UV, "pip", "install", "-q", *offline, "--python", environment.python, *pins, *arguments])
        if done.returncode == 0:
            return
    pytest.skip(f"{' '.join(arguments)} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def core_alone(make_environment: Callable[..., Environment], run: Run) -> Environment:
    """An environment with the core and what the tests of the examples need; examples come and go."""
    environment = make_environment("sdnet-core")
    install_from_registry(run, environment, "pytest", "fastapi>=0.115", "uvicorn>=0.30")
    return environment


@pytest.mark.parametrize("example", ["sdnet_echo", "sdnet_clipboard"])
def test_an_example_works_where_only_the_core_is(
    example: str,
    core_alone: Environment,
    wheel_of: Callable[[Path, Path], Path],
    run: Run,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    environment = core_alone
    assert environment.plugins() == {}
    source = tmp_path / example
    shutil.copytree(ROOT / "examples" / example, source, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    environment.install(str(wheel_of(source, tmp_path / "wheel")))
    request.addfinalizer(lambda: environment.uninstall(example.replace("_", "-")))
    (record,) = environment.plugins().values()
    assert (record["state"], record["distribution"]) == ("loaded", example.replace("_", "-"))

    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": ""}
    done = run([environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=source, env=home)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
    checked = environment.sdnet("plugin", "check", record["name"])
    assert checked.returncode == 0, checked.stdout


def test_the_fastapi_host_runs_where_only_the_core_is(core_alone: Environment, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "fastapi_host"
    shutil.copytree(ROOT / "examples" / "fastapi_host", source, ignore=shutil.ignore_patterns("__pycache__"))
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": ""}
    done = run([core_alone.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=source, env=home)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "1 passed" in done.stdout
