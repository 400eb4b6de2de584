"""Erased is erased: nothing of her is left, nothing of others is lost, nothing brings her back."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from budget import budget
from consent_hub import ConsentHub, Hospital, Person, clock, grant
from doors_world import PID, world
from test_mirror import cosign, hub_writes, refused, trains
from typer.testing import CliRunner

from consent.policy import Preset, preset
from consent.store import site_document
from coop.backup import backup_folder, restore_folder
from coop.canonical import document_digest, parse_object
from coop.cli import app as coop
from coop.client import RemoteError
from coop.db import Database, metadata
from coop.documents.envelope import issue
from coop.documents.erasure import Erasure
from coop.enrolment import redemption
from coop.errors import CoopError, InvalidInputError
from coop.journal.audit import audit
from coop.journal.commitments import commitment_of_digest, leaf_of
from coop.journal.receipts import check_bundle
from coop.journal.rows import signed_document
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.verify import verify_log
from federated import desk, erased, erasure
from federated.erased import ErasedRecordError
from federated.importers import import_csv
from federated.mirror import Mirror
from federated.mirror_store import mirror_document
from federated.site import Site, patient

WHO = ("Anna Registrar", "Ben Second")
REASON = "she asked for it in writing"


@pytest.fixture
def hospitals(hub: ConsentHub, tmp_path: Path) -> Iterator[list[Hospital]]:
    found = [Hospital(hub, tmp_path, name) for name in ("basel", "zurich")]
    for hospital in found:
        hospital.connect()
    yield found
    for hospital in found:
        hospital.close()


@pytest.fixture
def people(hub: ConsentHub, hospitals: list[Hospital]) -> list[Person]:
    """Three patients of the first hospital who all permit; the first of them will be erased."""
    found = hospitals[0].enrol(3)
    grant(hub, found)
    document = found[0].event("amend")
    assert hub.registry.submit([document])[0]["problem"] is None
    found[0].follow(document)
    cosign(hospitals)
    assert trains(hospitals[0].mirror.lease()) == {one.pid for one in found}
    return found


def erase(hospital: Hospital, person: Person) -> None:
    erasure.begin(hospital.site, person.pid, REASON, WHO, now=clock())
    erasure.send(hospital.site, hospital.client, hospital.mirror, now=clock())


def everything(database: Database) -> str:
    """All that a database holds, as text."""
    with database.reading() as connection:
        return "".join(
            f"{table.name} {tuple(row)}\n"
            for table in metadata.sorted_tables
            for row in connection.execute(sa.select(table))
        )


def documents(hub: ConsentHub, pid: str) -> list[tuple[str, str, str]]:
    """(kind, digest, salt) of all that the log holds about a record."""
    with hub.database.reading() as connection:
        query = sa.select(signed_document).where(signed_document.c.body.contains(pid))
        return [(row.kind, row.digest, row.salt) for row in connection.execute(query)]


def leaves(hub: ConsentHub) -> set[bytes]:
    with hub.database.reading() as connection:
        return set(hub.journal.entries(connection, 0))


def test_nothing_of_her_is_left_at_the_hub_and_only_her_spent_budget_at_the_hospital(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    her, other = people[0], people[1]
    assert her.pid in everything(hub.database)
    erase(hospitals[0], her)
    for database in (hub.database, hospitals[0].site.database):
        left = everything(database)
        assert her.pid not in left
        assert her.key.did not in left
        assert her.head not in left
        assert other.pid in left
    with hospitals[0].site.database.reading() as connection:
        names = sa.select(patient.c.record_key).order_by(patient.c.record_key)
        assert list(connection.execute(names).scalars()) == ["record 1", "record 2"]


def test_no_template_and_no_copy_of_what_she_signed_matches_a_leaf_any_more(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    her = people[0]
    kept = documents(hub, her.pid)  # she, or somebody else, kept a copy of every envelope
    assert {kind for kind, _, _ in kept} == {"enrolment", "consent", "consent-receipt"}
    everywhere = leaves(hub)
    for kind, digest, salt in kept:
        assert leaf_of(kind, commitment_of_digest(bytes.fromhex(salt), digest)) in everywhere
    erase(hospitals[0], her)
    with hub.database.reading() as connection:
        salts = sa.select(signed_document.c.salt).where(signed_document.c.salt.is_not(None))
        known = [bytes.fromhex(salt) for salt in connection.execute(salts).scalars()]
    guessed = [digest for _, digest, _ in kept]
    choices = [one for one in Preset if one not in {Preset.THIS_STUDY, Preset.DISEASE_ONLY}]
    for choice in choices:
        for event in ("grant", "amend", "revoke", "suspend", "resume"):
            again = Person(her.site, her.pid, her.key)
            guessed.append(document_digest(again.event(event, choice=choice)))
    assert preset(choices[0])
    for salt in [*known, bytes(32)]:
        for digest in guessed:
            for kind in ("enrolment", "consent", "consent-receipt"):
                assert leaf_of(kind, commitment_of_digest(salt, digest)) not in leaves(hub)
    # What is left of each is what the public leaf says anyway.
    with hub.database.reading() as connection:
        query = sa.select(signed_document).where(signed_document.c.body.is_(None))
        rows = connection.execute(query).all()
    assert len(rows) == len(kept)
    assert {(row.digest, row.salt, row.at) for row in rows} == {
        (f"erased-{row.log_index}", None, 0) for row in rows
    }


def test_every_other_proof_holds_and_the_whole_log_still_verifies(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    history = hub.registry.history(people[1].pid)
    before = leaves(hub)
    erase(hospitals[0], people[0])
    trust = hub.trust
    for event in history:
        check_bundle(event["proof"]["receipt"], trust)
    again = hub.registry.history(people[1].pid)
    assert [event["digest"] for event in again] == [event["digest"] for event in history]
    with hub.database.reading() as connection:
        found = audit(connection, hub.journal)
        export = hub.journal.export(connection)
    assert found.erased == 5  # enrolment, grant, amend, and the receipts of both
    assert found.kinds["erasure"] == 1
    assert before < leaves(hub)
    assert verify_log(export, trust).facts["size"] == found.entries
    cosign(hospitals)
    assert trains(hospitals[0].mirror.lease()) == {people[1].pid, people[2].pid}


def test_she_is_out_in_this_process_the_next_one_and_every_other_of_the_house(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house = hospitals[0]
    beside = Mirror(house.site, house.client, now=clock)
    beside.lease()
    erase(house, people[0])
    others = {people[1].pid, people[2].pid}
    for mirror in (house.mirror, beside, Mirror(house.site, house.client, now=clock)):
        lease = mirror.lease()
        assert trains(lease) == others
        assert lease.standings.keys() == mirror.standings().keys() == others
        assert mirror.speakers().keys() == others


def test_she_is_denied_from_the_desks_word_on_though_the_hub_does_not_answer(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person], monkeypatch
):
    house, her = hospitals[0], people[0]
    erasure.begin(house.site, "record 0", REASON, WHO, now=clock())
    lease = house.mirror.lease()
    assert trains(lease) == {people[1].pid, people[2].pid}
    assert her.pid not in lease.standings
    assert her.pid not in house.mirror.speakers()
    assert hub.registry.standing(her.pid) is not None
    assert her.pid in everything(house.site.database)
    with pytest.raises(ErasedRecordError):
        desk.enrol(house.site, ["record 0"], method="desk", now=clock())
    assert erasure.send(house.site, house.client, house.mirror, now=clock()) != []
    assert her.pid not in everything(house.site.database) + everything(hub.database)
    assert erasure.send(house.site, house.client, house.mirror, now=clock()) == []


def test_a_lost_answer_and_a_decision_at_the_same_moment_do_no_harm(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house, her = hospitals[0], people[0]
    post, calls = house.client.post, []

    def lossy(path: str, body: Any) -> Any:
        calls.append(path)
        if len(calls) == 1:  # she pauses while the desk erases
            hub.registry.restrict(her.pid, "suspend", "session")
            return post(path, body)
        post(path, body)
        raise RemoteError(503, {"code": "client.unreachable", "detail": "the line broke"})

    house.client.post = lossy
    with pytest.raises(RemoteError):
        erase(house, her)
    house.client.post = post
    assert calls == ["/v1/sites/basel/erasures"] * 2
    assert erasure.send(house.site, house.client, house.mirror, now=clock()) != []
    assert her.pid not in everything(house.site.database) + everything(hub.database)


def test_nothing_honest_brings_her_back(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person], tmp_path: Path
):
    house, her = hospitals[0], people[0]
    old = [event["proof"]["document"] for event in hub.registry.history(her.pid)]
    enrolment = hub.registry.history(her.pid)[0]["proof"]["enrolment"]["document"]
    erase(house, her)
    for document in (*old, Person(her.site, her.pid, her.key).event("grant")):
        problem = hub.registry.submit([document])[0]["problem"]
        assert problem["code"] == "consent.not-enrolled"
    (again,) = hub.registry.add_enrolments("basel", [enrolment])
    assert again["problem"]["code"] == "enrolment.refused"
    extract = tmp_path / "extract.csv"
    extract.write_text("patient,age_years\nrecord 0,60\nrecord 7,61\n")
    import_csv(house.site, extract)
    assert her.pid not in everything(house.site.database)
    with pytest.raises(desk.UnknownRecordError):
        desk.enrol(house.site, ["record 0"], method="desk", now=clock())


def test_a_hub_that_kept_what_it_had_to_forget_cannot_bring_her_back(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house, her = hospitals[0], people[0]
    query = sa.select(site_document).where(site_document.c.pid == her.pid)
    with hub.database.reading() as connection:
        shown = [dict(row) for row in connection.execute(query).mappings()]
        kept = [
            dict(row)
            for row in connection.execute(
                sa.select(signed_document).where(
                    signed_document.c.digest.in_([row["digest"] for row in shown])
                )
            ).mappings()
        ]
    erase(house, her)
    # At their old places: refused.
    with hub.database.unit_of_work() as connection:
        for row in kept:
            same = signed_document.c.log_index == row["log_index"]
            connection.execute(signed_document.update().where(same).values(row))
        connection.execute(site_document.insert(), shown)
    hub.registry._leases._heads.clear()
    house.mirror._documents_to = 0
    assert refused(house.mirror) == "erasure.shown"
    assert her.pid not in everything(house.site.database)
    with hub.database.unit_of_work() as connection:
        connection.execute(site_document.delete().where(site_document.c.pid == her.pid))
        for row in kept:
            same = signed_document.c.log_index == row["log_index"]
            left = {"digest": f"erased-{row['log_index']}", "body": None, "salt": None}
            connection.execute(signed_document.update().where(same).values(left))
    # As new entries: they verify, and count for nothing.
    bodies = {row["digest"]: row for row in kept}
    for row in shown:
        again = bodies[row["digest"]]
        document = parse_object(again["body"])
        hub_writes(hub, again["kind"], document, her, grant=again["kind"] == "consent")
    with hub.database.unit_of_work() as connection:
        connection.execute(
            sa.text("UPDATE consent_head SET sequence = 2 WHERE pid = :pid"), {"pid": her.pid}
        )
    hub.registry._leases._heads.clear()
    cosign(hospitals)
    for mirror in (house.mirror, Mirror(house.site, house.client, now=clock)):
        lease = mirror.lease()
        assert trains(lease) == {people[1].pid, people[2].pid}
        assert her.pid not in lease.standings
        assert her.pid not in mirror.speakers()


def test_an_enrolment_that_was_under_way_is_erased_too_and_lets_nobody_in(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house, her = hospitals[0], people[0]
    code = desk.enrol(house.site, ["record 0"], method="demo", now=clock())["record 0"]
    sent = redemption(code, SigningKey.generate())
    hub.registry.redeem([sent], None)
    late = desk.answer(house.site, [sent], now=clock())  # signed, not sent yet
    erase(house, her)
    hub.registry.add_enrolments("basel", late.documents)
    assert her.pid in everything(hub.database)
    lease = house.mirror.lease()
    assert trains(lease) == {people[1].pid, people[2].pid}
    assert house.mirror.shown_again() == {her.pid}
    assert her.pid not in house.mirror.speakers()
    # The running node sees to it, also one that was restored and knows the act from the log alone.
    with house.site.database.unit_of_work() as connection:
        connection.execute(erased.erasure.update().values(erased._BY_THE_LOG))
    erasure.send(house.site, house.client, house.mirror, now=clock())
    assert house.mirror.shown_again() == set()
    assert her.pid not in everything(house.site.database) + everything(hub.database)
    assert trains(house.mirror.lease()) == {people[1].pid, people[2].pid}


def test_a_hospital_restored_from_an_older_backup_erases_again(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person], tmp_path: Path
):
    house, her = hospitals[0], people[0]
    backup_folder(house.site.folder, tmp_path / "backup", database="node.sqlite")
    erase(house, her)
    restore_folder(tmp_path / "backup", tmp_path / "restored", needs="site.key")
    site = Site.open(tmp_path / "restored")
    assert her.pid in everything(site.database)
    mirror = Mirror(site, house.client, now=clock)
    assert trains(mirror.lease()) == {people[1].pid, people[2].pid}
    assert her.pid not in everything(site.database)
    with pytest.raises(CoopError):
        desk.enrol(site, ["record 0"], method="desk", now=clock())
    site.close()


def test_the_command_wants_two_people_and_a_reason_and_says_what_waits(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house = hospitals[0]
    for who, reason in ((("A", " a "), REASON), ((" ", "B"), REASON), (WHO, "x")):
        with pytest.raises(InvalidInputError):
            erasure.begin(house.site, people[0].pid, reason, who, now=clock())
    with pytest.raises(desk.UnknownRecordError):
        erasure.begin(house.site, "nobody", REASON, WHO, now=clock())
    words = ["hospital", "erase", "record 0", "--reason", REASON, "--registrar", WHO[0]]
    words += ["--second", WHO[1], "--state", str(house.site.folder), "--json"]
    hub.stop()
    house.site.pin(hub.trust.to_json(), "http://127.0.0.1:9", None)
    answer = CliRunner().invoke(coop, words)
    assert answer.exit_code == 1
    assert '"erased":false' in answer.stdout
    house.site.pin(hub.trust.to_json(), hub.serve(), None)
    answer = CliRunner().invoke(coop, words)
    assert answer.exit_code == 0, answer.output
    assert people[0].pid not in everything(house.site.database)


def test_only_the_records_own_hospital_erases_it_and_only_whole(
    hub: ConsentHub, hospitals: list[Hospital], people: list[Person]
):
    house, her = hospitals[0], people[0]
    house.mirror.sync()
    with house.site.database.reading() as connection:
        mine = sa.select(mirror_document.c.log_index).where(mirror_document.c.pid == her.pid)
        entries = sorted(connection.execute(mine).scalars())

    def subject_of(by: Hospital, **changes: Any) -> Erasure:
        said = {"site": by.site.name, "record": "0" * 64, "entries": entries}
        said |= {name: str(number) * 64 for number, name in enumerate(("reason", "registrar"))}
        return Erasure.model_validate({**said, "second": "2" * 64, **changes})

    def refusal(by: Hospital, key: SigningKey, **changes: Any) -> str:
        subject = subject_of(by, **changes)
        path = f"/v1/sites/{by.site.name}/erasures"
        with pytest.raises(RemoteError) as caught:
            by.client.post(path, {"document": issue(subject, key, clock()), "pid": her.pid})
        return str(caught.value.code)

    zurich = hospitals[1]
    # Of whom nobody holds anything, nobody erases: another house's act of break-glass may name her.
    nobody = {"document": issue(subject_of(zurich, entries=[]), zurich.site.key, clock())}
    with pytest.raises(RemoteError) as caught:
        zurich.client.post("/v1/sites/zurich/erasures", {**nobody, "pid": "z" * 26})
    assert caught.value.code == "coop.not-found"
    assert refusal(zurich, zurich.site.key) == "coop.not-found"
    assert refusal(house, zurich.site.key) == "documents.wrong-document"
    assert refusal(house, hub.hub_key) == "documents.wrong-document"
    assert refusal(house, house.site.key, site="zurich") == "documents.wrong-document"
    assert refusal(house, house.site.key, entries=entries[:-1]) == "erasure.behind"
    assert refusal(house, house.site.key, entries=[*entries, 10**6]) == "erasure.behind"
    assert hub.registry.standing(her.pid) is not None


def test_an_erasure_costs_hub_and_hospital_together_less_than_50_ms(
    hub: ConsentHub, hospitals: list[Hospital]
):
    house = hospitals[0]
    many = house.enrol(budget(100, 1000))
    grant(hub, many)
    cosign(hospitals)
    house.mirror.lease()
    erase(house, many[0])
    took = []
    for person in many[1 : budget(4, 12)]:
        start = time.process_time()  # hub and hospital both run in this process
        erase(house, person)
        took.append(time.process_time() - start)
    # Other processes on the core only add to it: caches and clock are shared.
    assert min(took) < 0.050


def test_the_whole_hub_forgets_a_record_with_its_pools_and_its_account(
    tmp_path: Path, database: Database
):
    with world(tmp_path, database.url) as here:
        cleveland = here.actors["cleveland"]
        lease = cleveland.ok("GET", f"/v1/lease?nonce={'0' * 32}&documents=0")
        entries = [item["index"] for item in lease["documents"] if item["pid"] == PID]
        subject = Erasure(
            site="cleveland",
            record="0" * 64,
            entries=entries,
            reason="1" * 64,
            registrar="2" * 64,
            second="3" * 64,
        )
        body = {"document": issue(subject, cleveland.key, clock()), "pid": PID}
        first = cleveland.ok("POST", "/v1/sites/cleveland/erasures", body)
        assert cleveland.ok("POST", "/v1/sites/cleveland/erasures", body) == first
        ada = here.actors["ada"]
        assert ada.ok("GET", "/v1/me") == {"pids": []}
        assert ada.send("GET", f"/v1/consents/{PID}").status_code == 404
        left = everything(database)
        assert PID not in left
        journal = Journal(database, here.folder.log_key, here.folder.origin, clock)
        with database.reading() as connection:
            assert audit(connection, journal).erased == len(entries) + 1
