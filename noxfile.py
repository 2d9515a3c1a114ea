"""The project's checks as nox sessions; they run in the environment that `dev.py` makes.

`nox -s test` runs every check that `.ci/run` runs; `nox --list` shows the parts.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["test"]

ROOT = Path(__file__).parent
PYTHON = sys.executable
PACKAGES = ["src", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/src"))]
MEMBERS = [
    "sdnet",
    "sdnet-core",
    "sdnet-file-transfer",
    "sdnet-messaging",
    "sdnet-pairing",
    "sdnet-spacedrop",
    "sdnet-sync",
]
# Source-only packages among the dependencies; all are pure Python.
PURE_SOURCES = ["python-baseconv", "varint"]
FAST_TESTS = ["tests/unit", "tests/integration", "plugins"]
# Tests of daemons mostly wait, so more workers than cores pay, but with many more what is waited for comes too late; a
# file stays on one worker with its fixtures. The order is that of conftest.py: by the number of tests, xdist's own,
# what takes longest would come last.
PYTEST = [PYTHON, "-m", "pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
# A test in its long form may take longer than any in its short one.
LONG_PYTEST = [PYTHON, "-m", "pytest", "-o", "faulthandler_timeout=7200"]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.run(PYTHON, "-m", "ruff", "check")
    session.run(PYTHON, "-m", "ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of every package with mypy in strict mode."""
    session.run(PYTHON, "-m", "mypy", *PACKAGES)
    session.run(PYTHON, "-m", "mypy", "dev.py", "noxfile.py")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit, layer, integration and plugin tests."""
    session.run(*PYTEST, "--ignore=tests/e2e", "--ignore=tests/interop", "--ignore=tests/packaging", *session.posargs)


@nox.session
def swarm_long(session: nox.Session) -> None:
    """Run the swarm's tests under load for as long as they should: long pauses, 2,000 connections."""
    env = {"SDNET_LONG_TESTS": "1"}
    session.run(
        *LONG_PYTEST,
        "tests/hostile/test_swarm_load.py",
        "tests/hostile/test_swarm_quic.py",
        *session.posargs,
        env=env,
    )


@nox.session
def pairing_hostile(session: nox.Session) -> None:
    """Run the hostile tests of pairing in full: 1,000 wrong attempts of 50 strangers, every frame flipped, captures."""
    tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/hostile/test_pairing_*.py"))
    session.run(*LONG_PYTEST, "-s", *tests, *session.posargs, env={"SDNET_LONG_TESTS": "1"})


@nox.session
def spacedrop_long(session: nox.Session) -> None:
    """Try a million keys against the check number of a drop between strangers, with and without the commitment."""
    tests = "plugins/sdnet_spacedrop/tests/test_meeting.py"
    session.run(PYTHON, "-m", "pytest", tests, *session.posargs, env={"SDNET_LONG_TESTS": "1"})


@nox.session
def e2e(session: nox.Session) -> None:
    """Run the tests that drive daemons as processes through the command line."""
    session.run(*PYTEST, "tests/e2e", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Run the tests against other libp2p implementations; here one that is missing is a failure."""
    session.run(PYTHON, "tests/interop/js_setup.py")
    session.run(*PYTEST, "tests/interop", *session.posargs, env={"SDNET_INTEROP": "required"})


@nox.session
def packaging(session: nox.Session) -> None:
    """Build the distributions and test them in clean environments."""
    session.run(PYTHON, "-m", "pytest", "tests/packaging", *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    """Run every check; all tests go through one pytest, whose summary is the last thing printed."""
    lint(session)
    types(session)
    session.run(*PYTEST, *session.posargs)
    # Without this nox would print its own success line below pytest's summary.
    logging.getLogger("nox").setLevel(logging.WARNING)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/site with strict links; `nox -s docs -- --write` rewrites the generated pages first."""
    if "--write" in session.posargs:
        session.run(PYTHON, "tools/reference.py")
    session.run(PYTHON, "-m", "mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run(PYTHON, "-m", "pytest", "tests/test_docs.py", "-q")


@nox.session
def thirdparty(session: nox.Session) -> None:
    """Install the examples beside the core's wheel in clean environments and run their tests there."""
    session.run(PYTHON, "-m", "pytest", "tests/packaging/test_thirdparty.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Let devices on this machine pair, talk and send files."""
    session.run(PYTHON, "tools/demo.py", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill nodes 50 times while messages flow: none lost, none twice."""
    test = "tests/hostile/test_message_kills.py"
    session.run(*LONG_PYTEST, test, *session.posargs, env={"SDNET_TEST_KILLS": "50"})


@nox.session
def faults_files(session: nox.Session) -> None:
    """Kill daemons and cut links at 100 seeded moments of a transfer: it completes whole and leaves nothing behind."""
    test = "plugins/sdnet_file_transfer/tests/test_faults.py"
    session.run(*LONG_PYTEST, "-v", test, *session.posargs, env={"SDNET_TEST_FAULTS": "100"})


@nox.session
def crash_store(session: nox.Session) -> None:
    """Kill writers of the store at 200 seeded points, and let every system call of a commit fail."""
    env = {"SDNET_TEST_STORE_KILLS": "200", "SDNET_TEST_SYSCALLS": "all"}
    tests = ["crash", "syscalls", "disk_full"]
    files = [f"tests/hostile/test_storage_{name}.py" for name in tests]
    session.run(*LONG_PYTEST, *files, *session.posargs, env=env)


@nox.session
def bench_files(session: nox.Session) -> None:
    """Measure copies of files beside scp, rsync and others; takes `-- --quick|--case NAME|--tool NAME`."""
    session.run(PYTHON, "-m", "benchmarks.bench_files", *session.posargs)


@nox.session
def bench_messages(session: nox.Session) -> None:
    """Measure messages between two nodes beside stock py-libp2p's echo; takes `-- --quick`."""
    session.run(PYTHON, "-m", "benchmarks.bench_messages", *session.posargs)


@nox.session
def bench_pairing(session: nox.Session) -> None:
    """Measure how long two nodes take to pair, with root also between networks; takes `-- --quick`."""
    session.run(PYTHON, "-m", "benchmarks.bench_pairing", *session.posargs)


@nox.session
def bench_start(session: nox.Session) -> None:
    """Measure a start with 500 paired devices, and an idle node with 10 connected; takes `-- --quick`."""
    session.run(PYTHON, "-m", "benchmarks.bench_start", *session.posargs)


@nox.session
def bench_swarm(session: nox.Session) -> None:
    """Measure the swarm beside stock py-libp2p and bare sockets; takes `-- --quick|--case NAME|--profile NAME`."""
    session.run(PYTHON, "-m", "benchmarks.bench_swarm", *session.posargs)


@nox.session
def bench_sync(session: nox.Session) -> None:
    """Measure libraries, and mirrors beside Syncthing, between two nodes; takes `-- --quick|--case NAME`."""
    session.run(PYTHON, "-m", "benchmarks.bench_sync", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Simulate whole networks; takes `-- --seeds N`, and `-- --seed S --trace` to replay one. Plants bugs without."""
    session.run(PYTHON, "-m", "sdnet_core.testing.simulation", *session.posargs)
    if not session.posargs:
        session.run(PYTHON, "-m", "pytest", "tests/simulation", env={"SDNET_SIMULATE": "1"})


@nox.session
def net(session: nox.Session) -> None:
    """Run the tests of daemons in network namespaces of their own; needs root, and here says so by failing."""
    session.run(
        *LONG_PYTEST,
        "tests/e2e/net",
        *session.posargs,
        env={"SDNET_NET": "required", "SDNET_TEST_KILLS": "50", "SDNET_LONG_TESTS": "1"},
    )


@nox.session
def net_attempts(session: nox.Session) -> None:
    """Count how many of 200 connection attempts succeed over networks of all kinds; takes `-- --attempts N`."""
    session.run(PYTHON, "-m", "tests.e2e.net.attempts", *session.posargs)


@nox.session
def simulate_sync(session: nox.Session) -> None:
    """Let replicas of a library converge in 2,000 random histories: partitions, repetitions, restarts, clock steps."""
    session.run(*PYTEST, "plugins/sdnet_sync/tests/test_convergence.py", env={"SDNET_SYNC_CASES": "2000"})


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the fast tests with the oldest versions that the distributions say they work with."""
    python = _other_environment(session, "minimums", sys.executable, "--resolution=lowest-direct")
    session.run(python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *FAST_TESTS, *session.posargs, external=True)


@nox.session
def pythons(session: nox.Session) -> None:
    """Run the fast tests on the other Pythons that are here; `nox -s pythons -- 3.13` on one of them."""
    for version in session.posargs or ["3.12", "3.13", "3.14"]:
        found = session.run(
            *(PYTHON, "-m", "uv", "python", "find", "--no-python-downloads", version), silent=True, success_codes=[0, 2]
        )
        if not found or "No interpreter" in found:
            session.warn(f"Python {version} is not here; its dependencies are only resolved.")
            _resolve(session, version)
            continue
        python = _other_environment(session, f"python{version}", found.strip(), "--constraints=requirements/dev.txt")
        session.run(python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *FAST_TESTS, external=True)


@nox.session
def resolves(session: nox.Session) -> None:
    """See that every supported Python finds wheels for everything that is not pure Python: no compiler is needed."""
    for version in ("3.11", "3.12", "3.13", "3.14"):
        _resolve(session, version)


def _resolve(session: nox.Session, version: str) -> None:
    members = ["pyproject.toml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/pyproject.toml"))]
    session.run(
        *(PYTHON, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--python-version", version),
        *("--python-platform", "x86_64-manylinux_2_28", "--only-binary=:all:"),
        *(f"--no-binary={name}" for name in PURE_SOURCES),
        *("--constraints", "requirements/runtime.txt", "--output-file", os.devnull, *members),
        env={key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))},
        include_outer_env=False,
    )
    session.log(f"Python {version}: everything is there without a compiler")


def _other_environment(session: nox.Session, name: str, python: str, *options: str) -> str:
    """Make an environment beside `.venv` with all distributions and the tools of their tests.

    :returns: its interpreter.
    """
    place = ROOT / ".nox" / name
    session.run(PYTHON, "-m", "uv", "venv", "--quiet", "--clear", "--python", python, str(place))
    members = [argument for path in sorted(ROOT.glob("plugins/*")) for argument in ("-e", str(path))]
    # Build tools come from the build requirements of each package, within the bounds of the pins.
    session.run(
        *(PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *options),
        *("--build-constraints", "requirements/build.txt", "-e", ".[keyring]", *members),
        *("pytest>=9.0", "pytest-xdist>=3.8", "hypothesis>=6.130", "zxing-cpp>=3.1"),
    )
    return str(place / "bin" / "python")


@nox.session
def kills_sync(session: nox.Session) -> None:
    """Kill nodes 100 times while libraries and mirrors sync: nothing acknowledged is lost, all end up the same."""
    tests = ["plugins/sdnet_sync/tests/test_daemons.py", "plugins/sdnet_sync/tests/test_crash.py"]
    session.run(*LONG_PYTEST, *tests, *session.posargs, env={"SDNET_SYNC_KILLS": "100"})


@nox.session
def pins(session: nox.Session) -> None:
    """Refresh requirements/*.txt; `nox -s pins -- --upgrade` also moves to newer versions."""
    everything = ["pyproject.toml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/pyproject.toml"))]
    _compile(session, "dev", *everything, "--group", "dev", *session.posargs)
    _compile(session, "runtime", *everything)
    _compile(session, "build", "--group", "build")
    _compile(session, "uv", "--group", "bootstrap")


def _compile(session: nox.Session, name: str, *sources: str) -> None:
    """Write one requirements file with the hashes of all its third-party packages and no host, path or member."""
    output = f"requirements/{name}.txt"
    agree = [] if name == "dev" else ["--constraints", "requirements/dev.txt"]
    session.run(
        *(PYTHON, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
        *("--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"),
        *(f"--no-emit-package={member}" for member in MEMBERS),
        *("--output-file", output, *agree, *sources),
        env={key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))},
        include_outer_env=False,
    )
