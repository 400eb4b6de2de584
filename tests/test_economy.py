"""From a fee to a patient's credits, on both databases, with the real log and the real ledger."""

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from budget import budget

from coop import ledger
from coop.db import Database
from coop.dividend_audit import differences
from coop.documents.dividend import Dividends, DividendWindow
from coop.documents.envelope import open_document
from coop.economy import Economy
from coop.errors import ConflictError, NotFoundError
from coop.journal.receipts import check_bundle
from coop.journal.store import Journal
from coop.journal.trust import Trust
from coop.keys import SigningKey
from coop.ledger import Leg
from coop.ledger_check import check
from coop.money import NANO, NanoCredits
from coop.pools import accruals, pool_table, published
from coop.statements import statement

MODEL = "heart-v1-0123abcd"
PIDS = {
    "cleveland": ["a" * 26, "b" * 26, "c" * 26],
    "zurich": ["d" * 26, "e" * 26],
    "longbeach": [],
}
WEIGHTS = {"cleveland": 3, "zurich": 2, "longbeach": 1}
NOW = 1_800_000_000


@dataclass
class House:
    database: Database
    journal: Journal
    economy: Economy
    hub_key: SigningKey

    def pay(self, amount: int, key: str, model: str = MODEL) -> None:
        with self.database.unit_of_work() as connection:
            leg = Leg("researcher:1", f"revenue:{model}", NanoCredits(amount))
            held = ledger.hold(connection, key=key, leg=leg, expires=NOW + 60, now=NOW)
            ledger.capture(connection, held.id, now=NOW)

    def open(self, pids: Mapping[str, list[str]] = PIDS, model: str = MODEL) -> None:
        with self.database.unit_of_work() as connection:
            self.economy.open_pools(connection, model, pids, WEIGHTS)

    def withdraw(self, pid: str) -> None:
        with self.database.unit_of_work() as connection:
            self.economy.withdraw(connection, pid)

    def balance(self, code: str) -> int:
        with self.database.reading() as connection:
            return ledger.balance(connection, code).available

    def owed(self, pid: str) -> int:
        with self.database.reading() as connection:
            return sum(accrual.nano for accrual in accruals(connection, pid))

    def published(self, model: str = MODEL) -> tuple[Dividends, list[DividendWindow]]:
        with self.database.reading() as connection:
            found = published(connection, model)
        return found, [
            open_document(DividendWindow, window.document, issuers={self.hub_key.did}).subject
            for window in found.windows
        ]

    def audit(self) -> None:
        with self.database.reading() as connection:
            assert check(connection).findings == []
        assert differences(*self.published()) == []


@pytest.fixture
def house(database: Database) -> House:
    hub_key, log_key = SigningKey.generate(), SigningKey.generate()
    journal = Journal(database, log_key, "hub.test/log", lambda: NOW)
    economy = Economy(database, journal, hub_key, lambda: NOW)
    with database.unit_of_work() as connection:
        economy.issue(connection, account_id=1, amount=NanoCredits(1000 * NANO), key="1")
    return House(database=database, journal=journal, economy=economy, hub_key=hub_key)


def test_a_fee_reaches_hospitals_and_patients_by_the_rule(house: House):
    house.open()
    house.pay(1_000_003, "1")
    closed = house.economy.close_window(MODEL)
    assert closed["revenue_nano"] == 1_000_003
    assert house.balance("operations") == 150_000
    assert house.balance("hospital:cleveland") == 125_000
    # Long Beach has a weight and nobody in its pool: its patients' part is the commons'.
    assert house.balance("commons") == 100_000 + 83_334
    assert house.balance("hospital:longbeach") == 41_667
    assert house.owed("a" * 26) == house.owed("b" * 26) == 250_001 // 3
    house.audit()


def test_a_window_is_signed_logged_and_recomputed_bit_for_bit(house: House):
    house.open()
    for number in range(7):
        house.pay(10**9 + number, str(number))
    [document] = house.economy.close_window(MODEL)["windows"]
    found, windows = house.published()
    assert differences(found, windows) == []
    assert found.windows[0].document == document
    trust = Trust(
        hub=house.hub_key.did, log=house.journal.log_did, origin="hub.test/log", sites={}, k=0
    )
    with house.database.reading() as connection:
        bundle = house.journal.receipt(connection, found.windows[0].digest, sites={})
    assert check_bundle(bundle, trust).index == found.windows[0].log_index


def test_every_published_figure_is_checked(house: House):
    house.open()
    house.pay(10**9 + 7, "1")
    house.economy.close_window(MODEL)
    house.withdraw("a" * 26)
    house.pay(10**9 + 7, "2")
    house.economy.close_window(MODEL)
    house.pay(5, "3")
    found, windows = house.published()
    assert differences(found, windows) == []
    raw = found.model_dump()
    changed = 0
    for path in _numbers(raw, ()):
        if path[:1] == ("windows",) and path[2] in {"document", "log_index"}:
            continue
        if path == ("fees", 2, "journal_id"):
            continue  # a fee that no window has split yet may have any number
        lie = found.model_dump()
        _add_one(lie, path)
        changed += 1
        assert differences(Dividends.model_validate(lie), windows), path
    assert changed > 30
    for number, window in enumerate(windows):
        for path in _numbers(window.model_dump(), ()):
            if path[0] == "journal_id" or path == ("rule", "v"):
                continue
            lie = window.model_dump()
            _add_one(lie, path)
            if path[0] == "rule":  # the percents must still sum to 100 to be a rule at all
                lie["rule"][
                    "commons_percent" if path[1] != "commons_percent" else "operations_percent"
                ] -= 1
            lies = [*windows[:number], DividendWindow.model_validate(lie), *windows[number + 1 :]]
            assert differences(found, lies), path


def _numbers(value: object, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _numbers(item, (*path, name))]
    if isinstance(value, list):
        return [found for at, item in enumerate(value) for found in _numbers(item, (*path, at))]
    return [path] if isinstance(value, int) else []


def _add_one(value: dict[str, object], path: tuple[str | int, ...]) -> None:
    at: object = value
    for part in path[:-1]:
        at = at[part]  # type: ignore[index]  # the path comes from this very tree
    at[path[-1]] += 1  # type: ignore[index]  # and ends at a number


def test_a_claim_merges_every_pool_and_pays_once(house: House):
    house.open()
    house.open({"zurich": ["d" * 26]}, "stroke-v1-0123abcd")
    house.pay(10**9, "1")
    house.pay(10**9, "2", "stroke-v1-0123abcd")
    house.economy.close_window(MODEL)
    house.economy.close_window("stroke-v1-0123abcd")
    mine = ["d" * 26, "a" * 26]
    due = sum(house.owed(pid) for pid in mine)
    assert house.economy.claim(7, mine) == due
    assert house.economy.claim(7, mine) == 0
    assert house.balance("member:7") == due
    assert [house.owed(pid) for pid in mine] == [0, 0]
    with house.database.reading() as connection:
        lines = statement(connection, "member:7")
    assert len({line.journal_id for line in lines}) == 1
    assert sorted(line.other for line in lines) == sorted(f"patient:{pid}" for pid in mine)
    house.audit()


def test_whoever_withdraws_keeps_what_she_earned_and_earns_nothing_more(house: House):
    house.open()
    house.pay(10**9 + 1, "1")
    house.economy.close_window(MODEL)
    earned = house.owed("a" * 26)
    house.withdraw("a" * 26)
    house.withdraw("a" * 26)
    before = house.owed("b" * 26)
    house.pay(10**9, "2")
    house.economy.close_window(MODEL)
    assert house.owed("a" * 26) == 0
    assert house.balance(f"patient:{'a' * 26}") == earned
    assert house.owed("b" * 26) - before >= 125_000_000
    assert house.economy.claim(1, ["a" * 26]) == earned
    house.audit()


def test_when_the_last_holder_leaves_the_rest_goes_to_the_commons(house: House):
    house.open()
    house.pay(1_000_001, "1")
    house.economy.close_window(MODEL)
    for pid in PIDS["cleveland"]:
        house.withdraw(pid)
    assert house.balance(f"pool:{MODEL}:cleveland") == 0
    commons = house.balance("commons")
    house.pay(1_000_000, "2")
    house.economy.close_window(MODEL)
    assert house.balance("commons") - commons >= 100_000 + 250_000
    house.audit()


def test_no_fee_no_window_and_no_model_no_answer(house: House):
    house.open()
    assert house.economy.close_window(MODEL) == {
        "model_id": MODEL, "windows": [], "revenue_nano": 0,
    }  # fmt: skip
    with house.database.reading() as connection, pytest.raises(NotFoundError):
        published(connection, "unknown")


def test_fees_of_a_model_without_pools_are_the_commons(house: House):
    house.pay(1000, "1", "other")
    house.economy.close_window("other")
    assert house.balance("commons") == 850


def test_an_entry_that_pays_a_model_twice_is_one_fee(house: House):
    house.open()
    legs = [Leg("researcher:1", f"revenue:{MODEL}", NanoCredits(600))] * 2
    with house.database.unit_of_work() as connection:
        ledger.post(connection, key="two", kind="capture", legs=legs, now=NOW)
    assert house.economy.close_window(MODEL)["revenue_nano"] == 1200
    house.audit()


def test_pools_are_opened_once(house: House):
    house.open()
    house.pay(1000, "1")
    house.economy.close_window(MODEL)
    house.open()
    with pytest.raises(ConflictError), house.database.unit_of_work() as connection:
        house.economy.open_pools(connection, MODEL, PIDS, {**WEIGHTS, "zurich": 3})
    house.audit()


def test_more_fees_than_a_window_takes_are_split_over_several(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("coop.pools.FEES_PER_WINDOW_MAX", 2)
    house.open()
    for number in range(5):
        house.pay(100 + number, str(number))
    closed = house.economy.close_window(MODEL)
    assert len(closed["windows"]) == 3
    assert closed["revenue_nano"] == 510
    house.audit()


def test_a_pool_row_changed_by_hand_is_found(house: House):
    house.open()
    house.pay(10**9, "1")
    house.economy.close_window(MODEL)
    with house.database.unit_of_work() as connection:
        connection.execute(
            sa.update(pool_table)
            .where(pool_table.c.site == "zurich")
            .values(acc=pool_table.c.acc + 1)
        )
    with house.database.reading() as connection:
        assert {found.invariant for found in check(connection).findings} == {"I7"}
    assert differences(*house.published()) == ["pool zurich: its accumulator differs"]


class _PowerCutError(Exception):
    """The process ends here."""


def test_cut_off_at_any_statement_nothing_is_lost_and_a_repeat_completes(house: House):
    house.open()
    for number in range(3):
        house.pay(10**9 + number, str(number))
    left = [0]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _PowerCutError

    acts = (
        lambda: house.economy.close_window(MODEL),
        lambda: house.withdraw("a" * 26),
        lambda: house.economy.claim(7, ["a" * 26, "b" * 26]),
    )
    cuts = 0
    for act in acts:
        for survived in itertools.count():
            left[0] = survived
            sa.event.listen(house.database.engine, "before_cursor_execute", count)
            try:
                act()
            except _PowerCutError:
                cuts += 1
                sa.event.remove(house.database.engine, "before_cursor_execute", count)
                house.audit()
                continue
            sa.event.remove(house.database.engine, "before_cursor_execute", count)
            break
        house.audit()
    assert cuts > 30
    assert house.balance("member:7") == 2 * ((3 * 10**9 + 3) // 2 // 2 // 3)
    assert house.owed("c" * 26) == (3 * 10**9 + 3) // 2 // 2 // 3


def test_fees_windows_claims_and_withdrawals_at_once_neither_deadlock_nor_lose(house: House):
    pids = {"cleveland": [f"{number:026d}".replace("0", "a") for number in range(1, 9)]}
    house.open(pids)
    failures: list[BaseException] = []

    def run(worker: int) -> None:
        try:
            for number in range(budget(4, 40)):
                house.pay(1000 + worker, f"{worker}:{number}")
                match worker % 4:
                    case 0:
                        house.economy.close_window(MODEL)
                    case 1:
                        house.economy.claim(worker, pids["cleveland"][:4])
                    case 2 if number == 1:
                        house.withdraw(pids["cleveland"][worker])
                    case _:
                        house.economy.claim(worker, pids["cleveland"][3:])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    house.economy.close_window(MODEL)
    found, _ = house.published()
    assert found.revenue_nano == 0
    assert sum(fee.amount_nano for fee in found.fees) == sum(
        sum(window.split.values()) for window in found.windows
    )
    house.audit()
