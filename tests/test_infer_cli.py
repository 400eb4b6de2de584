import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from gateway_world import DS, SITES, World
from serving import served
from typer.testing import CliRunner

from coop import ledger
from coop.cli.infer import cohort_app, infer_app, usage_app
from coop.client import RemoteError
from coop.db import Database
from coop.errors import InvalidInputError
from coop.money import NANO

DECLARED = ["--study", "heart", "--purpose", DS]


@pytest.fixture
def world(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A served gateway, and a command line pointed at it with a researcher's key."""
    world = World(sqlite_database)
    with served(world.app()) as port:
        monkeypatch.setenv("COOP_HUB_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("COOP_API_KEY", world.api_key)
        yield world


def run(app, *arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_csv_with_gaps_is_asked_row_by_row(world: World, tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("age,sex,angina,note\n63,male,true,x\n,female,no,y\n")
    done = run(infer_app, "heart-1", "--input", file, *DECLARED, "--json")
    facts = orjson.loads(done.stdout)
    assert (done.exit_code, len(facts["risk"]), facts["fee_nano"]) == (0, 2, 2 * NANO // 100)
    with world.database.reading() as connection:
        assert world.journal.document(connection, facts["receipt"])
    rows = tmp_path / "rows.json"
    said = [{"age": 63, "sex": "male", "angina": True}, {"sex": "female", "angina": False}]
    rows.write_bytes(orjson.dumps(said))
    again = run(infer_app, "heart-1", "--input", rows, *DECLARED, "--json")
    assert orjson.loads(again.stdout)["risk"] == facts["risk"]


def test_words_are_read_as_a_hospital_reads_them(world: World, tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("age,sex,angina\n63,male,true\n63, Male,true\n63,female,true\n")
    done = run(infer_app, "heart-1", "--input", file, *DECLARED, "--json")
    plain, upper, other = orjson.loads(done.stdout)["risk"]
    assert plain == upper != other


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"age,sex\n63,male,1,2\n", "line 2: has more cells"),
        (b"years\n63\n", "it reads age"),
        (b"\xff\xfe\x00", "not CSV"),
        (b'age\n"63\n', "not CSV"),
    ],
)
def test_a_file_that_cannot_be_meant_costs_nothing(
    world: World, tmp_path: Path, content: bytes, said: str
):
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    done = run(infer_app, "heart-1", "--input", file, *DECLARED)
    assert isinstance(done.exception, InvalidInputError)
    assert said in str(done.exception)
    assert world.balance() == ledger.Balance(posted=1000 * NANO, held=0)


def test_text_for_people_names_the_charge_and_the_receipt(world: World, tmp_path: Path):
    file = tmp_path / "row.json"
    file.write_text('{"age": 63, "sex": "male", "angina": true}')
    done = run(infer_app, "heart-1", "--input", file)
    assert "charged 0.010000000 credits" in done.stdout
    assert "nonce " in done.stdout


def test_a_cell_of_the_wrong_kind_is_named_and_costs_nothing(world: World, tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("age,sex,angina\nold,male,true\n")
    done = run(infer_app, "heart-1", "--input", file, *DECLARED)
    assert isinstance(done.exception, InvalidInputError)
    assert "line 2, age" in str(done.exception)
    assert world.balance() == ledger.Balance(posted=1000 * NANO, held=0)


def test_a_refusal_carries_the_hubs_own_code(world: World, tmp_path: Path):
    file = tmp_path / "row.json"
    file.write_text('{"age": 63, "sex": "male", "angina": true}')
    done = run(infer_app, "heart-1", "--input", file, "--study", "x", "--purpose", DS)
    assert isinstance(done.exception, RemoteError)
    assert done.exception.code == "gateway.out-of-scope"


def test_a_cohort_question_waits_for_the_hospitals(world: World, tmp_path: Path):
    file = tmp_path / "query.json"
    file.write_text('{"where": [], "release": "count", "rho_nano": 5000000}')

    def hospitals() -> None:
        for site in SITES:
            while (claimed := world.gateway.claim(site)) is None:
                time.sleep(0.01)
            answer = world.answer_job(claimed)
            world.gateway.receive(site, claimed.id, 1, document=answer, code=None)

    thread = threading.Thread(target=hospitals)
    thread.start()
    done = run(cohort_app, "heart", "--query", file, "--json")
    thread.join()
    assert (done.exit_code, orjson.loads(done.stdout)["count"]) == (0, 120)
    priced = run(cohort_app, "heart", "--query", file, "--version", "1", "--estimate")
    assert priced.stdout.startswith("costs 1.000000000 credits")
    used = run(usage_app, "--json")
    assert orjson.loads(used.stdout)["usage"][0]["mode"] == "cohort"
