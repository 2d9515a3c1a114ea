#!/usr/bin/env python3
"""Make the project's environment and run something in it.

`python3 dev.py setup` makes `.venv` from the pinned packages; `demo`, `test` and `run -- ARGS` do so first when
anything has changed. Only the standard library is used, and the file can be parsed by Pythons too old to run it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "bin")
PYTHON = os.path.join(BIN, "python")
STAMP = os.path.join(VENV, "sdnet-setup.sha256")
OLDEST = (3, 11)
NEWEST = (3, 14)


class SetupError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(argv: list[str]) -> int:
    """Run one command.

    :param argv: the command line without the program's name
    :returns: the exit status
    """
    parser = argparse.ArgumentParser(prog="dev.py", description="Set up the project and run it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in (
        ("setup", "make or refresh .venv"),
        ("demo", "devices on this machine pair, talk and send files"),
        ("test", "lint, types and all tests"),
        ("run", "run sdnet from .venv: dev.py run -- status"),
    ):
        commands.add_parser(name, help=text).add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 2
    if os.name != "posix":
        print("dev.py: this works on Linux and macOS; on Windows use WSL.", file=sys.stderr)
        return 1
    if sys.version_info < OLDEST:
        return restart_on_newer_python()
    try:
        set_up()
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    arguments = [argument for i, argument in enumerate(options.arguments) if i or argument != "--"]
    sys.stdout.flush()
    if options.command == "run":
        return run_in_venv([os.path.join(BIN, "sdnet"), *arguments])
    if options.command in ("demo", "test"):
        noxfile = os.path.join(ROOT, "noxfile.py")
        return run_in_venv([PYTHON, "-m", "nox", "-f", noxfile, "-s", options.command, "--", *arguments])
    return 0


def set_up() -> None:
    """Bring `.venv` up to date with the pins; does nothing when the stamp says that it is.

    :raises SetupError: if a step fails
    """
    import fcntl  # only POSIX has it, and main has to be able to say so

    with open(os.path.abspath(__file__), "rb") as lock:  # two runs at once would write over each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_text(STAMP) == fingerprint():
            return
        started_at = time.monotonic()
        make_venv()
        uv = find_uv()
        say("installing the pinned packages and the project")
        members = [os.path.join(ROOT, directory) for directory in member_directories()]
        command = [uv, "pip", "sync", "--quiet", "--python", PYTHON]
        command += ["--build-constraints", pins("build"), pins("dev"), editables(members)]
        checked(command, "installing the packages failed; is the network there?")
        with open(STAMP, "w", encoding="utf-8") as stamp:
            stamp.write(fingerprint())
        say(f"ready in {time.monotonic() - started_at:.0f} s")


def make_venv() -> None:
    """Create `.venv` unless a usable one is there.

    :raises SetupError: if Python cannot make one
    """
    if os.path.exists(PYTHON):
        probe = [PYTHON, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST!r})"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return
        say(".venv is of no use any more: making it again")
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"making .venv with Python {version}")
    if has_ensurepip():
        checked([sys.executable, "-m", "venv", "--clear", VENV], "making .venv failed")
    elif shutil.which("uv"):
        checked(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, VENV], "making .venv failed")
    else:
        short = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(
            f"this Python ({sys.executable}) cannot make virtual environments.\n"
            f"On Debian and Ubuntu: apt install python{short}-venv. Elsewhere: a Python with ensurepip, or uv."
        )


def has_ensurepip() -> bool:
    """Say whether this Python can put pip into a new environment (Debian ships that apart)."""
    probe = [sys.executable, "-c", "import ensurepip, venv"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def find_uv() -> str:
    """Find uv, or install the pinned one into `.venv`.

    :returns: the path of the program
    :raises SetupError: if it cannot be installed
    """
    own = os.path.join(BIN, "uv")
    for candidate in (own, shutil.which("uv")):
        if candidate and os.path.exists(candidate) and speaks_our_options(candidate):
            return candidate
    say("installing uv into .venv")
    checked([PYTHON, "-m", "ensurepip", "--upgrade"], "this Python has no pip", quiet=True)
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    checked([*command, "--require-hashes", "-r", pins("uv")], "installing uv failed; is the network there?")
    return own


def speaks_our_options(uv: str) -> bool:
    """Say whether this uv is new enough for what `set_up` asks of it."""
    try:
        words = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout.split()
        return tuple(int(part) for part in words[1].split(".")[:2]) >= (0, 8)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return False


def member_directories() -> list[str]:
    """List the workspace's distributions, relative to the root, the core first."""
    found = [""]
    for parent in ("plugins", "packages"):
        for name in sorted(os.listdir(os.path.join(ROOT, parent))):
            if os.path.exists(os.path.join(ROOT, parent, name, "pyproject.toml")):
                found.append(os.path.join(parent, name))
    return found


def editables(directories: list[str]) -> str:
    """Write the requirements file that installs our own distributions from their sources.

    :returns: its path, inside `.venv` because its paths hold for this checkout only
    """
    path = os.path.join(VENV, "sdnet-members.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"-e {directory}\n" for directory in directories)
    return path


def pins(name: str) -> str:
    """Return the path of one file of pinned packages."""
    return os.path.join(ROOT, "requirements", f"{name}.txt")


def fingerprint() -> str:
    """Return the SHA-256, in hex, of everything that decides what is in `.venv`."""
    digest = hashlib.sha256()
    files = [pins("dev"), pins("build"), pins("uv"), os.path.join(VENV, "pyvenv.cfg"), os.path.abspath(__file__)]
    files += [os.path.join(ROOT, directory, "pyproject.toml") for directory in member_directories()]
    for path in files:
        digest.update(f"{path}\0{read_text(path)}\0".encode())
    return digest.hexdigest() if os.path.exists(PYTHON) else ""


def read_text(path: str) -> str | None:
    """Return a file's text, or None if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Return the environment in which `.venv` is the active one."""
    unwanted = ("PYTHONHOME", "PYTHONPATH", "CONDA_PREFIX")
    result = {key: value for key, value in os.environ.items() if key not in unwanted}
    result["VIRTUAL_ENV"] = VENV
    result["PATH"] = BIN + os.pathsep + result.get("PATH", os.defpath)
    return result


def checked(command: list[str], message: str, quiet: bool = False) -> None:
    """Run a command that must succeed.

    :param message: what to tell the user if it does not
    :param quiet: whether its output is of no interest
    :raises SetupError: if it fails
    """
    output = subprocess.DEVNULL if quiet else None
    status = subprocess.run(command, cwd=ROOT, env=environment(), stdout=output, check=False).returncode
    if status:
        raise SetupError(f"{message} ({os.path.basename(command[0])} ended with status {status})")


def run_in_venv(command: list[str]) -> int:
    """Become the given command, with `.venv` active; does not return when that works.

    :returns: 127 if there is no such command
    """
    try:
        os.execve(command[0], command, environment())
    except OSError as error:
        print(f"dev.py: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


def restart_on_newer_python() -> int:
    """Run this script again on a Python that is new enough.

    :returns: 1 if there is none; does not return otherwise
    """
    probe = f"import sys; sys.exit(sys.version_info < {OLDEST!r})"
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        path = shutil.which(f"python3.{minor}")
        if path is None or subprocess.run([path, "-c", probe], stderr=subprocess.DEVNULL, check=False).returncode:
            continue  # a version manager's shim may be on the PATH without its Python
        os.execv(path, [path, os.path.abspath(__file__), *sys.argv[1:]])
    wanted, present = ".".join(map(str, OLDEST)), ".".join(map(str, sys.version_info[:3]))
    print(f"dev.py: Python {wanted} or newer is needed; this is {present} and the PATH has no other.", file=sys.stderr)
    return 1


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"dev.py: {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
