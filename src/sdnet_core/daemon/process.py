"""Starts a node as a background process and stops it (blocking, light to import)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import AlreadyRunningError, NetworkingError, NetworkTimeoutError, NotRunningError, StorageError
from .client import ApiClient, ApiError

__all__ = ["check_not_running", "lock_holder", "start_background", "stop_node"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
"""Longer than the node allows itself."""
_POLL_S = 0.01


def lock_holder(config: Config) -> int | None:
    """Look who runs on an instance's data directory.

    :returns: its process id, 0 if that is not known, None if nobody does.
    """
    try:
        import fcntl

        descriptor = os.open(config.paths.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{config.paths.lock_file} cannot be read: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return int(os.pread(descriptor, 32, 0))
        return 0
    finally:
        os.close(descriptor)
    return None


def check_not_running(config: Config) -> None:
    """Find out that no node runs.

    :raises AlreadyRunningError: one does.
    """
    holder = lock_holder(config)
    if holder is not None:
        process = f" (process {holder})" if holder else ""
        raise AlreadyRunningError(f"A node is already running for instance {config.instance}{process}.")


def start_background(config: Config, *, passphrase: bytes | None = None, tcp: bool = False) -> dict[str, Any]:
    """Start a node that outlives us, and wait until its local API answers.

    :param passphrase: opens the data; it goes through a pipe, which is seen by nobody else.
    :param tcp: serve the local API on loopback TCP although there are Unix sockets.
    :returns: its status.
    :raises NetworkingError: it did not start; says what it said.
    """
    import subprocess

    _make_private(config.paths.logs)
    _make_private(config.paths.data)
    reader, writer = os.pipe()
    arguments = [sys.executable, "-P", "-m", "sdnet_core.daemon", "--instance", config.instance]
    arguments += ["--ready-fd", str(writer), *(["--tcp"] if tcp else [])]
    for level in (config.log.level, *config.log.levels):
        arguments += ["--log-level", level]
    passed = [writer]
    if passphrase is not None:
        passed.append(_pipe_of(passphrase))
        arguments += ["--passphrase-fd", str(passed[-1])]
    environ = dict(os.environ)
    if home := environ.get("SDNET_HOME"):
        environ["SDNET_HOME"] = str(Path(home).expanduser().absolute())
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        log = os.open(config.paths.log_file, flags, 0o600)
    except OSError as error:
        raise StorageError(f"The log {config.paths.log_file} cannot be written: {error.strerror}.") from error
    with os.fdopen(reader, "rb") as answers:
        try:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=config.paths.data,
                env=environ,
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            for descriptor in (*passed, log):
                os.close(descriptor)
        try:
            answer = _read_answer(answers.fileno(), START_TIMEOUT_S)
        except BaseException:  # also an impatient person's Ctrl-C
            child.terminate()
            child.wait(STOP_TIMEOUT_S)
            raise
    if answer is None:
        code = child.wait(STOP_TIMEOUT_S)
        raise NetworkingError(f"The node ended while it started (status {code}). See {config.paths.log_file}.")
    if (problem := answer.get("problem")) is not None:
        child.wait(STOP_TIMEOUT_S)
        raise ApiError.from_problem(problem, 500)
    child.returncode = 0  # it runs on, and is not ours to wait for
    status: dict[str, Any] = answer["status"]
    return {**status, "pid": child.pid}


def stop_node(config: Config) -> None:
    """Stop an instance's node and wait until it is gone.

    :raises NotRunningError: there is none.
    :raises NetworkTimeoutError: it does not stop.
    """
    holder = lock_holder(config)
    with _exit_of(holder) as exited:
        try:
            ApiClient(config, timeout_s=3.0).post("/stop")
        except NotRunningError:
            if holder is None:
                raise
            _terminate(config, holder)
        except NetworkingError:
            _terminate(config, holder)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while lock_holder(config) is not None and not exited(_POLL_S):
            if time.monotonic() > deadline:
                raise NetworkTimeoutError(f"The node (process {holder}) does not stop. See {config.paths.log_file}.")
        # The lock goes last but for the interpreter itself.
        while not exited(_POLL_S) and time.monotonic() < deadline:
            pass


def _terminate(config: Config, holder: int | None) -> None:
    """Send SIGTERM to the process that holds the lock at this moment, and to no other."""
    if holder and lock_holder(config) == holder:
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGTERM)


@contextlib.contextmanager
def _exit_of(process_id: int | None) -> Iterator[Any]:
    """Give a function that waits some seconds for a process to end and says whether it has."""
    descriptor = None
    if process_id and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process_id)
    if descriptor is None:

        def exited(wait_s: float) -> bool:
            time.sleep(wait_s)
            return process_id is None or not _exists(process_id)

        yield exited
        return
    import select

    def exited_by_descriptor(wait_s: float) -> bool:
        return bool(select.select([descriptor], [], [], wait_s)[0])

    try:
        yield exited_by_descriptor
    finally:
        os.close(descriptor)


def _exists(process_id: int) -> bool:
    if not process_id:
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pipe_of(data: bytes) -> int:
    """A pipe to read some bytes from; they are fewer than one holds."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def _read_answer(descriptor: int, timeout_s: float) -> dict[str, Any] | None:
    """Read the one line of JSON that the node writes when it is up or has failed; None if it ended without one."""
    import select

    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise NetworkTimeoutError(f"The node did not come up within {timeout_s:g} s.")
        part = os.read(descriptor, 65536)
        if not part:
            return None
        line += part
    answer: dict[str, Any] = json.loads(line)
    return answer


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{directory} cannot be made: {error.strerror}.") from error
