"""Whatever a stranger is given: with any byte changed, it does not verify."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from budget import budget
from small_world import PATIENT, TRUST, World, consent, consent_receipt, enrolment
from test_verify import logs_only
from typer.testing import CliRunner

from coop.canonical import document_digest, jcs
from coop.cli.verify import app
from coop.documents.consent import Consent
from coop.errors import CoopError
from coop.journal import note
from coop.journal.merkle import JournalProofError
from coop.journal.receipts import checked_cosigners, foreign_form
from coop.verify import (
    RewrittenFileError,
    checkpoint_in,
    open_as,
    read_file,
    verify_consent,
    verify_entry,
    verify_growth,
    verify_log,
    verify_receipt,
)

SIZE = 10**6
Check = Callable[[bytes], object]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database = logs_only(tmp_path / "log.sqlite")
    yield World(database)
    database.close()


@pytest.fixture
def files(world: World) -> dict[str, tuple[bytes, Check]]:
    """What a patient keeps and what anybody may fetch, each with who verifies it."""
    enrolled = world.record("enrolment", enrolment())
    event = consent()
    said = world.record("consent", event)
    with world.database.reading() as connection:
        place = world.journal.logged(connection, said)
    receipt = consent_receipt(1, consent_sha256=said, index=place.index, salt=place.salt)
    acknowledged = world.record("consent-receipt", receipt)
    world.witness("zurich", "budapest")
    kept = {
        **world.bundle(said),
        "enrolment": world.bundle(enrolled),
        "receipt": world.bundle(acknowledged),
    }
    with world.database.reading() as connection:
        checkpoint = world.journal.checkpoint(connection)
    leaf, proof = foreign_form(world.bundle(acknowledged))

    def noted(data: bytes) -> None:
        text = checkpoint_in(data, SIZE)
        note.open_checkpoint(text, origin=TRUST.origin, log_did=TRUST.log)
        checked_cosigners(text, TRUST)

    return {
        "envelope": (
            jcs(event),
            lambda data: open_as(Consent, read_file(data, SIZE), TRUST, also={PATIENT.did}),
        ),
        "consent file": (
            jcs(kept) + b"\n",
            lambda data: verify_consent(read_file(data, SIZE), TRUST),
        ),
        "receipt": (
            jcs(world.bundle(acknowledged)) + b"\n",
            lambda data: verify_receipt(read_file(data, SIZE), TRUST),
        ),
        "checkpoint": (checkpoint.encode(), noted),
        "tlog-proof": (proof, lambda data: verify_entry(data, leaf, TRUST)),
        "leaf": (leaf, lambda data: verify_entry(proof, data, TRUST)),
    }


NAMES = ("envelope", "consent file", "receipt", "checkpoint", "tlog-proof", "leaf")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(900)
def test_no_bit_of_any_byte_can_be_changed(files: dict[str, tuple[bytes, Check]], name: str):
    data, check = files[name]
    check(data)
    passed = []
    for position in range(0, len(data), budget(1 + len(data) // 150, 1)):
        for bit in range(position % 8, budget(position % 8 + 1, position % 8 + 8)):
            changed = bytearray(data)
            changed[position] ^= 1 << bit % 8
            try:
                check(bytes(changed))
            except CoopError:
                continue
            passed.append((position, bit % 8))
    assert passed == []


@pytest.mark.parametrize("name", NAMES)
def test_no_byte_can_be_added_or_taken_away(files: dict[str, tuple[bytes, Check]], name: str):
    data, check = files[name]
    check(data)
    last = len(data) - (1 if name in {"consent file", "receipt"} else 0)
    for position in range(0, last, budget(1 + len(data) // 40, 1)):
        for changed in (
            data[:position] + data[position + 1 :],
            *(data[:position] + extra + data[position:] for extra in (b" ", b"\n", b"0")),
        ):
            with pytest.raises(CoopError):
                check(changed)


def test_a_file_may_be_written_for_people_and_then_has_one_form_too(
    files: dict[str, tuple[bytes, Check]],
):
    data, _ = files["receipt"]
    value = read_file(data, SIZE)
    for indent, escaped in ((None, True), (1, False), (2, True), (2, False)):
        compact = (",", ":") if indent is None else None
        text = json.dumps(  # noqa: TID251  (as other programs write it)
            value, indent=indent, ensure_ascii=escaped, separators=compact
        ).encode()
        assert read_file(text, SIZE) == read_file(text + b"\n", SIZE) == value
        for changed in (text + b" ", text + b"\n\n", text.replace(b":", b" :", 1), b" " + text):
            with pytest.raises(RewrittenFileError):
                read_file(changed, SIZE)


# -- the log's own past ----------------------------------------------------------------------------


def grown(world: World) -> tuple[dict[str, object], str]:
    """A log of nine, and its checkpoint at four."""
    for number in range(4):
        world.record("consent-receipt", consent_receipt(number))
    world.witness("zurich")
    with world.database.reading() as connection:
        older = world.journal.checkpoint(connection)
    for number in range(4, 9):
        world.record("consent-receipt", consent_receipt(number))
    world.witness("zurich", "budapest")
    with world.database.reading() as connection:
        return world.journal.export(connection), older


def test_a_log_that_only_grew_extends_every_older_checkpoint(world: World):
    export, older = grown(world)
    report = verify_growth(export, older, TRUST)
    assert report.facts["extends"] == 4
    assert report.steps[-1] == "the log of 9 extends the log of 4, entry by entry"
    newest = str(export["checkpoint"])
    assert verify_growth(export, newest, TRUST).facts["extends"] == 9


def test_a_log_rewritten_and_signed_anew_is_convicted_by_its_older_checkpoint(
    world: World, tmp_path: Path
):
    _, older = grown(world)
    database = logs_only(tmp_path / "other.sqlite")
    other = World(database)  # the hub has its keys and rewrites the whole log
    for number in (0, 1, 3, 2, *range(4, 9)):
        other.record("consent-receipt", consent_receipt(number))
    other.witness("zurich", "budapest")
    with database.reading() as connection:
        forged = other.journal.export(connection)
    database.close()
    verify_log(forged, TRUST)
    with pytest.raises(JournalProofError, match="together they convict it"):
        verify_growth(forged, older, TRUST)


def test_a_log_that_shrank_is_refused(world: World, tmp_path: Path):
    export, _ = grown(world)
    database = logs_only(tmp_path / "other.sqlite")
    shorter = World(database)
    shorter.record("consent-receipt", consent_receipt(0))
    with database.reading() as connection:
        rolled_back = shorter.journal.export(connection)
    database.close()
    with pytest.raises(JournalProofError, match="had 9 entries and now has 1"):
        verify_growth(rolled_back, str(export["checkpoint"]), TRUST)


def test_the_command_takes_the_past_in_every_form_a_person_may_have_it(
    world: World, tmp_path: Path
):
    export, older = grown(world)
    with world.database.reading() as connection:
        first = world.journal.proof(connection, 2, sites=TRUST.sites)
    trust, log = tmp_path / "trust.json", tmp_path / "log.json"
    TRUST.save(trust)
    log.write_bytes(jcs(export))
    forms = {
        "note": older.encode(),
        "receipt.tlog-proof": first.encode(),
        "receipt.json": jcs(world.bundle(document_digest(consent_receipt(3)))),
        "log.json": jcs(export),
    }
    for name, data in forms.items():
        past = tmp_path / f"older-{name}"
        past.write_bytes(data)
        words = ["log", str(log), "--from", str(past), "--trust", str(trust), "--json"]
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0, answer.output
        assert '"extends"' in answer.stdout
        # One letter of the checkpoint's own text: its size, root or signature.
        at = data.index(b"hub.test/log") + 16
        past.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert CliRunner().invoke(app, words).exit_code == 1
    (tmp_path / "nothing.json").write_bytes(b'{"v":1}')
    words = ["log", str(log), "--from", str(tmp_path / "nothing.json"), "--trust", str(trust)]
    assert CliRunner().invoke(app, words).exit_code == 1


def test_a_receipt_starts_at_its_commit_and_is_completed_by_its_index(world: World, tmp_path: Path):
    digest = world.record("consent-receipt", consent_receipt(0))
    bundle = world.bundle(digest)
    assert verify_receipt(bundle, TRUST).waiting  # 0 of 2
    trust, file = tmp_path / "trust.json", tmp_path / "receipt.json"
    TRUST.save(trust)
    file.write_bytes(jcs(bundle))
    out = tmp_path / "receipt.tlog-proof"
    words = ["receipt", str(file), "--tlog-proof", str(out), "--trust", str(trust)]
    assert CliRunner().invoke(app, words).exit_code == 0
    check = ["receipt", str(out), "--trust", str(trust), "--json"]
    assert '"witnessed":false' in CliRunner().invoke(app, check).stdout
    world.record("consent-receipt", consent_receipt(1))
    world.witness("zurich", "budapest")
    with world.database.reading() as connection:
        out.write_text(world.journal.proof(connection, 0, sites=TRUST.sites))
    assert '"witnessed":true' in CliRunner().invoke(app, check).stdout
