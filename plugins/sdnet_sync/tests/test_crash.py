"""A device that is killed while it syncs: nothing that was acknowledged is lost, and all end up the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sdnet_sync.operations import Put

from .replicas import devices, settle

KILLS = int(os.environ.get("SDNET_SYNC_KILLS", "6"))
WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from replicas import Device
from sdnet_sync.operations import Put
home = Path({home!r})
founder = Device(home, 1)
device = Device(home, 2, founder)
founder.store.close()
number = int(sys.argv[1])
print("ready", flush=True)
while True:
    device.write(Put("k", str(number % 50), {{"n": number}}), Put("log", str(number), {{"n": number}}))
    print(number, flush=True)
    number += 1
"""


def test_killed_writers_lose_nothing_that_they_acknowledged() -> None:
    rng = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="sdnet-") as folder, devices(2, home=Path(folder)) as (founder, writer):
        settle([founder, writer])
        code = WRITER.format(tests=str(Path(__file__).parent), home=folder)
        acknowledged = 0
        for _ in range(KILLS):
            writer.store.close()
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(acknowledged + 1)], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.15))  # the moment is the point of the test
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().splitlines() if line]
            process.wait()
            process.stdout.close()
            acknowledged = said[-1] if said else acknowledged
            writer.open()
            settle([founder, writer])
            assert founder.states() == writer.states()
            for number in range(1, acknowledged + 1):
                state = founder.store.get(founder.store.key("log", str(number)))
                assert state is not None, number
            # One more may have been committed and not been said.
            if founder.store.get(founder.store.key("log", str(acknowledged + 1))) is not None:
                acknowledged += 1
        assert acknowledged > 0
        (check,) = writer.store.db.execute("PRAGMA integrity_check").fetchone()
        assert check == "ok"


def test_a_device_restored_from_a_backup_takes_its_own_batches_back(tmp_path: Path) -> None:
    with devices(2, home=tmp_path) as (founder, writer):
        settle([founder, writer])
        writer.write(Put("k", "before", {"n": 1}))
        writer.store.close()
        saved = {path: path.read_bytes() for path in tmp_path.glob("2.sqlite3*")}
        writer.open()
        writer.write(Put("k", "after", {"n": 2}))
        settle([founder, writer])
        writer.store.close()
        for path in tmp_path.glob("2.sqlite3*"):
            path.unlink()
        for path, data in saved.items():
            path.write_bytes(data)
        writer.open()
        assert writer.store.get(writer.store.key("k", "after")) is None
        settle([founder, writer])
        assert writer.states() == founder.states()
        writer.write(Put("k", "new", {"n": 3}))
        settle([founder, writer])
        assert founder.states() == writer.states()
        assert len(founder.states()) == 3
