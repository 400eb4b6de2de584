"""The ledger's promises on both databases: balanced, idempotent, never overdrawn, append-only."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from budget import budget
from sqlalchemy.exc import DBAPIError

from coop import ledger
from coop.accounts import account, hold, journal, transfer
from coop.db import Database
from coop.errors import InvalidInputError
from coop.ledger import HoldState, InsufficientCreditsError, KeyReusedError, Leg
from coop.ledger_check import check
from coop.money import NanoCredits
from coop.statements import legs_of, statement

ISSUE = Leg("issuance", "researcher:1", NanoCredits(1000))


def leg(debit: str, credit: str, amount: int) -> Leg:
    return Leg(debit, credit, NanoCredits(amount))


def fee(amount: int) -> Leg:
    return leg("researcher:1", "revenue:m", amount)


@pytest.fixture
def funded(database: Database) -> Database:
    with database.unit_of_work() as connection:
        ledger.post(connection, key="start", kind="issue", legs=[ISSUE], now=0)
    return database


def available(database: Database, code: str) -> int:
    with database.reading() as connection:
        return ledger.balance(connection, code).available


def findings(database: Database) -> list[str]:
    with database.reading() as connection:
        return [f"{finding.invariant} {finding.what}" for finding in check(connection).findings]


def test_what_one_account_loses_another_gains(funded: Database):
    with funded.unit_of_work() as connection:
        posted = ledger.post(connection, key="a", kind="x", legs=[fee(300)], now=5)
        assert posted.created
        assert legs_of(connection, posted.journal_id) == [fee(300)]
    assert available(funded, "researcher:1") == 700
    assert available(funded, "revenue:m") == 300
    assert available(funded, "issuance") == -1000
    assert available(funded, "commons") == 0
    assert findings(funded) == []


def test_the_same_key_pays_once_and_another_body_is_a_conflict(funded: Database):
    with funded.unit_of_work() as connection:
        first = ledger.post(connection, key="a", kind="x", legs=[fee(300)], now=5)
    with funded.unit_of_work() as connection:
        again = ledger.post(connection, key="a", kind="x", legs=[fee(300)], now=99)
        assert again.journal_id == first.journal_id
        assert not again.created
    for legs, kind in (([fee(301)], "x"), ([fee(300)], "y"), ([fee(150), fee(150)], "x")):
        with pytest.raises(KeyReusedError), funded.unit_of_work() as connection:
            ledger.post(connection, key="a", kind=kind, legs=legs, now=5)
    assert available(funded, "revenue:m") == 300


def test_nobody_spends_what_they_do_not_have(funded: Database):
    with pytest.raises(InsufficientCreditsError) as refused, funded.unit_of_work() as connection:
        ledger.post(connection, key="a", kind="x", legs=[fee(1001)], now=5)
    assert refused.value.facts == {"missing_nano": 1}
    assert available(funded, "revenue:m") == 0
    with funded.unit_of_work() as connection:
        ledger.post(connection, key="a", kind="x", legs=[fee(1000)], now=5)
    assert available(funded, "researcher:1") == 0


def test_the_database_itself_refuses_an_overdraft(funded: Database):
    with funded.unit_of_work() as connection:
        ids = {row.code: row.id for row in ledger.lock_accounts(
            connection, {"researcher:1", "revenue:m"}).values()}  # fmt: skip
        entry = {"key": "raw", "kind": "x", "body_sha256": "", "at": 0, "meta": "{}"}
        connection.execute(journal.insert().values(entry))
    row = {
        "journal_id": 2,
        "leg": 0,
        "debit_id": ids["researcher:1"],
        "credit_id": ids["revenue:m"],
    }
    with pytest.raises(DBAPIError, match="no_overdraft"), funded.unit_of_work() as connection:
        connection.execute(transfer.insert().values(row | {"amount": 1001}))


@pytest.mark.parametrize(
    ("debit", "credit"),
    [
        ("member:1", "member:2"),
        ("member:1", "researcher:1"),
        ("researcher:1", "researcher:2"),
        ("patient:a", "patient:b"),
        ("revenue:m", "member:1"),
        ("commons", "operations"),
        ("researcher:1", "member:1"),
    ],
)
def test_no_door_leads_from_person_to_person(database: Database, debit: str, credit: str):
    with (
        pytest.raises(ledger.TransferNotAllowedError),
        database.unit_of_work() as connection,
    ):
        ledger.post(connection, key="a", kind="x", legs=[leg(debit, credit, 1)], now=5)
    # And whoever goes past Python finds the database in the way.
    with database.unit_of_work() as connection:
        rows = ledger.lock_accounts(connection, {debit, credit})
        entry = {"key": "raw", "kind": "x", "body_sha256": "", "at": 0, "meta": "{}"}
        connection.execute(journal.insert().values(entry))
    row = {
        "journal_id": 1, "leg": 0, "debit_id": rows[debit].id, "credit_id": rows[credit].id,
        "amount": 1,
    }  # fmt: skip
    with pytest.raises(DBAPIError, match="kinds"), database.unit_of_work() as connection:
        connection.execute(transfer.insert().values(row))


def test_what_is_written_stays_written(funded: Database):
    with funded.unit_of_work() as connection:
        held = ledger.hold(connection, key="h", leg=fee(10), expires=10, now=1)
    attacks = [
        transfer.update().values(amount=1),
        transfer.delete(),
        journal.update().values(meta='{"x":1}'),
        journal.delete(),
        hold.delete(),
        hold.update().values(amount=1),
        hold.update().values(state="posted", captured=10, expires=99),
        account.update().values(code="commons").where(account.c.code == "researcher:1"),
        account.update().values(may_overdraw=True).where(account.c.code == "researcher:1"),
        account.delete(),
    ]
    for attack in attacks:
        with pytest.raises(DBAPIError, match="ledger_"), funded.unit_of_work() as connection:
            connection.execute(attack)
    with funded.unit_of_work() as connection:
        ledger.void(connection, held.id)
    for state in ("pending", "posted", "expired"):
        with pytest.raises(DBAPIError), funded.unit_of_work() as connection:
            connection.execute(hold.update().values(state=state, captured=5 * (state == "posted")))
    assert findings(funded) == []


def test_a_counter_set_by_hand_is_found(funded: Database):
    with funded.unit_of_work() as connection:
        connection.execute(
            account.update().values(credits_posted=2000).where(account.c.code == "researcher:1")
        )
    assert any(finding.startswith("I2") for finding in findings(funded))
    assert any(finding.startswith("I1") for finding in findings(funded))


def test_a_tampered_transfer_and_a_dropped_guard_are_found(sqlite_database: Database):
    with sqlite_database.unit_of_work() as connection:
        ledger.post(connection, key="start", kind="issue", legs=[ISSUE], now=0)
        connection.execute(sa.text("DROP TRIGGER ledger_transfer_fixed"))
        connection.execute(transfer.update().values(amount=999))
    broken = {finding.split()[0] for finding in findings(sqlite_database)}
    assert broken == {"I2", "I4", "I5"}


def test_a_hold_is_out_of_reach_until_it_resolves(funded: Database):
    with funded.unit_of_work() as connection:
        held = ledger.hold(connection, key="h", leg=fee(900), expires=10, now=1)
        assert ledger.hold(connection, key="h", leg=fee(900), expires=99, now=2) == held
        with pytest.raises(InsufficientCreditsError) as refused:
            ledger.hold(connection, key="h2", leg=fee(101), expires=10, now=1)
        assert refused.value.facts == {"missing_nano": 1}
        with pytest.raises(KeyReusedError):
            ledger.hold(connection, key="h", leg=fee(1), expires=10, now=1)
    assert available(funded, "researcher:1") == 100
    with funded.unit_of_work() as connection:
        paid = ledger.capture(connection, held.id, amount=NanoCredits(400), now=9)
        again = ledger.capture(connection, held.id, amount=NanoCredits(400), now=9)
        assert (paid.created, again.created) == (True, False)
        assert paid.journal_id == again.journal_id
    assert available(funded, "researcher:1") == 600
    assert available(funded, "revenue:m") == 400
    with pytest.raises(ledger.HoldResolvedError), funded.unit_of_work() as connection:
        ledger.capture(connection, held.id, amount=NanoCredits(399), now=9)
    with pytest.raises(ledger.HoldResolvedError), funded.unit_of_work() as connection:
        ledger.void(connection, held.id)
    assert findings(funded) == []


def test_more_than_the_hold_is_never_captured(funded: Database):
    with funded.unit_of_work() as connection:
        held = ledger.hold(connection, key="h", leg=fee(10), expires=10, now=1)
    for amount in (0, 11, -1):
        with pytest.raises(InvalidInputError), funded.unit_of_work() as connection:
            ledger.capture(connection, held.id, amount=NanoCredits(amount), now=2)


def test_a_voided_hold_gives_everything_back(funded: Database):
    with funded.unit_of_work() as connection:
        held = ledger.hold(connection, key="h", leg=fee(1000), expires=10, now=1)
        ledger.void(connection, held.id)
        ledger.void(connection, held.id)
    assert available(funded, "researcher:1") == 1000
    with pytest.raises(ledger.HoldResolvedError), funded.unit_of_work() as connection:
        ledger.capture(connection, held.id, now=2)


def test_a_hold_expires_at_its_very_second(funded: Database):
    with funded.unit_of_work() as connection:
        one = ledger.hold(connection, key="1", leg=fee(10), expires=10, now=1)
        two = ledger.hold(connection, key="2", leg=fee(10), expires=10, now=1)
        ledger.capture(connection, one.id, now=9)
    with pytest.raises(ledger.HoldResolvedError), funded.unit_of_work() as connection:
        ledger.capture(connection, two.id, now=10)
    with funded.unit_of_work() as connection:
        assert ledger.expire(connection, 9) == 0
        assert ledger.expire(connection, 10) == 1
        assert ledger.find_hold(connection, two.id).state is HoldState.EXPIRED
    assert available(funded, "researcher:1") == 990
    assert findings(funded) == []


def test_a_statement_explains_every_change(funded: Database):
    with funded.unit_of_work() as connection:
        for number in range(3):
            meta = {"receipt": f"r{number}"}
            legs = [fee(10 + number)]
            ledger.post(connection, key=f"f{number}", kind="x", legs=legs, now=number, meta=meta)
    with funded.reading() as connection:
        lines = statement(connection, "researcher:1")
        assert [line.amount for line in lines] == [-12, -11, -10, 1000]
        assert [line.other for line in lines] == ["revenue:m"] * 3 + ["issuance"]
        assert lines[0].meta == {"receipt": "r2"}
        older = statement(connection, "researcher:1", before=lines[1].journal_id, limit=1)
        assert older == lines[2:3]


def test_there_is_an_end_to_all_credits(database: Database):
    most = leg("issuance", "researcher:1", 2**63 - 1)
    with database.unit_of_work() as connection:
        ledger.post(connection, key="1", kind="issue", legs=[most], now=0)
    with pytest.raises(InvalidInputError), database.unit_of_work() as connection:
        ledger.post(
            connection, key="2", kind="issue", legs=[leg("issuance", "researcher:1", 1)], now=0
        )
    assert findings(database) == []


def test_eight_writers_on_one_hot_account_lose_nothing(database: Database):
    writers, each = 8, budget(6, 50)
    with database.unit_of_work() as connection:
        start = leg("issuance", "researcher:1", writers * each)
        ledger.post(connection, key="start", kind="issue", legs=[start], now=0)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for number in range(each):
                with database.unit_of_work() as connection:
                    name = f"{writer}:{number}"
                    held = ledger.hold(connection, key=name, leg=fee(1), expires=10, now=1)
                    # Odd ones are captured in the same transaction, even ones in one of their own.
                    if number % 2:
                        ledger.capture(connection, held.id, now=1)
                if not number % 2:
                    with database.unit_of_work() as connection:
                        ledger.capture(connection, held.id, now=1)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert available(database, "researcher:1") == 0
    assert available(database, "revenue:m") == writers * each
    assert findings(database) == []


def test_two_payers_of_the_last_credit_are_not_both_served(database: Database):
    with database.unit_of_work() as connection:
        start = [leg("issuance", "researcher:1", 5)]
        ledger.post(connection, key="start", kind="issue", legs=start, now=0)
    results: list[str] = []

    def pay(name: str) -> None:
        try:
            with database.unit_of_work() as connection:
                ledger.post(connection, key=name, kind="x", legs=[fee(3)], now=1)
            results.append("paid")
        except InsufficientCreditsError:
            results.append("refused")

    threads = [threading.Thread(target=pay, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["paid", "refused", "refused", "refused"]


KILLED = """
import os, signal, sys
from sqlalchemy import event
from coop import ledger
from coop.db import Database
from coop.ledger import Leg
database, left = Database(sys.argv[1]), int(sys.argv[2])
@event.listens_for(database.engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
with database.unit_of_work() as connection:
    fee = Leg("researcher:1", "revenue:m", 7)
    held = ledger.hold(connection, key="k", leg=fee, expires=9, now=1)
with database.unit_of_work() as connection:
    ledger.capture(connection, held.id, amount=5, now=1)
print("done", flush=True)
"""


def test_killed_between_any_two_statements_the_books_balance_and_a_repeat_completes(
    funded: Database, tmp_path: Path
):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    statements = range(0, 24, budget(4, 1))
    for survived in statements:
        run = subprocess.run(
            [sys.executable, script, funded.url, str(survived)], capture_output=True, check=False
        )
        assert run.returncode in {0, -signal.SIGKILL}, run.stderr
        assert findings(funded) == []
        assert available(funded, "revenue:m") in {0, 5}
    done = subprocess.run(
        [sys.executable, script, funded.url, "1000"], capture_output=True, check=False
    )
    assert done.stdout == b"done\n"
    assert os.environ.get("PYTHONOPTIMIZE") is None  # noqa: TID251  (asserts must run)
    assert available(funded, "revenue:m") == 5
    assert available(funded, "researcher:1") == 995
