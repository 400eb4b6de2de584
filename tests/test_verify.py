"""Offline verification: any changed byte fails, and only the trust file's keys count."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from small_round import Round
from small_world import (
    DIDS,
    HUB,
    LOG,
    NOW,
    PATIENT,
    PID,
    SITES,
    TRUST,
    World,
    consent,
    consent_receipt,
    enrolment,
    key,
)
from typer.testing import CliRunner

from coop.canonical import document_digest, jcs, parse_object, sha256
from coop.cli.verify import app
from coop.db import Database, metadata
from coop.documents.study import Budget, Schedule
from coop.errors import CoopError
from coop.journal import note
from coop.journal.merkle import JournalProofError
from coop.journal.receipts import BadReceiptError, check_bundle, parse_proof, proof_text
from coop.journal.store import (
    log_checkpoint,
    log_cosignature,
    log_entry,
    log_head,
    signed_document,
)
from coop.keys import sign_document
from coop.verify import (
    NoTrustFileError,
    Trust,
    TrustFileError,
    VerificationError,
    verify_consent,
    verify_document_by_kind,
    verify_log,
    verify_passport,
    verify_receipt,
    verify_round,
)
from coop.verify.rounds import keeps_budget
from federated.accounting import plan

KIND = "consent-receipt"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Only the log's own tables: a hundred whole migrations would take half a minute."""
    database = logs_only(tmp_path / "log.sqlite")
    yield World(database)
    database.close()


def logs_only(path: Path) -> Database:
    database = Database(f"sqlite:///{path}")
    metadata.create_all(
        database.engine,
        tables=[signed_document, log_entry, log_head, log_checkpoint, log_cosignature],
    )
    return database


@pytest.fixture
def bundle(world: World) -> dict[str, object]:
    for number in range(1, 6):
        world.record(KIND, consent_receipt(number))
    digest = world.record(KIND, consent_receipt(0))
    world.record(KIND, consent_receipt(6))
    world.witness("zurich", "budapest")
    return world.bundle(digest)


def test_a_receipt_verifies_against_the_trust_file_alone(bundle):
    report = verify_receipt(bundle, TRUST)
    assert report.witnessed
    assert report.facts["signed_by"] == "the hub"
    assert (report.facts["index"], report.facts["size"]) == (5, 7)
    assert report.facts["cosigners"] == ["budapest", "zurich"]
    assert report.facts["says"] == bundle["document"]["credentialSubject"]
    assert report.facts["digest"] == document_digest(bundle["document"])


def test_any_byte_changed_in_a_receipt_fails(bundle):
    data = jcs(bundle)
    passed = []
    for position in range(len(data)):
        for bit in range(position % 8, budget(position % 8 + 1, position % 8 + 8)):
            changed = bytearray(data)
            changed[position] ^= 1 << bit % 8
            try:
                verify_receipt(parse_object(bytes(changed)), TRUST)
            except CoopError:
                continue
            passed.append((position, bit % 8, bytes(changed[position - 20 : position + 20])))
    assert passed == []


def test_a_receipt_signed_again_with_a_fresh_key_fails(world: World):
    forger = key("forger")
    digest = world.record(KIND, consent_receipt(1, by=forger))
    world.witness("zurich", "budapest")
    forged = world.bundle(digest)
    assert check_bundle(forged, TRUST).issuer == forger.did  # genuine in form, logged, cosigned
    with pytest.raises(VerificationError, match="only the hub"):
        verify_receipt(forged, TRUST)


def test_a_signature_replaced_after_logging_fails(bundle):
    bare = {name: value for name, value in bundle["document"].items() if name != "proof"}
    again = sign_document({**bare, "issuer": key("forger").did}, key("forger"), created=NOW)
    with pytest.raises(JournalProofError):
        verify_receipt({**bundle, "document": again}, TRUST)


@pytest.mark.parametrize("change", [{"hub": "x"}, {"log": "x"}, {"origin": "x"}, {"sites": "x"}])
def test_every_key_comes_from_the_trust_file(bundle, change):
    name = next(iter(change))
    other = {"hub": key("other").did, "log": key("other").did, "origin": "other.test/log"}
    value = other.get(name, {site: key(site + "x").did for site in DIDS})
    with pytest.raises(CoopError):
        verify_receipt(bundle, replace(TRUST, **{name: value}))


def test_too_few_cosigners_is_said_and_not_hidden(world: World):
    digest = world.record(KIND, consent_receipt(1))
    assert not verify_receipt(world.bundle(digest), TRUST).witnessed
    world.witness("zurich")
    assert not verify_receipt(world.bundle(digest), TRUST).witnessed
    assert verify_receipt(world.bundle(digest), replace(TRUST, k=1)).witnessed
    world.witness("budapest")
    assert verify_receipt(world.bundle(digest), TRUST).witnessed


def test_a_receipt_that_waits_for_cosignatures_is_not_shown_as_complete(world: World):
    digest = world.record(KIND, consent_receipt(1, event="grant"))
    report = verify_receipt(world.bundle(digest), TRUST)
    text = f"{KIND}: recorded; waiting for the hospitals' cosignatures (0 of 2)"
    assert report.waiting == report.to_json()["waiting"] == [text]
    assert not [step for step in report.steps if "cosign" in step]
    assert report.lines()[-2:] == [
        f"wait {text}",
        "receipt: genuine and recorded, not yet complete",
    ]
    world.witness("zurich", "budapest")
    report = verify_receipt(world.bundle(digest), TRUST)
    assert report.waiting == []
    assert "cosigned by 2 (needs 2)" in report.steps[0]
    assert report.lines()[-1] == "receipt: verified"


@pytest.mark.parametrize("event", ["revoke", "suspend"])
def test_a_stop_that_waits_for_cosignatures_is_said_to_be_in_force(world: World, event: str):
    digest = world.record(KIND, consent_receipt(1, event=event))
    (text,) = verify_receipt(world.bundle(digest), TRUST).waiting
    assert text.endswith("(0 of 2); stopping is in force all the same and needs none")


def test_a_log_that_waits_for_cosignatures_says_so(world: World):
    world.record(KIND, consent_receipt(1))
    with world.database.reading() as connection:
        export = world.journal.export(connection)
    report = verify_log(export, TRUST)
    assert report.waiting == [
        "checkpoint: recorded; waiting for the hospitals' cosignatures (0 of 2)"
    ]
    assert not report.witnessed


def test_a_signature_nobody_can_check_is_refused(bundle):
    text = str(bundle["proof"])
    extra = note.cosign(text.partition("\n\n")[2], name="elsewhere", key=key("x"), now=NOW)
    with pytest.raises(BadReceiptError, match="elsewhere"):
        check_bundle({**bundle, "proof": text + extra.splitlines()[-1] + "\n"}, TRUST)
    line = text.splitlines()[-1] + "\n"
    with pytest.raises(BadReceiptError, match="twice"):
        check_bundle({**bundle, "proof": text + line}, TRUST)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"more": 1},
        {"kind": "order"},
        {"kind": "nonsense"},
        {"kind": 7},
        {"document": []},
        {"document": {}},
        {"salt": ""},
        {"salt": "AB" * 32},
        {"salt": 7},
        {"proof": ""},
        {"proof": None},
        {"proof": "c2sp.org/tlog-proof@v1\nindex 0\n\n"},
    ],
    ids=str,
)
def test_a_receipt_has_one_form(bundle, change):
    with pytest.raises(CoopError):
        verify_receipt({**bundle, **change}, TRUST)


def test_a_proof_reads_back_as_written(bundle):
    proof = parse_proof(str(bundle["proof"]))
    assert proof_text(proof.index, proof.hashes, proof.checkpoint) == bundle["proof"]
    for text in (
        str(bundle["proof"]).replace("index 5", "index 05"),
        str(bundle["proof"]).replace("index 5\n", ""),
        str(bundle["proof"]).replace("@v1", "@v2"),
        str(bundle["proof"]).replace("index 5\n", "index 5\n" + "x\n" * 200),
    ):
        with pytest.raises(CoopError):
            parse_proof(text)


# --- who may say what


def test_each_kind_is_signed_by_whom_it_must_be():
    assert verify_document_by_kind(KIND, consent_receipt(), TRUST).issuer == HUB.did
    assert verify_document_by_kind("enrolment", enrolment(), TRUST).issuer == DIDS["cleveland"]
    for kind, document in (
        (KIND, consent_receipt(by=SITES["cleveland"])),
        ("enrolment", enrolment(by=HUB)),
        ("enrolment", enrolment(by=SITES["zurich"])),
        ("nonsense", enrolment()),
    ):
        with pytest.raises(VerificationError):
            verify_document_by_kind(kind, document, TRUST)


def test_a_hospital_that_is_no_member_says_nothing():
    sites = {name: did for name, did in DIDS.items() if name != "cleveland"}
    with pytest.raises(VerificationError):
        verify_document_by_kind("enrolment", enrolment(), replace(TRUST, sites=sites))


def test_every_kind_of_document_has_a_rule_for_who_signs_it():
    source = (Path(__file__).parent.parent / "coop/documents").glob("*.py")
    declared = re.findall(
        r'kind: ClassVar\[str\] = "([a-z-]+)"', "".join(p.read_text() for p in source)
    )
    assert len(declared) > 10
    for kind in declared:
        with pytest.raises(CoopError) as caught:
            verify_document_by_kind(kind, {}, TRUST)
        assert "no kind of document" not in caught.value.message


# --- consent


def logged_consent(world: World, document: dict[str, object]) -> dict[str, object]:
    digest = world.record("consent", document)
    with world.database.reading() as connection:
        place = world.journal.logged(connection, digest)
    event = document["credentialSubject"]["event"]
    receipt = consent_receipt(
        1, consent_sha256=digest, event=event, index=place.index, salt=place.salt
    )
    receipt_digest = world.record(KIND, receipt)
    world.witness("zurich", "budapest")
    return {**world.bundle(digest), "receipt": world.bundle(receipt_digest)}


def test_a_consent_verifies_from_the_desk_to_the_receipt(world: World):
    bundle = {**logged_consent(world, consent()), "enrolment": enrolment()}
    report = verify_consent(bundle, TRUST)
    assert report.facts["kind"] == "consent"
    assert report.facts["issuer"] == PATIENT.did
    assert report.witnessed
    assert verify_receipt(bundle, TRUST).facts == report.facts
    assert verify_consent(bundle["receipt"], TRUST).facts["kind"] == KIND


def test_the_enrolment_may_be_a_logged_bundle_too(world: World):
    digest = world.record("enrolment", enrolment())
    bundle = logged_consent(world, consent())
    report = verify_consent({**bundle, "enrolment": world.bundle(digest)}, TRUST)
    assert report.facts["issuer"] == PATIENT.did


def test_a_grant_without_the_hospitals_enrolment_is_worth_nothing(world: World):
    bundle = logged_consent(world, consent())
    with pytest.raises(VerificationError, match="holds no enrolment"):
        verify_consent(bundle, TRUST)
    for wrong in (enrolment(by=key("forger")), enrolment(by=HUB), enrolment(pid="b" * 26)):
        with pytest.raises(VerificationError):
            verify_consent({**bundle, "enrolment": wrong}, TRUST)


def test_the_hub_and_the_hospital_may_restrict_and_never_widen(world: World):
    for number, (event, signer) in enumerate(
        [("revoke", HUB), ("suspend", HUB), ("revoke", SITES["cleveland"])]
    ):
        assert verify_consent(logged_consent(world, consent(event, by=signer)), TRUST), number
    for event, signer in [
        ("grant", HUB),
        ("grant", SITES["cleveland"]),
        ("resume", HUB),
        ("revoke", SITES["zurich"]),
        ("revoke", key("forger")),
    ]:
        bundle = logged_consent(world, consent(event, by=signer))
        with pytest.raises(VerificationError):
            verify_consent({**bundle, "enrolment": enrolment()}, TRUST)


@pytest.mark.parametrize(
    "change",
    [
        {"consent_sha256": "0" * 64},
        {"pid": "b" * 26},
        {"event": "revoke"},
        {"index": 7},
        {"salt": "0" * 64},
    ],
    ids=str,
)
def test_a_receipt_of_another_consent_does_not_fit(world: World, change):
    bundle = {**logged_consent(world, consent()), "enrolment": enrolment()}
    said = {**bundle["receipt"]["document"]["credentialSubject"], **change}
    other = world.record(KIND, consent_receipt(9, **said))
    with pytest.raises(VerificationError, match="another consent"):
        verify_consent({**bundle, "receipt": world.bundle(other)}, TRUST)


def test_a_receipt_logged_before_its_consent_is_refused(world: World):
    digest = world.record(KIND, consent_receipt(1, index=0))
    with pytest.raises(VerificationError, match="before"):
        verify_consent(world.bundle(digest), TRUST)


# --- the log


@pytest.fixture
def export(world: World) -> dict[str, object]:
    for number in range(9):
        world.record(KIND, consent_receipt(number))
    world.witness("zurich", "budapest")
    with world.database.reading() as connection:
        return world.journal.export(connection)


def test_the_whole_log_verifies(export):
    report = verify_log({**export, "sites": {"ignored": True}}, TRUST)
    assert report.witnessed
    assert (report.facts["size"], report.facts["kinds"]) == (9, {KIND: 9})


def test_a_log_with_anything_changed_fails(export):
    entries = export["entries"]
    checkpoint = str(export["checkpoint"])
    foreign = note.sign_checkpoint(TRUST.origin, 9, bytes(32), key("forger"))
    forked = note.sign_checkpoint(TRUST.origin, 9, bytes(32), LOG)
    cases = [
        {"entries": entries[:-1]},
        {"entries": [*entries, entries[0]]},
        {"entries": [entries[1], entries[0], *entries[2:]]},
        {"entries": [*entries[:-1], "AAAA"]},
        {"entries": [*entries[:-1], 7]},
        {"entries": {}},
        {"checkpoint": foreign},
        {"checkpoint": forked},
        {"checkpoint": checkpoint + checkpoint.splitlines()[-1] + "\n"},
        {"checkpoint": 7},
        {"v": 2},
    ]
    for change in cases:
        with pytest.raises(CoopError):
            verify_log({**export, **change}, TRUST)
    with pytest.raises(VerificationError):
        verify_log({"v": 1, "entries": []}, TRUST)


def test_a_leaf_that_holds_more_than_a_commitment_is_found(world: World, export):
    leaf = jcs({"v": 1, "t": KIND, "c": "0" * 64, "pid": PID})
    from coop.canonical import b64u

    with pytest.raises(CoopError, match="nothing else"):
        verify_log({**export, "entries": [b64u(leaf)]}, TRUST)


# --- passport


def test_a_passport_verifies_with_its_files(world: World):
    files = {"model.onnx": b"onnx", "io.json": b"{}"}
    bundle = Round(world).passport({name: sha256(data).hex() for name, data in files.items()})
    report = verify_passport(bundle, TRUST, files)
    assert [step for step in report.steps if "is the file" in step] == [
        "model.onnx: is the file that the passport names",
        "io.json: is the file that the passport names",
    ]
    assert any("NOT CHECKED" in step for step in verify_passport(bundle, TRUST).steps)
    for wrong in ({"model.onnx": b"other"}, {**files, "model.safetensors": b""}):
        with pytest.raises(VerificationError):
            verify_passport(bundle, TRUST, wrong)


def test_a_passport_verifies_back_to_its_first_round(world: World):
    records = Round(world).records(3)
    digests = [document_digest(record["document"]) for record in records]
    root = sha256(b"".join(map(bytes.fromhex, digests))).hex()
    said = {"record_sha256": digests[-1], "training_root": root}
    passport = Round(world, change={"passport": said}).passport({})
    report = verify_passport({**passport, "records": records}, TRUST)
    assert any("training root" in step for step in report.steps)
    assert report.facts["kind"] == "passport"
    for wrong in (records[:-1], records[1:], records[::-1], [*records, records[0]], [], 7):
        with pytest.raises(VerificationError):
            verify_passport({**passport, "records": wrong}, TRUST)
    other = Round(world, change={"passport": {**said, "training_root": "3" * 64}}).passport({})
    with pytest.raises(VerificationError, match="made from"):
        verify_passport({**other, "records": records}, TRUST)


def test_a_hospital_cannot_issue_a_passport(world: World):
    bundle = Round(world, signer={"passport": SITES["zurich"]}).passport({})
    with pytest.raises(VerificationError, match="only the hub"):
        verify_passport(bundle, TRUST)


# --- round


def test_a_round_verifies_from_the_study_to_the_record(world: World):
    report = verify_round(Round(world).chain(), TRUST)
    assert report.witnessed
    assert report.facts["accepted"] == ["cleveland", "zurich"]
    assert report.facts["refused"] == [{"site": "budapest", "code": "budget.exhausted"}]
    assert report.facts["proposed_by"] == PATIENT.did
    assert len(report.steps) == 15


def test_a_request_that_was_not_logged_still_chains(world: World):
    chain = Round(world).chain()
    bare = chain["request"]["document"]
    assert verify_round({**chain, "request": bare}, TRUST)
    with pytest.raises(CoopError):
        verify_round({**chain, "request": {**bare, "id": "urn:uuid:x"}}, TRUST)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("approval", {"study_sha256": "3" * 64}),
        ("approval", {"study_id": "lung"}),
        ("approval", {"version": 2}),
        ("approval", {"epsilon_cap_micro": 999_999}),
        ("approval", {"expires": NOW}),
        ("approval", {"fab_sha256": "3" * 64}),
        ("approval", {"software": "0.2.0"}),
        ("order", {"study_sha256": "3" * 64}),
        ("order", {"study_id": "lung"}),
        ("order", {"rounds": 4}),
        ("order", {"clip_micro": 2_000_000}),
        ("order", {"delta_pico": 2}),
        ("order", {"training_sigma_micro": 8_000_000}),
        ("order", {"evaluation_sigma_micro": 5_000_000}),
        ("order", {"fab_sha256": "3" * 64}),
        ("order", {"quorum": 3}),
        ("order", {"not_before": NOW + 1}),
        ("order", {"not_after": NOW}),
        ("order", {"roster": [{"site": "zurich", "did": HUB.did, "approval_sha256": "3" * 64}]}),
        ("round-request", {"order_sha256": "3" * 64}),
        ("round-request", {"round": 4}),
        ("round-request", {"phase": "evaluate"}),
        ("round-receipt", {"order_sha256": "3" * 64}),
        ("round-receipt", {"request_sha256": "3" * 64}),
        ("round-receipt", {"round": 2}),
        ("round-receipt", {"phase": "evaluate"}),
        ("round-receipt", {"sigma_micro": 14_999_999}),
        ("round-receipt", {"clip_micro": 2_000_000}),
        ("round-record", {"order_sha256": "3" * 64}),
        ("round-record", {"request_sha256": "3" * 64}),
        ("round-record", {"round": 2}),
        ("round-record", {"previous_sha256": "3" * 64}),
        ("round-record", {"accepted": []}),
        ("round-record", {"refused": [{"site": "zurich", "code": "gate.norm"}]}),
        ("round-record", {"refused": [{"site": "basel", "code": "gate.norm"}]}),
    ],
)  # fmt: skip
def test_a_round_whose_documents_do_not_fit_fails(world: World, kind, change):
    with pytest.raises(VerificationError):
        verify_round(Round(world, change={kind: change}).chain(), TRUST)


@pytest.mark.parametrize(
    "kind", ["approval", "order", "round-request", "round-receipt", "round-record"]
)
def test_a_round_with_one_forged_signer_fails(world: World, kind):
    with pytest.raises(VerificationError, match="may sign"):
        verify_round(Round(world, signer={kind: key("forger")}).chain(), TRUST)


@pytest.mark.parametrize("part", ["study", "approvals", "order", "request", "receipts", "record"])
def test_a_round_with_a_part_missing_or_doubled_fails(world: World, part):
    chain = Round(world).chain()
    less = {name: value for name, value in chain.items() if name != part}
    cases = [less, {**chain, part: None}, {**chain, part: 7}, {**chain, "v": 2}, {**chain, "x": 1}]
    if isinstance(chain[part], list):
        cases += [{**chain, part: chain[part][1:]}, {**chain, part: [*chain[part], chain[part][0]]}]
    for case in cases:
        with pytest.raises(CoopError):
            verify_round(case, TRUST)


def test_a_record_logged_before_its_receipts_is_refused(world: World, tmp_path: Path):
    chain = Round(world).chain()
    late = copy.deepcopy(chain)
    documents = [one["document"] for one in chain["receipts"]]
    other = World(logs_only(tmp_path / "other.sqlite"))
    for kind, name in (
        ("study", "study"),
        ("order", "order"),
        ("round-request", "request"),
        ("round-record", "record"),
    ):
        other.record(kind, chain[name]["document"])
        if kind == "study":
            for one in chain["approvals"]:
                other.record("approval", one["document"])
    for document in documents:
        other.record("round-receipt", document)
    for name in ("study", "order", "request", "record"):
        late[name] = other.bundle(document_digest(chain[name]["document"]))
    for name in ("approvals", "receipts"):
        late[name] = [other.bundle(document_digest(one["document"])) for one in chain[name]]
    with pytest.raises(VerificationError, match="before one that it names"):
        verify_round(late, TRUST)
    # Two logs under one key: the roots of one size differ, and that convicts the log.
    mixed = {**chain, "record": late["record"]}
    with pytest.raises(JournalProofError, match="forked"):
        verify_round(mixed, TRUST)
    other.database.close()


# --- the trust file


def test_a_trust_file_reads_back_as_written(tmp_path: Path):
    path = tmp_path / "trust.json"
    TRUST.save(path)
    assert Trust.load(path) == TRUST
    replace(TRUST, k=1).save(path)
    assert Trust.load(path).k == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["trust.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"hub": "did:web:x"},
        {"log": None},
        {"origin": 7},
        {"sites": []},
        {"sites": {"zurich": "x"}},
        {"k": -1},
        {"k": True},
        {"k": "2"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_malformed_trust_file_is_refused(tmp_path: Path, change):
    path = tmp_path / "trust.json"
    path.write_bytes(jcs({**TRUST.to_json(), **change}))
    with pytest.raises(TrustFileError):
        Trust.load(path)


def test_a_missing_or_unreadable_trust_file_says_so(tmp_path: Path):
    with pytest.raises(NoTrustFileError):
        Trust.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(TrustFileError):
        Trust.load(tmp_path / "bad.json")


# --- the command


def saved(folder: Path, value: object) -> str:
    path = folder / "file.json"
    path.write_bytes(jcs(value))
    TRUST.save(folder / "trust.json")
    return str(path)


def run(*arguments: str, trust: Path | None = None):
    options = ["--trust", str(trust / "trust.json")] if trust else []
    return CliRunner().invoke(app, [*arguments, *options])


def test_the_command_prints_every_step(tmp_path: Path, bundle):
    result = run("receipt", saved(tmp_path, bundle), trust=tmp_path)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "receipt: verified"
    shown = run("receipt", saved(tmp_path, bundle), "--json", trust=tmp_path)
    assert json.loads(shown.stdout)["ok"] is True
    assert json.loads(shown.stdout)["index"] == 5


def test_the_command_fails_with_the_code_on_stderr(tmp_path: Path, bundle):
    file = saved(tmp_path, {**bundle, "salt": "0" * 64})
    result = run("receipt", file, trust=tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("journal.bad-proof: ")
    shown = run("receipt", file, "--json", trust=tmp_path)
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["code"] == "journal.bad-proof"


def test_the_command_verifies_every_kind_of_file(tmp_path: Path, world: World, export):
    assert run("log", saved(tmp_path, export), trust=tmp_path).exit_code == 0
    chain = Round(world).chain()
    assert run("round", saved(tmp_path, chain), trust=tmp_path).exit_code == 0
    consents = {**logged_consent(world, consent()), "enrolment": enrolment()}
    assert run("consent", saved(tmp_path, consents), trust=tmp_path).exit_code == 0
    passport = Round(world).passport({"io.json": sha256(b"{}").hex()})
    (tmp_path / "io.json").write_bytes(b"{}")
    assert run("passport", saved(tmp_path, passport), trust=tmp_path).exit_code == 0
    (tmp_path / "io.json").write_bytes(b"[]")
    assert run("passport", saved(tmp_path, passport), trust=tmp_path).exit_code == 1


def test_wrong_usage_is_told_apart_from_failure(tmp_path: Path, bundle):
    assert run("receipt", str(tmp_path / "none.json"), trust=tmp_path).exit_code == 2
    assert run("receipt").exit_code == 2
    assert run("nonsense", saved(tmp_path, bundle), trust=tmp_path).exit_code == 2


def test_without_keys_to_trust_nothing_is_verified(tmp_path: Path, bundle, monkeypatch):
    monkeypatch.delenv("COOP_TRUST_FILE", raising=False)
    file = saved(tmp_path, bundle)
    result = run("receipt", file)
    assert result.exit_code == 1
    assert result.stderr.startswith("trust.missing: ")
    monkeypatch.setenv("COOP_TRUST_FILE", str(tmp_path / "trust.json"))
    assert run("receipt", file).exit_code == 0


@pytest.mark.flow
def test_the_installed_command_exits_as_it_promises(tmp_path: Path, bundle):
    def coop(value: object) -> int:
        program = "from coop.cli import main; main()"
        arguments = ["verify", "receipt", saved(tmp_path, value)]
        trust = ["--trust", str(tmp_path / "trust.json")]
        return subprocess.run(
            [sys.executable, "-c", program, *arguments, *trust], check=False, capture_output=True
        ).returncode

    assert coop(bundle) == 0
    assert coop({**bundle, "salt": "0" * 64}) == 1
    assert coop([]) == 1


@given(st.integers(50_000, 3_000_000), st.integers(1000, 10_000_000), st.integers(1, 1000))
def test_the_noise_a_hospital_plans_is_the_noise_that_verifies(epsilon, delta, rounds):
    budget = Budget(
        epsilon_micro=epsilon,
        delta_pico=delta,
        training_percent=80,
        evaluation_percent=20,
        reserve_percent=0,
        cohort_rho_nano=0,
    )
    planned = plan(budget, Schedule(rounds))
    sigmas = planned.training_sigma_micro, planned.evaluation_sigma_micro
    assert keeps_budget(budget, rounds, *sigmas)
    assert not keeps_budget(budget, rounds, *(sigma * 9 // 10 for sigma in sigmas))
