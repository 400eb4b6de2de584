"""Credits and models through the hub's own doors and the command line."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from doors_world import PID, World, served, world
from typer.testing import CliRunner

from coop import ledger, members
from coop.cli import ledger as commands
from coop.dividend_audit import DividendDifferenceError, recompute
from coop.economy import Economy
from coop.hub import ledger_api
from coop.journal.store import Journal
from coop.ledger import Leg
from coop.ledger_check import check
from coop.money import NANO, NanoCredits

MODEL = "heart-v1-0123abcd"
OTHER = "b" * 26  # another patient of Cleveland, who has stored no choice
NOW = 1_800_000_000


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub where Rosa has paid three fees for a model that Ada and one more trained."""
    with world(tmp_path_factory.mktemp("economy")) as here:
        issue = {"account_id": int(here.objects["account"]), "amount_nano": 100 * NANO, "key": "1"}
        here.actors["staff-coop"].ok("POST", "/v1/ledger/issue", issue)
        database = here.database()
        journal = Journal(database, here.folder.log_key, here.folder.origin, lambda: NOW)
        economy = Economy(database, journal, here.folder.hub_key, lambda: NOW)
        with database.unit_of_work() as connection:
            holders = {"cleveland": [PID, OTHER], "budapest": []}
            economy.open_pools(connection, MODEL, holders, {"cleveland": 2, "budapest": 1})
            account = f"researcher:{here.objects['account']}"
            for number in range(3):
                legs = [Leg(account, f"revenue:{MODEL}", NanoCredits(NANO + number))]
                ledger.post(connection, key=f"f{number}", kind="capture", legs=legs, now=NOW)
            bea = int(here.actors["bea"].ok("GET", "/v1/whoami")["subject"])
            members.link_pid(connection, bea, OTHER, "cleveland")
        database.close()
        here.actors["staff-coop"].ok("POST", f"/v1/dividends/{MODEL}:close")
        yield here


@pytest.fixture
def online(hub: World, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a command line beside the running hub."""
    trust = tmp_path / "trust.json"
    database = hub.database()
    with database.reading() as connection:
        hub.folder.trust(connection).save(trust)
    database.close()
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, served(hub.app, listening):
        port = listening.getsockname()[1]
        yield {"COOP_HUB_URL": f"http://127.0.0.1:{port}", "COOP_TRUST_FILE": str(trust)}


def run(app: Any, environment: dict[str, str], *arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"], env=environment, catch_exceptions=False)
    assert done.stdout, (done.exit_code, done.stderr)
    return done.exit_code, orjson.loads(done.stdout)


def test_only_the_cooperative_issues_credits_and_a_key_issues_once(hub: World):
    body = {"account_id": int(hub.objects["account"]), "amount_nano": 100 * NANO, "key": "1"}
    again = hub.actors["staff-coop"].ok("POST", "/v1/ledger/issue", body)
    assert again["created"] is False
    for name in ("staff-cleveland", "rosa", "ada", "cleveland", "public"):
        assert hub.actors[name].send("POST", "/v1/ledger/issue", body).status_code in {401, 403}
    more = body | {"amount_nano": 1}
    answer = hub.actors["staff-coop"].send("POST", "/v1/ledger/issue", more)
    assert (answer.status_code, answer.json()["code"]) == (409, "ledger.key-reused")
    nobody = {"account_id": 10**6, "amount_nano": 1, "key": "2"}
    assert hub.actors["staff-coop"].send("POST", "/v1/ledger/issue", nobody).status_code == 404


def test_a_researcher_sees_her_own_account_and_nobody_elses(hub: World):
    mine = hub.actors["rosa"].ok("GET", "/v1/ledger/accounts/mine")
    assert mine["balance_nano"] == 97 * NANO - 3
    assert [line["amount_nano"] for line in mine["lines"]] == [-NANO - 2, -NANO - 1, -NANO, 10**11]
    for name in ("rolf", "public", "ada", "cleveland", "staff-cleveland"):
        assert (
            hub.actors[name].send("GET", f"/v1/ledger/accounts/{mine['account']}").status_code
            == 404
        )
    assert hub.actors["rosa-api-key"].ok("GET", "/v1/ledger/accounts/mine") == mine


def test_public_accounts_name_no_person(hub: World):
    for code in ("commons", f"revenue:{MODEL}", f"pool:{MODEL}:cleveland", "issuance"):
        text = hub.actors["public"].send("GET", f"/v1/ledger/accounts/{code}").text
        assert PID not in text
        assert f"researcher:{hub.objects['account']}" not in text
    assert hub.actors["public"].send("GET", f"/v1/ledger/accounts/patient:{PID}").status_code == 404
    assert (
        hub.actors["staff-coop"].send("GET", f"/v1/ledger/accounts/patient:{PID}").status_code
        == 404
    )


def test_a_hospital_sees_its_own_part(hub: World):
    mine = hub.actors["cleveland"].ok("GET", "/v1/ledger/accounts/mine")
    assert mine["account"] == "hospital:cleveland"
    assert mine["balance_nano"] == 500_000_001
    assert hub.actors["staff-cleveland"].ok("GET", "/v1/ledger/accounts/mine") == mine


def test_a_crowd_at_the_books_keeps_nobody_from_the_other_doors(hub: World, monkeypatch):
    checking, go_on = threading.Event(), threading.Event()

    def slow(connection):
        checking.set()
        go_on.wait(20)
        return check(connection)

    monkeypatch.setattr(ledger_api, "check", slow)

    async def crowded() -> None:
        door = httpx.ASGITransport(hub.app)
        async with httpx.AsyncClient(transport=door, base_url="http://hub", timeout=30) as public:
            crowd = [asyncio.create_task(public.get("/v1/ledger/check")) for _ in range(60)]
            while not checking.is_set():  # noqa: ASYNC110  (another thread sets it)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            answer = await asyncio.wait_for(public.get("/v1/log/size"), 5)
            go_on.set()
            assert {(await waiting).status_code for waiting in crowd} == {200}
            assert answer.status_code == 200

    try:
        asyncio.run(crowded())
    finally:
        go_on.set()


def test_anyone_recomputes_the_published_dividends(hub: World):
    public = hub.actors["public"]
    assert public.ok("GET", "/v1/dividends") == {"models": [MODEL]}
    published = public.ok("GET", f"/v1/dividends/{MODEL}")
    assert recompute(published) == 1
    assert sum(published["windows"][0]["split"].values()) == 3 * NANO + 3
    published["pools"][1]["acc"] += 1
    with pytest.raises(DividendDifferenceError):
        recompute(published)
    assert public.send("GET", "/v1/dividends/unknown").status_code == 404


def test_no_amount_is_shown_before_a_choice_is_stored(hub: World):
    answer = hub.actors["bea"].send("GET", "/v1/me/credits")
    assert answer.status_code == 200
    assert answer.json()["shown"] is False
    assert not any(isinstance(v, int) and not isinstance(v, bool) for v in answer.json().values())
    assert answer.json()["pids"] == []
    assert hub.actors["bea"].ok("POST", "/v1/me/credits:claim") == {"claimed_nano": 0}


def test_a_patient_collects_what_her_record_earned_once(hub: World):
    ada = hub.actors["ada"]
    before = ada.ok("GET", "/v1/me/credits")
    assert before["shown"] is True
    assert before["collected_nano"] == 0
    # Half of the fees is the patients'; two thirds of it Cleveland's; shared by two.
    assert before["waiting_nano"] == (3 * NANO + 3) // 2 * 2 // 3 // 2
    assert before["pids"][0]["models"] == {MODEL: before["waiting_nano"]}
    assert ada.ok("POST", "/v1/me/credits:claim") == {"claimed_nano": before["waiting_nano"]}
    assert ada.ok("POST", "/v1/me/credits:claim") == {"claimed_nano": 0}
    after = ada.ok("GET", "/v1/me/credits")
    assert (after["waiting_nano"], after["collected_nano"]) == (0, before["waiting_nano"])
    assert [line["nano"] for line in after["statement"]] == [before["waiting_nano"]]
    assert hub.actors["stranger"].send("GET", "/v1/me/credits").status_code == 403


def test_the_command_line_checks_recomputes_and_exports(hub: World, online: dict[str, str]):
    code, checked = run(commands.app, online, "check")
    assert (code, checked["ok"]) == (0, True)
    assert checked["transfers"] >= 4
    code, checked = run(commands.app, online, "check", "--state", str(hub.settings.state))
    assert (code, checked["ok"]) == (0, True)
    code, exported = run(commands.app, online, "export", "hledger")
    assert (code, exported["format"]) == (0, "hledger")
    assert PID not in exported["text"]
    code, exported = run(
        commands.app, online, "export", "csv", "--full", "--state", str(hub.settings.state)
    )
    assert f"researcher:{hub.objects['account']}" in exported["text"]
    code, statement = run(commands.app, online, "statement", "commons")
    assert (code, statement["account"]) == (0, "commons")


def test_dividends_verify_says_what_it_did_not_check(hub: World, online: dict[str, str]):
    code, facts = run(commands.dividends_app, online, "verify")
    assert (code, facts["ok"], facts["signatures_checked"]) == (0, True, True)
    blind = {"COOP_HUB_URL": online["COOP_HUB_URL"]}
    code, facts = run(commands.dividends_app, blind, "verify")
    assert (code, facts["ok"], facts["signatures_checked"]) == (1, False, False)
    code, facts = run(
        commands.dividends_app, blind, "verify", "--arithmetic-only", "--model", MODEL
    )
    assert (code, facts["ok"], facts["signatures_checked"]) == (0, True, False)
    assert facts["models"][MODEL]["distributed_nano"] == 3 * NANO + 3
