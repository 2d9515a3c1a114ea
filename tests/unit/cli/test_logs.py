"""``sdnet logs``: both forms, filters, rotation, following."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sdnet_core.config import LogSettings, load_config
from sdnet_core.daemon.log import DaemonLog, PrivateRotatingHandler
from sdnet_core.errors import ConfigurationError, InvalidRequestError
from sdnet_core.log_lines import HumanFormatter, JsonFormatter

COMMAND = [sys.executable, "-m", "sdnet_core.cli", "logs"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"SDNET_HOME": str(tmp_path), "PATH": os.environ["PATH"], "TZ": "UTC"}


@pytest.fixture(params=["human", "json"])
def log(request: pytest.FixtureRequest, environ: dict[str, str]) -> Iterator[DaemonLog]:
    """The log of a node in this process; a small one, so that it rotates."""
    settings = LogSettings(level="debug", format=request.param, max_bytes=8192, backups=2)
    config = replace(load_config(environ=environ), log=settings)
    config.paths.logs.mkdir(parents=True)
    handler = PrivateRotatingHandler(str(config.paths.log_file), max_bytes=settings.max_bytes, backups=settings.backups)
    handler.setFormatter(JsonFormatter() if request.param == "json" else HumanFormatter())
    made = DaemonLog(config, [handler])
    yield made
    made.close()
    logging.getLogger().setLevel(logging.WARNING)


def write(log: DaemonLog, name: str, level: int, message: str) -> None:
    log.handlers[0].handle(logging.LogRecord(name, level, __file__, 1, message, None, None))


def read(environ: dict[str, str], *arguments: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [*COMMAND, "--json", *arguments], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_filters_and_rotated_files(log: DaemonLog, environ: dict[str, str]) -> None:
    write(log, "sdnet_core.swarm.x", logging.ERROR, "the first")
    for number in range(40):
        write(log, "sdnet_core.session.y", logging.DEBUG, f"number {number} {'-' * 200}")
    write(log, "sdnet_messaging.z", logging.INFO, "the last")
    found = read(environ, "-n", "1000")
    assert [found[0]["message"], found[-1]["message"]] == ["the first", "the last"]
    assert len(found) == 42
    assert Path(f"{log.describe()['file']}.1").exists()
    assert [entry["message"] for entry in read(environ, "-n", "1")] == ["the last"]
    assert [entry["message"] for entry in read(environ, "--level", "info")] == ["the first", "the last"]
    assert [e["component"] for e in read(environ, "--component", "messaging,swarm")] == ["swarm", "messaging"]


def test_a_component_that_does_not_exist_is_told(log: DaemonLog, environ: dict[str, str]) -> None:
    write(log, "my_weather.radar", logging.INFO, "it rains")
    # In the log, a part of the core, a plugin, a library: all may be asked for, whether or not they have logged.
    command = [*COMMAND, "--json", "--component", "my_weather,swarm, messaging,zeroconf"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["it rains"]
    said = "Nothing in the log is of messaging or swarm or zeroconf. It has entries of: my_weather.\n"
    assert done.stderr == said
    for words, hint in (("swarn", "Did you mean 'swarm'"), ("zzz", "There are: anyio, "), ("core,zzz", "my_weather")):
        done = subprocess.run(
            [*COMMAND, "--component", words], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"Nothing logs as {words.split(',')[-1]!r}. " in done.stderr
        assert hint in done.stderr


def test_following_goes_on_over_a_rotation(log: DaemonLog, environ: dict[str, str]) -> None:
    write(log, "sdnet_core.core", logging.INFO, "before")
    with subprocess.Popen([*COMMAND, "-f", "--json"], env=environ, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["message"] == "before"
        sent = [f"number {number} {'-' * 300}" for number in range(60)]
        got = []
        for message in sent:
            write(log, "sdnet_core.core", logging.INFO, message)
            got.append(json.loads(following.stdout.readline())["message"])
        following.terminate()
    assert got == sent
    assert Path(f"{log.describe()['file']}.2").exists()


def test_no_log_is_said(environ: dict[str, str]) -> None:
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert "no node has run yet" in done.stderr


def test_the_last_words_of_a_crash_are_shown(log: DaemonLog, environ: dict[str, str]) -> None:
    with open(log.describe()["file"], "a") as file:
        file.write("Fatal Python error: Segmentation fault\n  File x\n")
    write(log, "sdnet_core.core", logging.INFO, "started again")
    done = subprocess.run([*COMMAND, "--level", "error"], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "Fatal Python error: Segmentation fault\n  File x\n"


def enabled(name: str, level: int) -> bool:
    return logging.getLogger(name).isEnabledFor(level)


def test_levels_by_component(environ: dict[str, str]) -> None:
    config = load_config(environ={**environ, "SDNET_LOG_LEVELS": "swarm=debug,messaging=error,core=warning"})
    log = DaemonLog(config, [])
    try:
        assert enabled("sdnet_core.swarm.libp2p", logging.DEBUG)
        assert not enabled("sdnet_core.session.control", logging.DEBUG)
        assert enabled("sdnet_core.session.control", logging.INFO)
        assert not enabled("sdnet_core.pairings", logging.INFO)
        assert not enabled("sdnet_messaging.inbox", logging.WARNING)
        assert not enabled("libp2p.host", logging.INFO)
        log.change("debug", {"swarm": None, "libp2p": "debug"})
        assert enabled("sdnet_core.session.control", logging.DEBUG)
        assert enabled("libp2p.host", logging.DEBUG)
        assert not enabled("hypercorn.x", logging.INFO)
        assert log.describe()["levels"] == {"core": "warning", "libp2p": "debug", "messaging": "error"}
        with pytest.raises(InvalidRequestError, match="swarn"):
            log.change(None, {"swarn": "debug"})
        with pytest.raises(InvalidRequestError, match="loud"):
            log.change("loud", {})
    finally:
        log.close()
        logging.getLogger().setLevel(logging.WARNING)
    assert not enabled("sdnet_core.session.control", logging.DEBUG)


def test_a_wrong_level_is_told(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="SDNET_LOG_LEVELS"):
        load_config(environ={**environ, "SDNET_LOG_LEVELS": "swarm=loud"})
