"""A patient's name and values stay in her hospital: planted ones are looked for in all that leaves.

Planted are record numbers that are names, a value as no other patient has, and both in lines that
are refused. Searched are every request and answer of every client, the hub's whole database and
folder, what the node's staff see of errors, and everything logged or printed.
"""

import contextlib
import io
import logging
from pathlib import Path

import httpx
import orjson
import pytest
import sqlalchemy as sa
from coop_world import HEADER, HOSPITAL, csv_line, now, world
from test_cohort import MEN, job

from consent.policy import preset
from coop import logs
from coop.db import metadata
from coop.documents.consent import request_uses
from coop.errors import CoopError
from coop.keys import SigningKey
from federated import doctor
from federated.cohort import answer_cohort
from federated.importers import import_csv
from federated.round import answer_round
from federated.uses import statement

NAMES = [f"Canary-Annabel-Quist-{number}" for number in range(12)]
ODD = "273.8125"
WORDS = (*NAMES, "Canary-Zebulon", ODD, "273812500", "brugada-canary")


def lines() -> str:
    """Twelve patients with a value of their own, and three whose lines are refused."""
    good = []
    for number, name in enumerate(NAMES):
        cells = csv_line(number + 700).rstrip("\n").split(",")
        cells[0], cells[5] = name, ODD
        good.append(",".join(cells))
    torn = csv_line(3).rstrip("\n").split(",")
    bad = [
        ["Canary-Zebulon", *torn[1:5], ODD + "x", *torn[6:]],
        ["Canary-Zebulon-2", *torn[1:3], "brugada-canary", *torn[4:]],
        ["Canary-Zebulon-3", *torn[1:]][:5],
    ]
    return HEADER + "".join(f"{line}\n" for line in [*good, *(",".join(row) for row in bad)])


class Ears:
    """Everything that any client of this process sends and gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[bytes] = []
        real = httpx.Client.send

        def send(client: httpx.Client, request: httpx.Request, **options: object) -> httpx.Response:
            self.heard.append(str(request.url).encode() + repr(request.headers).encode())
            self.heard.append(request.read())
            answer = real(client, request, **options)
            self.heard.append(repr(answer.headers).encode() + answer.read())
            return answer

        monkeypatch.setattr(httpx.Client, "send", send)


def hub_tables(database) -> bytes:
    """Every row of every table of the hub."""
    rows = []
    with database.reading() as connection:
        for name in sorted(set(sa.inspect(connection).get_table_names()) & set(metadata.tables)):
            query = sa.select(metadata.tables[name])
            rows += [repr(tuple(row)) for row in connection.execute(query)]
    return "\n".join(rows).encode()


def found(text: bytes) -> set[str]:
    return {word for word in WORDS if word.encode() in text}


def test_planted_names_and_values_leave_their_hospital_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    out, said = io.StringIO(), []
    ears = Ears(monkeypatch)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), world(tmp_path) as coop:
        logs.configure()
        file = coop.site.folder / "canaries.csv"
        file.write_text(lines())
        report = import_csv(coop.site, file)
        assert len(report.quarantined) == 3
        people = coop.enrol(NAMES)
        coop.say("grant", people, preset("all-research"))
        coop.cosign()
        run = coop.ready("canaries")
        for round_, phase in ((1, "train"), (2, "train"), (5, "evaluate")):
            answer = answer_round(coop.site, coop.mirror, run.input(round_, phase), now=now)
            said.append(repr(answer).encode())
        counted = answer_cohort(coop.site, coop.mirror, job(run, where=(MEN,)), now=now)
        said.append(repr(counted).encode())
        # What her own hospital signs for her names her pseudonym only.
        said.append(orjson.dumps(statement(coop.site, people[0].pid, now())))
        asked = request_uses(people[0].key, HOSPITAL, people[0].pid, now())
        coop.client.get("/v1/studies", headers=asked)
        # Errors: a path that is none, a request that the hub did not sign, another hospital's door.
        for wrong in (
            lambda: coop.client.get(f"/v1/consents/{people[0].pid}x"),
            lambda: answer_round(
                coop.site, coop.mirror, run.input(by=SigningKey.generate()), now=now
            ),
            lambda: coop.client.post("/v1/sites/zurich/enrolments", {"documents": [{"x": 1}]}),
        ):
            with pytest.raises(CoopError) as caught:
                wrong()
            said.append(repr(caught.value).encode() + repr(caught.value.facts).encode())
        said.append(orjson.dumps(doctor.checks(coop.site), default=str))
        said.append(hub_tables(coop.database))
        with coop.site.database.reading() as connection:
            own = connection.execute(sa.text("SELECT * FROM patient")).all()
        hub = coop.folder.path
    said += [path.read_bytes() for path in hub.rglob("*") if path.is_file()]
    # The search can find: the hospital's own table has every name.
    assert set(NAMES) <= found(repr(own).encode())
    assert found(b"\n".join(ears.heard)) == set()
    assert found(b"\n".join(said)) == set()
    assert found((out.getvalue() + caplog.text).encode()) == set()
    assert len(ears.heard) > 50
