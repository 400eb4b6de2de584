"""What a credit costs to move: single and batched transfers, one fee to 100 000 patients."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rows import Rows  # first: it takes this folder off the path

from coop import ledger
from coop.db import Database
from coop.dividend_audit import recompute
from coop.economy import Economy
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.ledger import Leg
from coop.ledger_check import check
from coop.money import NANO, NanoCredits
from coop.pools import published

MODEL: Final = "bench-v1-00000000"
FEE: Final = Leg("researcher:1", f"revenue:{MODEL}", NanoCredits(NANO + 1))
SINGLES: Final = 500
BATCH: Final = 10_000  # legs of one entry
PATIENTS: Final = 100_000


def main() -> None:
    """Measure on a fresh SQLite database in a temporary folder."""
    patients = int(sys.argv[1]) if len(sys.argv) > 1 else PATIENTS
    rows = Rows("ledger")
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'bench.sqlite'}")
        database.upgrade()
        journal = Journal(database, SigningKey.generate(), "bench/log", lambda: 0)
        economy = Economy(database, journal, SigningKey.generate(), lambda: 0)
        with database.unit_of_work() as connection:
            much = NanoCredits(10**15)
            economy.issue(connection, account_id=1, amount=much, key="bench")
        _posting(rows, database)
        _paying(rows, database, economy, patients)
        database.close()
    rows.finish()


def _sound(database: Database) -> bool:
    with database.reading() as connection:
        return not check(connection).findings


def _posting(rows: Rows, database: Database) -> None:
    began = time.perf_counter()
    for number in range(SINGLES):
        with database.unit_of_work() as connection:
            ledger.post(connection, key=f"s{number}", kind="x", legs=[FEE], now=0)
    single = SINGLES / (time.perf_counter() - began)
    began = time.perf_counter()
    with database.unit_of_work() as connection:
        ledger.post(connection, key="batch", kind="x", legs=[FEE] * BATCH, now=0)
    batched = BATCH / (time.perf_counter() - began)
    sound = _sound(database)
    said = "SQLite WAL synchronous=FULL, one account pays one"
    rows.add(
        "durable single transfers", single, "1/s", input=f"{SINGLES}, {said}", target=300,
        checked=sound,
    )  # fmt: skip
    rows.add(
        "batched transfers", batched, "1/s", input=f"{BATCH} in one entry, {said}", target=20_000,
        checked=sound,
    )  # fmt: skip


def _paying(rows: Rows, database: Database, economy: Economy, patients: int) -> None:
    pids = [f"{number:026d}" for number in range(patients)]
    with database.unit_of_work() as connection:
        economy.open_pools(connection, MODEL, {"cleveland": pids}, {"cleveland": patients})
    began = time.process_time()
    windows = economy.close_window(MODEL)["windows"]
    window_s = time.process_time() - began
    began = time.process_time()
    for pid in pids[:100]:
        with database.unit_of_work() as connection:
            economy.settle(connection, pid)
    settle_ms = (time.process_time() - began) * 1000 / 100
    with database.reading() as connection:
        served = published(connection, MODEL).model_dump(mode="json")
    right = _sound(database) and recompute(served) == len(windows)  # type: ignore[arg-type]  # a list
    said = f"{patients} patients, 1 pool, {len(served['fees'])} fees"
    rows.add(
        "one window to every patient", window_s, "CPU s", input=said, target=2, better="lower",
        checked=right,
    )  # fmt: skip
    rows.add(
        "settle one patient", settle_ms, "CPU ms", input=f"{said}; mean of 100", target=10,
        better="lower", checked=right,
    )  # fmt: skip
    began = time.process_time()
    sound = _sound(database)
    checking = time.process_time() - began
    rows.add("full check", checking, "CPU s", input=said, better="lower", checked=sound)


if __name__ == "__main__":
    main()
