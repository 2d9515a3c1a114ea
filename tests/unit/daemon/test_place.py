"""What the daemon keeps in the runtime directory, the lock, and the log."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sdnet_core.config import Config, LogSettings
from sdnet_core.daemon.endpoint import endpoint_file, read_tcp_endpoint
from sdnet_core.daemon.listener import open_listener
from sdnet_core.daemon.log import configure_logging
from sdnet_core.daemon.process import lock_holder
from sdnet_core.errors import AlreadyRunningError, NetworkingError, StorageError, TransportError
from sdnet_core.storage import DirectoryLock


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield root
    root.setLevel(level)
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_is_private_and_goes_away(config: Config) -> None:
    path = config.paths.socket
    with open_listener(config) as listener:
        assert listener.endpoint is None
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.connect(str(path))
        with pytest.raises(AlreadyRunningError), open_listener(config):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_stale_socket_gives_way(config: Config) -> None:
    config.paths.runtime.mkdir(mode=0o700)
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(config.paths.socket))
    with open_listener(config), closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.connect(str(config.paths.socket))


def test_a_socket_that_is_no_longer_ours_is_left_alone(config: Config) -> None:
    path = config.paths.socket
    with open_listener(config):
        path.unlink()
        with closing(socket.socket(socket.AF_UNIX)) as other:
            other.bind(str(path))
    assert path.exists()


def test_a_runtime_path_that_is_too_long(config: Config, tmp_path: Path) -> None:
    long = replace(config, paths=replace(config.paths, runtime=tmp_path / ("x" * 120)))
    with pytest.raises(TransportError, match="107"), open_listener(long):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_runtime_directory_of_somebody_else_is_refused(config: Config) -> None:
    config.paths.runtime.mkdir(mode=0o700)
    os.chown(config.paths.runtime, 65534, 65534)
    with pytest.raises(StorageError, match="another user"), open_listener(config):
        pass


def test_the_tcp_endpoint(config: Config) -> None:
    assert read_tcp_endpoint(config) is None
    with open_listener(config, tcp=True) as listener:
        assert listener.endpoint == read_tcp_endpoint(config)
        assert listener.endpoint is not None
        assert listener.endpoint.host == "127.0.0.1"
        assert len(listener.endpoint.token) >= 40
        assert mode(endpoint_file(config)) == 0o600
        endpoint_file(config).write_text(json.dumps({"host": "x"}))
        with pytest.raises(NetworkingError, match="damaged"):
            read_tcp_endpoint(config)
    assert read_tcp_endpoint(config) is None


def test_who_holds_the_lock(config: Config) -> None:
    file = config.paths.lock_file
    assert lock_holder(config) is None
    lock = DirectoryLock(file.parent, file.name)
    lock.acquire()
    assert lock_holder(config) == os.getpid()
    lock.release()
    assert lock_holder(config) is None
    script = "import sys, pathlib; from sdnet_core.storage import DirectoryLock\n"
    script += (
        "lock = DirectoryLock(pathlib.Path(sys.argv[1]), sys.argv[2]); lock.acquire(); print('held', flush=True)\n"
    )
    script += "sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(file.parent), file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert lock_holder(config) == other.pid
        other.kill()
        other.wait()
        # Its number is still in the file; nobody holds the lock.
        assert file.read_text() == f"{other.pid}\n"
        assert lock_holder(config) is None


def test_the_log_is_private_and_rotates(
    config: Config, root_logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    small = replace(config, log=LogSettings(level="info", max_bytes=4096, backups=2))
    log = configure_logging(small, foreground=True)
    for number in range(300):
        # Given to the handlers themselves: what a logger gets pytest keeps too, and its workers cannot pass this on.
        record = logging.LogRecord("sdnet_test", logging.INFO, __file__, 1, f"line {number}, with \ud800", None, None)
        for handler in log.handlers:
            handler.handle(record)
    logging.getLogger("sdnet_test").info("fine enough")
    logging.getLogger("libp2p.some.part").info("chatter")
    logging.getLogger("sdnet_test").debug("too fine")
    files = sorted(config.paths.logs.iterdir())
    assert [file.name for file in files] == ["sdnet.log", "sdnet.log.1", "sdnet.log.2"]
    assert {mode(file) for file in files} == {0o600}
    assert mode(config.paths.logs) == 0o700
    assert all(file.stat().st_size <= 4096 for file in files)
    text = config.paths.log_file.read_text()
    assert "line 299" in text
    assert "fine enough" in text
    assert "chatter" not in text
    assert "too fine" not in text
    assert "line 299" in capfd.readouterr().err
    log.close()


def test_last_words_reach_the_log_also_after_a_rotation(config: Config) -> None:
    script = (
        "import sys, os, logging\n"
        "from dataclasses import replace\n"
        "from sdnet_core.config import LogSettings, load_config\n"
        "from sdnet_core.daemon.log import configure_logging\n"
        "configure_logging(replace(load_config(), log=LogSettings(max_bytes=4096)), foreground=False)\n"
        "for n in range(100): logging.getLogger('x').info('a line of text, number %d', n)\n"
        "print('said', flush=True); os.write(2, b'last words\\n')\n"
    )
    home = config.paths.data.parent.parent
    environ = {"SDNET_HOME": str(home), "SDNET_INSTANCE": config.instance, "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    text = config.paths.log_file.read_text()
    assert text.endswith("said\nlast words\n")
    assert config.paths.log_file.with_name("sdnet.log.1").exists()
