"""Programs that are not ours check our books: Beancount and hledger, each as its own process."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from budget import budget

from coop import ledger
from coop.db import Database
from coop.economy import Economy
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.ledger import Leg
from coop.ledger_export import as_csv, beancount, hledger
from coop.money import NanoCredits

MODEL = "heart_risk-v1-0123abcd"
PIDS = {"cleveland": [f"{'a' * 25}{letter}" for letter in "abcdefgh"], "zurich": ["z" * 26]}


def _bean_check(path: Path) -> bool:
    if find_spec("beancount") is None:
        pytest.skip("the beancount package is not installed here: books not checked by Beancount")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "beancount.scripts.check", "--no-cache", path],
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in run.stderr, run.stderr
    return run.returncode == 0


def _hledger_check(path: Path) -> bool:
    if shutil.which("hledger") is None:
        pytest.skip("hledger is not installed here: books not checked by hledger")
    checks = ["accounts", "commodities", "balancednoautoconversion"]
    run = subprocess.run(
        ["hledger", "-f", path, "check", "--strict", *checks],
        capture_output=True,
        check=False,
        env={"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/"},
    )
    return run.returncode == 0


@pytest.fixture
def books(sqlite_database: Database) -> Database:
    database, day = sqlite_database, [1_800_000_000]
    journal = Journal(database, SigningKey.generate(), "hub.test/log", lambda: day[0])
    economy = Economy(database, journal, SigningKey.generate(), lambda: day[0])
    with database.unit_of_work() as connection:
        economy.open_pools(connection, MODEL, PIDS, {"cleveland": 8, "zurich": 1})
        economy.issue(connection, account_id=1, amount=NanoCredits(10**15), key="1")
    for number in range(budget(60, 2000)):
        day[0] += 7200
        with database.unit_of_work() as connection:
            leg = Leg("researcher:1", f"revenue:{MODEL}", NanoCredits(10**9 + number))
            ledger.post(connection, key=f"p{number}", kind="capture", legs=[leg], now=day[0])
        if number % 10 == 9:
            economy.close_window(MODEL)
            economy.claim(number % 3 + 1, PIDS["cleveland"][number % 7 :])
    return database


def _lie(text: str) -> str:
    """One digit of one amount in the middle of the books, changed."""
    places = [match.start(1) for match in re.finditer(r"\.\d{8}(\d) CRED", text)]
    at = places[len(places) // 2]
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("export", "accepts"), [(beancount, _bean_check), (hledger, _hledger_check)]
)
def test_a_foreign_program_accepts_our_books_and_refuses_one_changed_digit(
    books: Database,
    tmp_path: Path,
    export: Callable[..., str],
    accepts: Callable[[Path], bool],
    full: bool,  # noqa: FBT001  (a parametrised test)
):
    with books.reading() as connection:
        text = export(connection, full=full)
    honest, lying = tmp_path / "honest.journal", tmp_path / "lying.journal"
    honest.write_text(text)
    lying.write_text(_lie(text))
    assert accepts(honest)
    assert not accepts(lying)


def test_the_public_books_name_nobody(books: Database):
    with books.reading() as connection:
        public = [export(connection, full=False) for export in (beancount, hledger, as_csv)]
        full = as_csv(connection, full=True)
    for text in public:
        for pid in PIDS["cleveland"]:
            assert pid.lower() not in text.lower()
        assert not re.search(r"(member|researcher):?\d", text, re.IGNORECASE)
    assert PIDS["cleveland"][-1] in full


def test_the_csv_adds_up_to_the_balances(books: Database):
    with books.reading() as connection:
        rows = [line.split(",") for line in as_csv(connection, full=True).splitlines()[1:]]
        for code in ("commons", "operations", f"pool:{MODEL}:cleveland", "member:1"):
            nano = sum(
                int(row[6].replace(".", "")) * ((row[5] == code) - (row[4] == code)) for row in rows
            )
            assert nano == ledger.balance(connection, code).posted
