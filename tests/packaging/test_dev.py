"""`dev.py` sets up a fresh checkout on a machine without a compiler, and then has nothing more to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"
# What a person has who has Python and uv, and no compiler.
PROGRAMS = ["bash", "env", "ls", "uname"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what dev.py needs of the sources."""
    checkout = tmp_path_factory.mktemp("dev") / "a checkout"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "tests", "dist", "build")
    shutil.copytree(ROOT, checkout, ignore=unwanted, symlinks=True)
    return checkout


@pytest.fixture(scope="module")
def run_dev(
    checkout: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the copy's dev.py with a `PATH` that has no compiler."""
    programs = checkout.parent / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program
        (programs / name).symlink_to(program)
    (programs / "uv").symlink_to(UV)

    def run_it(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(programs), "CC": "there-is-no-compiler"}
        interpreter = Path(sys.base_prefix) / "bin" / "python3"
        return run([interpreter, checkout / "dev.py", *arguments], cwd=checkout.parent, env=environment)

    return run_it


def test_a_fresh_checkout_is_set_up_once(
    checkout: Path, run_dev: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    first = run_dev("setup")
    if "is the network there?" in first.stderr and "rror sending request" in first.stderr:
        pytest.skip("the pinned packages are not in uv's cache and there is no network")
    assert first.returncode == 0, first.stderr
    assert "ready in" in first.stdout

    second = run_dev("setup")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")

    # The project itself is used from its sources, and its command is there.
    where = run_dev("run", "--", "--help")
    assert where.returncode == 0, where.stderr
    assert "Usage: sdnet" in where.stdout

    pyproject = checkout / "plugins" / "sdnet_pairing" / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "\n# a change\n")
    third = run_dev("setup")
    assert third.returncode == 0, third.stderr
    assert "ready in" in third.stdout


def test_a_failure_is_told_in_plain_words(
    checkout: Path, run_dev: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    pins = checkout / "requirements" / "dev.txt"
    pins.write_text("this is no requirement\n")
    for _ in range(2):  # what failed is tried again
        done = run_dev("setup")
        assert done.returncode == 1
        assert "dev.py: installing the packages failed" in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_command_it_explains_itself(run_dev: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_dev()
    assert done.returncode == 2
    for command in ("setup", "demo", "test", "run"):
        assert command in done.stdout
