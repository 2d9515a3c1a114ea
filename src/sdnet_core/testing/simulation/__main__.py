"""``python -m sdnet_core.testing.simulation --seeds 100``: simulate networks, and say which seeds found something."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from sdnet_core.wording import format_count

from .scenario import Outcome, run_seed

HASH_SEED = "0"
TELL_EVERY = 100
"""Seeds between two lines that say how far it is."""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; give the exit code."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, help="only this one, or the first one if --seeds is given, too")
    parser.add_argument("--nodes", type=int, help="devices in each network; the seed decides by default")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    chosen = parser.parse_args(arguments)
    only = chosen.seed is not None and "--seeds" not in " ".join(arguments)
    first = chosen.seed or 0
    seeds = range(first, first + (1 if only else chosen.seeds))
    started = time.monotonic()
    failed: list[int] = []
    with ProcessPoolExecutor(max(1, min(chosen.jobs, len(seeds)))) as pool:
        # No list of them is kept: each holds the whole trace of a seed once it is done.
        running = as_completed({pool.submit(run_seed, seed, nodes=chosen.nodes) for seed in seeds})
        for count, done in enumerate(running, start=1):
            outcome = done.result()
            if chosen.trace:
                sys.stdout.write(outcome.text)
            if outcome.violations:
                failed.append(outcome.seed)
                _explain(outcome, chosen.nodes)
            elif only:
                _say(f"seed {outcome.seed}: clean; events {_digest(outcome)}")
            if count % TELL_EVERY == 0 and count < len(seeds):
                _say(f"{count} of {len(seeds)} seeds, {len(failed)} failed, {time.monotonic() - started:.0f} s")
    _say(f"{format_count(len(seeds), 'seed')}, {len(failed)} failed, {time.monotonic() - started:.0f} s")
    if failed:
        _say(f"failed: {' '.join(map(str, sorted(failed)))}")
    return 1 if failed else 0


def _explain(outcome: Outcome, nodes: int | None) -> None:
    _say(f"seed {outcome.seed} (events {_digest(outcome)}):")
    for violation in outcome.violations[:10]:
        _say(f"  {violation}")
    more = "" if nodes is None else f" --nodes {nodes}"
    _say(f"  replay: nox -s simulate -- --seed {outcome.seed}{more} --trace")


def _digest(outcome: Outcome) -> str:
    return hashlib.sha256(outcome.text.encode()).hexdigest()[:16]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # The order of sets depends on it, and is fixed before the first line of a program.
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "sdnet_core.testing.simulation", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
