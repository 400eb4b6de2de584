"""A hidden receipt shows that she decided something, and opens to what she decided and no other."""

import json
from pathlib import Path

import pytest
from small_world import NOW, PATIENT, PID, SITES, TRUST, World, consent, consent_receipt, enrolment
from typer.testing import CliRunner

from coop.canonical import document_digest, jcs, parse_object
from coop.cli import app
from coop.db import Database
from coop.errors import CoopError
from coop.journal.receipts import BadReceiptError
from coop.verify import VerificationError, verify_consent, verify_hidden
from coop.verify.hidden import hide

File = dict[str, object]


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def bundle(world: World) -> File:
    """The proof file of a grant, as `coop patient receipts --out` writes it."""
    return proof_file(world, consent())


def proof_file(world: World, document: File, *cosigners: str) -> File:
    digest = world.record("consent", document)
    with world.database.reading() as connection:
        place = world.journal.logged(connection, digest)
    said = {"consent_sha256": digest, "index": place.index, "salt": place.salt}
    receipt = world.record("consent-receipt", consent_receipt(1, **said))
    world.witness(*(cosigners or ("zurich", "budapest")))
    return {
        **world.bundle(digest),
        "enrolment": enrolment(),
        "receipt": world.bundle(receipt),
    }


def test_both_halves_together_are_the_whole_proof(bundle: File):
    hidden, opening = hide(bundle)
    whole = verify_consent(bundle, TRUST)
    assert verify_hidden(hidden, TRUST, opening).facts == whole.facts
    alone = verify_hidden(hidden, TRUST)
    assert alone.facts["index"] == whole.facts["index"]
    assert alone.facts["seen_by"] == NOW
    assert alone.witnessed
    assert any("NOT SHOWN" in step for step in alone.steps)


def test_the_hidden_half_holds_nothing_of_hers(bundle: File):
    """Neither pid nor key, hospital, domain, decision, time, signature, salt or digest."""
    hidden, _ = hide(bundle)
    held = jcs(hidden)
    assert hidden.keys() == {"v", "kind", "commitment", "proof"}
    document = bundle["document"]
    secrets = {PID, PATIENT.did, PATIENT.public.hex(), document["id"], document["validFrom"]}
    secrets |= {document["proof"]["proofValue"], bundle["salt"], document_digest(document)}
    secrets |= {"research", "grant", "cleveland", "permit", "credentialSubject"}
    assert [secret for secret in secrets if str(secret).encode() in held] == []


def test_no_other_document_and_salt_open_it(world: World, bundle: File):
    hidden, opening = hide(bundle)
    other = proof_file(world, consent("revoke"))
    for change in (
        {"document": other["document"]},
        {"salt": other["salt"]},
        {"document": other["document"], "salt": other["salt"]},
        {"salt": "0" * 64},
    ):
        with pytest.raises(BadReceiptError, match="opening"):
            verify_hidden(hidden, TRUST, {**opening, **change})
    with pytest.raises(BadReceiptError, match="opening"):
        verify_hidden(hide(other)[0], TRUST, opening)
    for salt in ("x", "00", 7, None):
        with pytest.raises(CoopError):
            verify_hidden(hidden, TRUST, {**opening, "salt": salt})
    with pytest.raises(CoopError):
        verify_hidden(hidden, TRUST, {"salt": opening["salt"]})


def test_an_opening_is_judged_like_the_whole_proof(bundle: File):
    """A fitting commitment is not enough: whoever signed must have been allowed to."""
    hidden, opening = hide(bundle)
    without = {name: value for name, value in opening.items() if name != "enrolment"}
    with pytest.raises(VerificationError, match="holds no enrolment"):
        verify_hidden(hidden, TRUST, without)
    forged = enrolment(by=SITES["zurich"])
    with pytest.raises(VerificationError):
        verify_hidden(hidden, TRUST, {**opening, "enrolment": forged})


def test_every_byte_of_the_hidden_half_counts(bundle: File):
    hidden, _ = hide(bundle)
    data, passed = jcs(hidden), []
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            verify_hidden(parse_object(bytes(changed)), TRUST)
        except CoopError:
            continue
        passed.append(position)
    assert passed == []


def test_a_commitment_to_another_kind_of_document_is_no_consent(world: World, bundle: File):
    digest = world.record("consent-receipt", consent_receipt(7))
    world.witness("zurich", "budapest")
    lie = {**world.bundle(digest), "kind": "consent"}
    with pytest.raises(CoopError) as caught:
        verify_hidden(hide(lie)[0], TRUST)
    assert caught.value.code == "journal.bad-proof"
    for change in ({"v": 2}, {"kind": "consent"}, {"more": 1}):
        with pytest.raises(BadReceiptError):
            verify_hidden({**hide(bundle)[0], **change}, TRUST)


def test_what_too_few_have_cosigned_is_said_to_wait(world: World):
    hidden, _ = hide(proof_file(world, consent(), "zurich"))
    report = verify_hidden(hidden, TRUST)
    assert not report.witnessed
    assert report.facts["seen_by"] is None


@pytest.mark.parametrize("file", [{}, {"kind": "consent"}, {"kind": "tally", "salt": "0" * 64}])
def test_only_a_decisions_proof_file_is_split(file: File):
    with pytest.raises(VerificationError):
        hide(file)


def test_from_her_command_to_anybodys(tmp_path: Path, bundle: File):
    file, pinned = tmp_path / "consent-0001.json", tmp_path / "trust.json"
    file.write_bytes(jcs(bundle))
    TRUST.save(pinned)
    run = CliRunner().invoke
    made = json.loads(run(app, ["patient", "hide", str(file), "--json"]).stdout)
    assert made == {
        "hidden": str(tmp_path / "consent-0001.hidden.json"),
        "opening": str(tmp_path / "consent-0001.opening.json"),
    }
    check = ["verify", "consent", made["hidden"], "--trust", str(pinned)]
    shown = run(app, check)
    assert (shown.exit_code, "NOT SHOWN" in shown.output) == (0, True), shown.output
    opened = run(app, [*check, "--opening", made["opening"]])
    assert (opened.exit_code, "grant by the patient's own key" in opened.output) == (0, True)
    wrong = run(app, [*check, "--opening", made["hidden"]])
    assert wrong.exit_code == 1
