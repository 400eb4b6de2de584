"""A hub that withholds what a patient said is convicted by its own two signatures, and no other."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from consent_hub import ConsentHub, Hospital, Person, clock, grant
from typer.testing import CliRunner

from consent.chain import heads_digest
from consent.store import consent_head, site_document
from coop.canonical import jcs
from coop.cli import app
from coop.documents.envelope import issue
from coop.documents.people import Representation
from coop.documents.training import Lease
from coop.errors import CoopError
from coop.keys import SigningKey
from coop.verify import NotConvictedError, VerificationError, verify_withheld
from federated.evidence import NoEvidenceError, of_lease
from federated.quarantine import set_aside


@pytest.fixture
def basel(hub: ConsentHub, tmp_path: Path) -> Iterator[Hospital]:
    hospital = Hospital(hub, tmp_path, "basel")
    hospital.connect()
    yield hospital
    hospital.close()


@pytest.fixture
def ada(hub: ConsentHub, basel: Hospital) -> Person:
    """One of three who granted; what the hospital holds is up to date."""
    people = basel.enrol(3)
    grant(hub, people)
    basel.mirror.lease()
    return people[0]


def hide(hub: ConsentHub, person: Person, back_to: int) -> list[sa.Row]:
    """The hub forgets what it stored of her after so many events; returns what it left out."""
    own = site_document.c.pid == person.pid
    with hub.database.unit_of_work() as connection:
        query = sa.select(site_document).where(own).order_by(site_document.c.log_index)
        hidden = connection.execute(query).all()[1 + back_to :]  # the first is her enrolment
        for row in hidden:
            same = site_document.c.log_index == row.log_index
            connection.execute(site_document.delete().where(same))
        head = consent_head.c.pid == person.pid
        if back_to == 0:
            connection.execute(consent_head.delete().where(head))
        else:
            kept = connection.execute(query).all()[back_to]
            values = {"digest": kept.digest, "state": "active", "sequence": back_to}
            connection.execute(consent_head.update().where(head).values(values))
    hub.registry._leases._heads.clear()
    return list(hidden)


def show_again(hub: ConsentHub, person: Person, rows: list[sa.Row]) -> None:
    """The hub sends what it had left out."""
    with hub.database.unit_of_work() as connection:
        for row in rows:
            connection.execute(site_document.insert().values(**row._mapping))
        values = {"digest": rows[-1].digest, "state": "revoked", "sequence": 2}
        head = consent_head.c.pid == person.pid
        connection.execute(consent_head.update().where(head).values(values))
    hub.registry._leases._heads.clear()


def withdraws(hub: ConsentHub, person: Person) -> dict:
    """She withdraws with her own key; the file that her portal gives her."""
    document = person.event("revoke")
    result = hub.registry.submit([document])[0]
    assert result["problem"] is None
    person.follow(document)
    return hub.registry.history(person.pid)[-1]["proof"]


def test_a_hub_that_hides_a_withdrawal_and_puts_the_head_back_is_convicted(hub, basel, ada):
    file = withdraws(hub, ada)
    hide(hub, ada, 1)
    lease = basel.mirror.lease()
    assert ada.pid in lease.usable  # the lie works, until somebody compares
    evidence = of_lease(basel.site, lease.digest)
    report = verify_withheld(file, evidence, hub.trust)
    assert report.facts["withheld"] == "revoke"
    assert report.facts["pid"] == ada.pid
    assert report.facts["index"] < report.facts["log_size"] == lease.log_size
    # Her bare receipt is enough where the hospital adds the document that the lease names.
    with pytest.raises(NotConvictedError, match="--pid"):
        verify_withheld(file["receipt"], evidence, hub.trust)
    named = of_lease(basel.site, lease.digest, ada.pid)
    assert verify_withheld(file["receipt"], named, hub.trust).facts == report.facts


def test_it_is_convicted_of_a_lease_that_goes_back_further_too(hub, basel, ada):
    amended = ada.event("amend", choice="refuse")
    assert hub.registry.submit([amended])[0]["problem"] is None
    ada.follow(amended)
    file = withdraws(hub, ada)
    hide(hub, ada, 1)
    lease = basel.mirror.lease()
    with pytest.raises(NotConvictedError, match="--pid"):
        verify_withheld(file, of_lease(basel.site, lease.digest), hub.trust)
    assert verify_withheld(file, of_lease(basel.site, lease.digest, ada.pid), hub.trust)


def test_a_withdrawal_made_without_a_key_convicts_as_well(hub, basel, ada):
    receipt = hub.registry.restrict(ada.pid, "revoke", "session")["receipt"]
    hide(hub, ada, 1)
    lease = basel.mirror.lease()
    evidence = of_lease(basel.site, lease.digest, ada.pid)
    assert verify_withheld(receipt, evidence, hub.trust).facts["withheld"] == "revoke"


def test_a_lease_that_names_nothing_of_hers_convicts_nobody_as_after_an_erasure(hub, basel):
    ada, ben = basel.enrol(2)
    grant(hub, [ada, ben])
    file = hub.registry.history(ada.pid)[-1]["proof"]
    hide(hub, ada, 0)
    lease = basel.mirror.lease()
    assert ada.pid not in lease.usable  # what the hospital is not told of, it may not use
    with pytest.raises(NotConvictedError, match="erased"):
        verify_withheld(file, of_lease(basel.site, lease.digest), hub.trust)


def test_a_receipt_about_who_may_speak_is_held_against_who_may_speak(hub, basel, ada):
    proxy = Representation(
        pid=ada.pid,
        site="basel",
        did=SigningKey.generate().did,
        role="proxy",
        valid_from=clock(),
        valid_until=clock() + 1000,
    )
    (result,) = hub.registry.people.submit([issue(proxy, ada.key, clock())])
    assert result["problem"] is None
    lease = basel.mirror.lease()
    with pytest.raises(NotConvictedError, match="exactly what she said"):
        verify_withheld(result["receipt"], of_lease(basel.site, lease.digest), hub.trust)


def test_the_old_lease_convicts_even_when_the_hub_has_made_good_since(hub, basel, ada):
    file = withdraws(hub, ada)
    hidden = hide(hub, ada, 1)
    lied = basel.mirror.lease()
    show_again(hub, ada, hidden)
    honest = basel.mirror.lease()
    assert ada.pid not in honest.usable
    evidence = of_lease(basel.site, lied.digest, ada.pid)
    assert verify_withheld(file, evidence, hub.trust).facts["lease_sha256"] == lied.digest
    with pytest.raises(NotConvictedError, match="exactly"):
        verify_withheld(file, of_lease(basel.site, honest.digest, ada.pid), hub.trust)


def test_an_honest_hub_is_never_convicted(hub, basel, ada):
    """Whatever she said, whichever lease: before it, at it, after it, after something newer."""
    files = [hub.registry.history(ada.pid)[0]["proof"]]
    leases = [basel.mirror.lease()]
    for event in ("suspend", "resume", "revoke", "grant"):
        document = ada.event(event)
        assert hub.registry.submit([document])[0]["problem"] is None
        ada.follow(document)
        files.append(hub.registry.history(ada.pid)[-1]["proof"])
        leases.append(basel.mirror.lease())
    pairs = list(itertools.product(files, leases))
    for file, lease in pairs:
        for pid in (ada.pid, None):
            with pytest.raises(NotConvictedError):
                verify_withheld(file, of_lease(basel.site, lease.digest, pid), hub.trust)


def test_a_hospital_cannot_frame_the_hub(hub, basel, ada):
    """Other heads than those the hub signed, another lease, another document, another hospital."""
    before = basel.mirror.lease()
    file = withdraws(hub, ada)
    old = of_lease(basel.site, before.digest, ada.pid)
    evidence = of_lease(basel.site, basel.mirror.lease().digest, ada.pid)
    framed = {**evidence["heads"], ada.pid: old["heads"][ada.pid]}
    subject = Lease.model_validate(evidence["lease"]["credentialSubject"])
    own = subject.model_copy(update={"heads_sha256": heads_digest(framed)})
    elsewhere = issue(subject.model_copy(update={"site": "zurich"}), hub.hub_key, 0)
    for change in (
        {"heads": framed},
        {"heads": {}},
        {"heads": framed, "lease": issue(own, basel.site.key, 0)},
        {"heads": framed, "lease": issue(own, SigningKey.generate(), 0)},
        {"lease": elsewhere},
        {"v": 2},
        {"more": 1},
    ):
        with pytest.raises(CoopError) as caught:
            verify_withheld(file, {**evidence, **change}, hub.trust)
        assert not isinstance(caught.value, NotConvictedError)
    with pytest.raises(NotConvictedError):  # genuine, and of a time before she withdrew
        verify_withheld(file, old, hub.trust)


def test_another_document_cannot_pass_for_the_head(hub, basel, ada):
    file = withdraws(hub, ada)
    hide(hub, ada, 1)
    evidence = of_lease(basel.site, basel.mirror.lease().digest, ada.pid)
    with pytest.raises(VerificationError, match="another document"):
        verify_withheld(file, {**evidence, "head": file["enrolment"]}, hub.trust)


def test_a_receipt_the_hub_did_not_sign_convicts_nobody(hub, basel, ada):
    file = withdraws(hub, ada)
    hide(hub, ada, 1)
    evidence = of_lease(basel.site, basel.mirror.lease().digest, ada.pid)
    said = file["receipt"]["document"]
    forged = {**said, "credentialSubject": {**said["credentialSubject"], "index": 0}}
    for receipt in ({"document": forged}, {"document": evidence["lease"]}, {}):
        with pytest.raises(CoopError):
            verify_withheld(receipt, evidence, hub.trust)


def test_only_leases_that_were_held_are_evidence(hub, basel, ada):
    with pytest.raises(NoEvidenceError):
        of_lease(basel.site, "0" * 64)
    newest = of_lease(basel.site)
    assert heads_digest(newest["heads"]) == newest["lease"]["credentialSubject"]["heads_sha256"]
    assert "head" not in of_lease(basel.site, None, "b" * 26)


def test_a_document_that_staff_set_aside_leaves_the_evidence_whole(hub, basel, ada):
    forged = ada.event("revoke", key=SigningKey.generate())
    with hub.database.unit_of_work() as connection:
        place = hub.journal.record(connection, "consent", forged)
        row = {"site": ada.site, "pid": ada.pid, "digest": place.digest}
        connection.execute(site_document.insert().values(log_index=place.index, **row))
    hub.registry._leases._heads.clear()
    with pytest.raises(CoopError):
        basel.mirror.lease()
    set_aside(basel.site, place.index, "not hers", now=0)
    lease = basel.mirror.lease()
    evidence = of_lease(basel.site, lease.digest, ada.pid)
    assert evidence["heads"][ada.pid] == ada.head
    file = hub.registry.history(ada.pid)[0]["proof"]
    with pytest.raises(NotConvictedError, match="exactly"):
        verify_withheld(file, evidence, hub.trust)


def test_from_the_hospitals_command_to_the_conviction(hub, basel, ada, tmp_path: Path):
    file = withdraws(hub, ada)
    hide(hub, ada, 1)
    digest = basel.mirror.lease().digest
    out, receipt, trust = (tmp_path / n for n in ("evidence.json", "receipt.json", "trust.json"))
    run = CliRunner().invoke
    where = ["--out", str(out), "--state", str(basel.site.folder)]
    made = run(app, ["hospital", "evidence", "--lease", digest, "--pid", ada.pid, *where])
    assert made.exit_code == 0, made.output
    receipt.write_bytes(jcs(file["receipt"]))
    hub.trust.save(trust)
    check = ["verify", "withheld", str(receipt), str(out), "--trust", str(trust)]
    convicted = run(app, check)
    assert convicted.exit_code == 0, convicted.output
    assert "withheld it from basel" in convicted.output
    receipt.write_bytes(jcs(hub.registry.history(ada.pid)[0]["proof"]))
    acquitted = run(app, check)
    assert acquitted.exit_code == 1
    assert "verify.not-convicted" in acquitted.output
