"""The stored log, on both databases: complete, in order, provable, and whole after any crash."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from budget import budget
from small_world import DIDS, LOG, NOW, SITES, TRUST, World, consent_receipt, key

from coop.canonical import from_b64u
from coop.db import Database
from coop.errors import CoopError, InvalidInputError, InvariantError, NotFoundError
from coop.journal import note
from coop.journal.audit import audit
from coop.journal.commitments import commitment, kind_of_leaf, leaf_of
from coop.journal.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from coop.journal.note import NoteError
from coop.journal.receipts import check_bundle
from coop.journal.store import (
    BATCH_MAX,
    Journal,
    LoggedOtherwiseError,
    NotLoggedError,
    log_checkpoint,
    log_entry,
    signed_document,
)
from coop.journal.tiles import parse_path

KIND = "consent-receipt"


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def test_a_recorded_document_is_in_the_log_and_provable(world: World):
    digests = [world.record(KIND, consent_receipt(number)) for number in range(7)]
    with world.database.reading() as connection:
        journal = world.journal
        checkpoint = note.open_checkpoint(
            journal.checkpoint(connection), origin=TRUST.origin, log_did=LOG.did
        )
        assert checkpoint.size == journal.size(connection) == 7
        for number, digest in enumerate(digests):
            assert journal.document(connection, digest) == consent_receipt(number)
            logged = journal.logged(connection, digest)
            assert logged.index == number
            committed = commitment(bytes.fromhex(logged.salt), consent_receipt(number))
            leaf = leaf_of(KIND, committed)
            assert journal.entries(connection, number, 1) == [leaf]
            proof = journal.inclusion(connection, number, 7)
            verify_inclusion(leaf_hash(leaf), number, 7, proof, checkpoint.root)
        assert journal.documents_of_kind(connection, KIND) == [
            consent_receipt(number) for number in range(7)
        ]
        assert journal.documents_of_kind(connection, "order") == []
        assert audit(connection, journal).kinds == {KIND: 7}


def test_a_batch_is_consecutive_and_has_one_checkpoint(world: World):
    world.record(KIND, consent_receipt(0))
    with world.database.unit_of_work() as connection:
        batch = [consent_receipt(number) for number in range(1, 40)]
        logged = world.journal.record_many(connection, KIND, batch)
    assert [one.index for one in logged] == list(range(1, 40))
    with world.database.reading() as connection:
        sizes = connection.execute(sa.select(log_checkpoint.c.size)).scalars().all()
        assert sorted(sizes) == [1, 40]
        assert audit(connection, world.journal).documents == 40


def test_an_empty_batch_changes_nothing(world: World):
    with world.database.unit_of_work() as connection:
        assert world.journal.record_many(connection, KIND, []) == []
        assert world.journal.size(connection) == 0


def test_a_batch_has_a_limit(world: World):
    with (
        world.database.unit_of_work() as connection,
        pytest.raises(InvalidInputError, match="batch"),
    ):
        world.journal.record_many(connection, KIND, [{}] * (BATCH_MAX + 1))


def test_the_same_document_again_keeps_its_place(world: World):
    world.record(KIND, consent_receipt(0))
    with world.database.unit_of_work() as connection:
        again = world.journal.record(connection, KIND, consent_receipt(0))
        twice = world.journal.record_many(
            connection, KIND, [consent_receipt(1), consent_receipt(0), consent_receipt(1)]
        )
        assert again.index == 0
        assert [one.index for one in twice] == [1, 0, 1]
        assert twice[0] == twice[2]
        assert world.journal.size(connection) == 2
        with pytest.raises(LoggedOtherwiseError):
            world.journal.record(connection, "order", consent_receipt(0))


def test_an_empty_log_has_a_signed_empty_checkpoint(world: World):
    with world.database.reading() as connection:
        for text in (
            world.journal.checkpoint(connection),
            world.journal.checkpoint(connection, cosigners=2, sites=DIDS),
        ):
            seen = note.open_checkpoint(text, origin=TRUST.origin, log_did=LOG.did)
            assert (seen.size, seen.root) == (0, EMPTY_ROOT)
        assert world.journal.entries(connection, 0) == []
        assert audit(connection, world.journal).entries == 0


def test_unknown_documents_are_not_found(world: World):
    with world.database.reading() as connection:
        for ask in (world.journal.document, world.journal.logged):
            with pytest.raises(NotLoggedError):
                ask(connection, "0" * 64)


def test_a_leaf_names_nothing_but_kind_and_commitment(world: World):
    world.record(KIND, consent_receipt(0))
    with world.database.reading() as connection:
        leaf = world.journal.entries(connection, 0)[0]
    assert set(leaf.decode()) <= set('{}":,0123456789abcdefghijklmnopqrstuvwxyz-')
    assert kind_of_leaf(leaf) == KIND
    for bad in (b"{}", leaf + b" ", leaf.replace(b'"v":1', b'"v":2'), b'{"c":"","t":"x","v":1}'):
        with pytest.raises(InvalidInputError):
            kind_of_leaf(bad)


def test_equal_documents_in_two_logs_have_unlinkable_leaves(tmp_path: Path):
    leaves = set()
    for name in ("a", "b"):
        database = Database(f"sqlite:///{tmp_path / name}")
        database.upgrade()
        world = World(database)
        world.record(KIND, consent_receipt(0))
        with database.reading() as connection:
            leaves.add(world.journal.entries(connection, 0)[0])
        database.close()
    assert len(leaves) == 2


def test_an_erased_document_is_gone_and_the_tree_stands(world: World):
    digest = world.record(KIND, consent_receipt(0))
    world.record(KIND, consent_receipt(1))
    with world.database.unit_of_work() as connection:
        before = world.journal.root(connection, 2)
        assert world.journal.erase(connection, {digest}) == 1
    with world.database.reading() as connection:
        with pytest.raises(NotLoggedError):
            world.journal.document(connection, digest)
        row = connection.execute(
            sa.select(signed_document).where(signed_document.c.log_index == 0)
        ).one()
        assert tuple(row) == ("erased-0", KIND, None, None, 0, 0)
        assert world.journal.root(connection, 2) == before
        found = audit(connection, world.journal)
        assert (found.entries, found.documents, found.erased) == (2, 1, 1)
        assert len(world.journal.documents_of_kind(connection, KIND)) == 1
    with world.database.unit_of_work() as connection:
        assert world.journal.erase(connection, {digest, "0" * 64}) == 0


def test_a_document_that_is_only_missing_was_not_erased(world: World):
    world.record(KIND, consent_receipt(0))
    with world.database.unit_of_work() as connection:
        connection.execute(signed_document.update().values(body=None))
        with pytest.raises(InvariantError, match="half erased"):
            audit(connection, world.journal)
        connection.execute(signed_document.delete())
        with pytest.raises(InvariantError, match="neither"):
            audit(connection, world.journal)


def test_the_log_grows_provably(world: World):
    roots = {}
    for number in range(9):
        world.record(KIND, consent_receipt(number))
        with world.database.reading() as connection:
            roots[number + 1] = world.journal.root(connection, number + 1)
    with world.database.reading() as connection:
        for old in range(1, 10):
            proof = world.journal.consistency(connection, old, 9)
            verify_consistency(old, 9, proof, roots[old], roots[9])


def test_another_process_sees_the_same_log(world: World):
    world.record(KIND, consent_receipt(0))
    other = Journal(world.database, LOG, TRUST.origin, world.clock)
    with world.database.unit_of_work() as connection:
        other.record(connection, KIND, consent_receipt(1))
    world.record(KIND, consent_receipt(2))
    with world.database.reading() as connection:
        assert world.journal.root(connection, 3) == other.root(connection, 3)
        audit(connection, other)


def test_cosignatures_are_kept_and_counted(world: World):
    world.record(KIND, consent_receipt(0))
    world.witness("zurich")
    world.record(KIND, consent_receipt(1))
    world.witness("zurich", "budapest")
    world.record(KIND, consent_receipt(2))
    world.witness("zurich")

    def size(cosigners: int, sites: dict[str, str]) -> int:
        with world.database.reading() as connection:
            text = world.journal.checkpoint(connection, cosigners=cosigners, sites=sites)
        seen = note.open_checkpoint(text, origin=TRUST.origin, log_did=LOG.did)
        assert len(note.cosigners(text, sites)) >= (cosigners if seen.size else 0)
        return seen.size

    assert [size(k, DIDS) for k in (0, 1, 2, 3)] == [3, 3, 2, 0]
    assert size(1, {"budapest": DIDS["budapest"]}) == 2
    assert size(1, {"cleveland": DIDS["cleveland"]}) == 0
    assert size(1, {}) == 0
    with world.database.reading() as connection:
        assert audit(connection, world.journal).cosignatures == 4


def test_a_cosignature_of_anything_else_is_refused(world: World):
    world.record(KIND, consent_receipt(0))
    with world.database.reading() as connection:
        mine = world.journal.checkpoint(connection)
    forked = note.sign_checkpoint(TRUST.origin, 1, bytes(32), LOG)
    future = note.sign_checkpoint(TRUST.origin, 9, bytes(32), LOG)
    foreign = note.sign_checkpoint(TRUST.origin, 1, bytes(32), key("forger"))
    zurich = SITES["zurich"]
    cases = [
        note.cosign(forked, name="zurich", key=zurich, now=NOW),
        note.cosign(future, name="zurich", key=zurich, now=NOW),
        note.cosign(foreign, name="zurich", key=zurich, now=NOW),
        note.cosign(mine, name="budapest", key=zurich, now=NOW),
        note.cosign(mine, name="zurich", key=SITES["budapest"], now=NOW),
        mine,
    ]
    for text in cases:
        with world.database.unit_of_work() as connection, pytest.raises(NoteError):
            world.journal.add_cosignature(connection, "zurich", DIDS["zurich"], text)


def test_the_same_cosignature_twice_counts_once(world: World):
    world.record(KIND, consent_receipt(0))
    world.witness("zurich", "zurich")
    with world.database.reading() as connection:
        text = world.journal.checkpoint(connection, cosigners=1, sites=DIDS)
    assert len(note.signature_lines(text)) == 2


def test_a_receipt_takes_the_best_witnessed_checkpoint_that_covers_it(world: World):
    first = world.record(KIND, consent_receipt(0))
    world.witness("zurich", "budapest")
    second = world.record(KIND, consent_receipt(1))
    world.witness("zurich")
    third = world.record(KIND, consent_receipt(2))
    found = [check_bundle(world.bundle(digest), TRUST) for digest in (first, second, third)]
    assert [(one.index, one.size, sorted(one.cosigners)) for one in found] == [
        (0, 1, ["budapest", "zurich"]),
        (1, 2, ["zurich"]),
        (2, 3, []),
    ]


def test_a_member_who_left_is_not_in_new_receipts(world: World):
    digest = world.record(KIND, consent_receipt(0))
    world.witness("zurich", "budapest")
    with world.database.reading() as connection:
        bundle = world.journal.receipt(connection, digest, sites={"zurich": DIDS["zurich"]})
    assert check_bundle(bundle, TRUST).cosigners == {"zurich"}


def test_the_export_is_the_whole_log(world: World):
    for number in range(5):
        world.record(KIND, consent_receipt(number))
    with world.database.reading() as connection:
        export = world.journal.export(connection)
    leaves = [from_b64u(leaf) for leaf in export["entries"]]  # type: ignore[attr-defined]
    seen = note.open_checkpoint(str(export["checkpoint"]), origin=TRUST.origin, log_did=LOG.did)
    assert (len(leaves), root_of(map(leaf_hash, leaves))) == (seen.size, seen.root)


def test_tiles_hold_the_hashes_and_the_entries(world: World):
    with world.database.unit_of_work() as connection:
        world.journal.record_many(connection, KIND, [consent_receipt(n) for n in range(300)])
    with world.database.reading() as connection:
        leaves = world.journal.entries(connection, 0)
        hashes = [leaf_hash(leaf) for leaf in leaves]

        def tile(path: str) -> bytes:
            return world.journal.tile(connection, parse_path(path))

        assert tile("0/000") == b"".join(hashes[:256])
        assert tile("0/001.p/44") == b"".join(hashes[256:])
        assert tile("1/000.p/1") == root_of(hashes[:256])
        assert tile("entries/000.p/2") == b"".join(
            len(leaf).to_bytes(2) + leaf for leaf in leaves[:2]
        )
        for beyond in ("0/001", "0/001.p/45", "entries/001", "1/000"):
            with pytest.raises(CoopError):
                tile(beyond)


def test_a_unit_of_work_that_fails_leaves_no_trace(world: World):
    world.record(KIND, consent_receipt(0))
    with pytest.raises(ZeroDivisionError), world.database.unit_of_work() as connection:  # noqa: PT012
        logged = world.journal.record(connection, KIND, consent_receipt(1))
        # Reading its own uncommitted entry fills the cache with a leaf that will never be.
        assert world.journal.inclusion(connection, logged.index, 2)
        _ = 1 // 0
    assert world.record(KIND, consent_receipt(2))
    with world.database.reading() as connection:
        assert world.journal.size(connection) == 2
        with pytest.raises(NotFoundError):
            world.journal.document(connection, logged.digest)
        proof = world.journal.inclusion(connection, 1, 2)
        leaf = leaf_hash(world.journal.entries(connection, 1)[0])
        verify_inclusion(leaf, 1, 2, proof, world.journal.root(connection, 2))
        audit(connection, world.journal)


def test_an_older_reader_still_proves_from_its_own_view(world: World):
    world.record(KIND, consent_receipt(0))
    world.record(KIND, consent_receipt(1))
    with world.database.reading() as connection:
        old = world.journal.root(connection, 1)
        assert world.journal.size(connection) == 2
    for number in range(2, 6):
        world.record(KIND, consent_receipt(number))
    with world.database.reading() as connection:
        assert world.journal.root(connection, 1) == old


def test_writers_at_once_lose_nothing_and_share_no_index(world: World):
    writers, each = 4, budget(8, 100)
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        # Half share one journal like threads, half have their own like other processes of the hub.
        own = Journal(world.database, LOG, TRUST.origin, world.clock)
        journal = own if writer % 2 else world.journal
        try:
            for number in range(each):
                with world.database.unit_of_work() as connection:
                    journal.record(connection, KIND, consent_receipt(writer * 1000 + number))
                with world.database.reading() as connection:
                    journal.inclusion(connection, 0, journal.size(connection))
        except BaseException as error:  # noqa: BLE001  (the main thread reports it)
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with world.database.reading() as connection:
        found = audit(connection, world.journal)
        assert found.entries == found.documents == found.checkpoints == writers * each


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from small_world import World, consent_receipt
from coop.db import Database
world = World(Database(sys.argv[1]))
number = int(sys.argv[3])
while True:
    digest = world.record("consent-receipt", consent_receipt(number))
    print(digest, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(world: World):
    start = 0
    for _ in range(budget(2, 10)):
        known = _killed_after(world.database.url, start, budget(10, 40))
        with world.database.reading() as connection:
            for digest in known:
                assert world.journal.document(connection, digest)
            found = audit(connection, world.journal)
        assert found.entries in (start + len(known), start + len(known) + 1)
        start = found.entries


def _killed_after(url: str, start: int, count: int) -> list[str]:
    """Let another process record until it acknowledged `count`, then kill it at any instruction."""
    folder = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url, folder, str(start)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        known = [process.stdout.readline().strip() for _ in range(count)]
        os.kill(process.pid, signal.SIGKILL)
        known += [line.strip() for line in process.stdout if line.endswith("\n")]
    return known


def test_a_crash_between_record_and_commit_leaves_the_log_as_it_was(world: World):
    world.record(KIND, consent_receipt(0))
    crash = WRITER.replace("while True:", "with world.database.unit_of_work() as connection:")
    crash = crash.replace(
        'world.record("consent-receipt", consent_receipt(number))',
        'world.journal.record(connection, "consent-receipt", consent_receipt(number))',
    ).replace("number += 1", "os._exit(9)")
    folder = str(Path(__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-c", crash, world.database.url, folder, "5"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 9, ended.stderr
    assert ended.stdout
    world.record(KIND, consent_receipt(1))
    with world.database.reading() as connection:
        assert audit(connection, world.journal).entries == 2


@pytest.mark.parametrize(
    "statement",
    [
        log_entry.update().where(log_entry.c.log_index == 1).values(leaf=b"x"),
        log_entry.update().where(log_entry.c.log_index == 1).values(leaf_hash=bytes(32)),
        log_entry.delete().where(log_entry.c.log_index == 1),
        log_entry.delete().where(log_entry.c.log_index == 2),
        signed_document.update().where(signed_document.c.log_index == 1).values(salt="0" * 64),
        signed_document.update().where(signed_document.c.log_index == 1).values(kind="order"),
        log_checkpoint.update().where(log_checkpoint.c.size == 2).values(root=bytes(32)),
        log_checkpoint.delete().where(log_checkpoint.c.size == 3),
    ],
    ids=range(8),
)
def test_an_edit_of_the_tables_does_not_pass_the_audit(world: World, statement: sa.Update):
    for number in range(3):
        world.record(KIND, consent_receipt(number))
    with world.database.unit_of_work() as connection:
        connection.execute(statement)
    with world.database.reading() as connection, pytest.raises(InvariantError):
        audit(connection, world.journal)


def test_an_edited_log_proves_nothing(world: World):
    for number in range(3):
        world.record(KIND, consent_receipt(number))
    with world.database.unit_of_work() as connection:
        edit = log_entry.update().where(log_entry.c.log_index == 1)
        connection.execute(edit.values(leaf_hash=bytes(32)))
    with world.database.reading() as connection, pytest.raises(InvariantError, match="backup"):
        Journal(world.database, LOG, TRUST.origin, world.clock).inclusion(connection, 0, 3)


def test_an_origin_that_no_note_can_hold_is_refused_at_once(database: Database):
    with pytest.raises(NoteError):
        Journal(database, LOG, "two words", lambda: NOW)
