"""N of M patients consented: nobody can make it say another number, and it says nothing of one."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha512
from pathlib import Path

import pytest
import rbcl
from budget import budget
from consent_hub import ConsentHub, Hospital, Person, clock, grant
from hypothesis import given
from hypothesis import strategies as st

from consent.proofs import bits, ristretto
from consent.proofs.bits import ROW_BYTES, BitProofError
from consent.proofs.counting import FEWEST, Counting, NoTallyError, TooFewToTellError
from consent.proofs.ristretto import ORDER, G, GroupError, H, Point
from consent.proofs.tally import About, Answer, Counted, check, count, place_of
from coop import studies
from coop.canonical import b64u, from_b64u, jcs, sha256
from coop.db import Database
from coop.documents.envelope import issue
from coop.documents.study import Study
from coop.documents.tally import Tally
from coop.errors import CoopError, NotFoundError
from coop.journal import note
from coop.keys import SigningKey, random_bytes
from coop.studyfile import load_study
from coop.verify import VerificationError, verify_receipt, verify_tally

ABOUT = About(
    log="did:key:z6Mk",
    origin="hub.test/log",
    log_size=7,
    root="0" * 64,
    site="basel",
    study_sha256="1" * 64,
    action="train-federated",
    at=1_790_000_000,
)
PEOPLE = 60


def said(permits: list[bool]) -> list[Answer]:
    return [Answer(b"what patient %d signed" % n, one) for n, one in enumerate(permits)]


def refused(about: About, rows: bytes, consented: int, blinding: bytes, patients: int = 0) -> str:
    """The code with which these rows are refused; empty if they pass."""
    try:
        check(
            about,
            rows,
            patients=patients or len(rows) // ROW_BYTES,
            consented=consented,
            blinding=blinding,
        )
    except CoopError as error:
        return error.code
    return ""


def replaced(made: Counted, index: int, row: bytes) -> bytes:
    return made.rows[: index * ROW_BYTES] + row + made.rows[(index + 1) * ROW_BYTES :]


def row_of(made: Counted, index: int) -> bytes:
    return made.rows[index * ROW_BYTES : (index + 1) * ROW_BYTES]


# -- the arithmetic


@given(st.lists(st.booleans(), min_size=1, max_size=budget(12, 200)))
def test_the_true_number_passes_and_no_other_does(permits):
    made = count(ABOUT, said(permits), random_bytes)
    assert made.consented == sum(permits)
    assert len(made.rows) == 160 * len(permits)
    assert refused(ABOUT, made.rows, made.consented, made.blinding) == ""
    for wrong in {made.consented - 1, made.consented + 1, 0, len(permits)} - {made.consented}:
        assert refused(ABOUT, made.rows, wrong, made.blinding) == "proofs.tally"


@pytest.mark.parametrize("permits", [[False] * 5, [True] * 5, [True, False] * 3], ids=str)
def test_nobody_everybody_and_some(permits):
    made = count(ABOUT, said(permits), random_bytes)
    assert refused(ABOUT, made.rows, sum(permits), made.blinding) == ""
    assert refused(ABOUT, made.rows, 5 - sum(permits), made.blinding) == "proofs.tally"


@pytest.mark.parametrize(
    "change",
    [
        {"site": "zurich"},
        {"log_size": 8},
        {"root": "2" * 64},
        {"study_sha256": "3" * 64},
        {"origin": "other.test/log"},
        {"log": "did:key:z6Mx"},
        {"action": "evaluate"},
        {"at": 1_790_000_001},
    ],
    ids=str,
)
def test_a_tally_replayed_as_another_is_refused(change):
    made = count(ABOUT, said([True, False, True]), random_bytes)
    assert refused(replace(ABOUT, **change), made.rows, 2, made.blinding) == "proofs.bit"


def test_a_row_proves_its_own_place_only_and_stands_once():
    made = count(ABOUT, said([True] * 4), random_bytes)
    rows = [row_of(made, index) for index in range(4)]
    swapped = b"".join([rows[1], rows[0], *rows[2:]])
    assert refused(ABOUT, swapped, 4, made.blinding) == "proofs.tally"
    twice = b"".join([rows[0], rows[0], *rows[2:]])
    assert refused(ABOUT, twice, 4, made.blinding) == "proofs.tally"
    shifted = b"".join(rows[1:])  # ascends, and every row is a place too early
    assert refused(ABOUT, shifted, 3, made.blinding) == "proofs.bit"
    assert refused(ABOUT, made.rows, 4, made.blinding, patients=5) == "proofs.tally"
    assert refused(ABOUT, made.rows[:-1], 4, made.blinding, patients=4) == "proofs.tally"
    assert refused(ABOUT, b"", 0, made.blinding, patients=0) == "proofs.tally"


def test_the_same_patient_twice_cannot_be_counted_twice():
    once = said([True])[0]
    made = count(ABOUT, [once, once], random_bytes)
    assert refused(ABOUT, made.rows, 2, made.blinding) == "proofs.tally"


# -- what the group's library lets pass


def lone() -> tuple[bytes, bytes]:
    """The one row of a tally of one, and its blinding."""
    made = count(ABOUT, said([True]), random_bytes)
    return made.rows, made.blinding


def raised(scalar: bytes) -> bytes:
    """The same scalar, written a second way."""
    return (int.from_bytes(scalar, "little") + ORDER).to_bytes(32, "little")


def more(committed: bytes, times: int) -> bytes:
    for _ in range(times):
        committed = ristretto.add(ristretto.point(committed), G)
    return committed


@pytest.mark.parametrize("added", [1, 2])
def test_a_commitment_to_more_than_one_is_refused(added):
    row, blinding = lone()
    changed = more(row[:32], added) + row[32:]
    assert refused(ABOUT, changed, 1, blinding) == "proofs.bit"
    assert refused(ABOUT, changed, 1 + added, blinding) != ""


def test_two_is_no_bit_whatever_is_proved_about_it():
    """A proof made for a commitment to two in the honest way fails in either branch."""
    blinding = ristretto.reduced(random_bytes(64))
    two = ristretto.add(bits.commitment(1, blinding), G)
    for bit in (0, 1):
        row = bits.prove(b"", 0, bit, blinding, random_bytes)
        with pytest.raises(BitProofError):
            bits.check(b"", 0, two + row[32:])


@pytest.mark.parametrize("place", range(4))
def test_a_scalar_has_one_form(place):
    row, blinding = lone()
    start = 32 * (place + 1)
    scalar = row[start : start + 32]
    changed = row[:start] + raised(scalar) + row[start + 32 :]
    assert refused(ABOUT, changed, 1, blinding) == "proofs.bit"
    high = row[:start] + scalar[:31] + bytes([scalar[31] | 0x80]) + row[start + 32 :]
    assert refused(ABOUT, high, 1, blinding) == "proofs.bit"
    assert refused(ABOUT, row, 1, raised(blinding)) == "proofs.tally"


@pytest.mark.parametrize(
    "point",
    [b"\xff" * 32, bytes(32), G, (1).to_bytes(32, "little")],
    ids=["no point", "identity", "G", "negative"],
)
def test_a_commitment_that_is_no_point_or_hides_nothing_is_refused(point):
    row, blinding = lone()
    assert refused(ABOUT, point + row[32:], 1, blinding) == "proofs.bit"


def test_a_commitment_of_g_itself_is_refused_even_with_a_proof_that_would_hold():
    """With the blinding 0 one branch is the identity, which the library answers with an error."""
    nonce, c_other, z_other = (ristretto.reduced(random_bytes(64)) for _ in range(3))
    a1 = ristretto.multiple(nonce, H)
    a0 = ristretto.subtract(ristretto.multiple(z_other, H), ristretto.multiple(c_other, G))
    whole = bits._challenge(b"", 0, G, a0, a1)
    c1 = ristretto.minus(whole, c_other)
    with pytest.raises(BitProofError):
        bits.check(b"", 0, G + c_other + c1 + z_other + nonce)


def test_the_traps_of_the_library_are_still_there():
    """Were they gone, the checks would be idle: this says which ones they are for."""
    nonsense = b"\xff" * 32
    assert rbcl.crypto_core_ristretto255_add(nonsense, G) == bytes(32)
    with pytest.raises(RuntimeError):
        rbcl.crypto_scalarmult_ristretto255(bytes(32), G)
    seven = ristretto.scalar_of(7)
    assert rbcl.crypto_scalarmult_ristretto255(raised(seven), G) == ristretto.multiple(seven, G)
    for call in (
        lambda: ristretto.point(nonsense),
        lambda: ristretto.point(G[:31]),
        lambda: ristretto.point(G + b"\x00"),
        lambda: ristretto.scalar(raised(seven)),
        lambda: ristretto.scalar(seven[:31]),
        lambda: ristretto.reduced(seven),
        lambda: ristretto.multiple(ristretto.scalar_of(0), G),
        lambda: ristretto.subtract(G, G),
        lambda: ristretto.add(G, ristretto.multiple(ristretto.scalar_of(-1), G)),
    ):
        with pytest.raises(GroupError):
            call()


def test_the_second_generator_is_hashed_from_its_name():
    assert rbcl.crypto_core_ristretto255_from_hash(sha512(b"coop/tally/H/v1").digest()) == H
    assert Point(H) != G


@pytest.mark.parametrize("bit", [0, 1])
def test_every_byte_of_a_row_counts(bit):
    row = bits.prove(b"here", 3, bit, ristretto.reduced(random_bytes(64)), random_bytes)
    assert bits.check(b"here", 3, row) == row[:32]
    for position in range(0, ROW_BYTES, budget(7, 1)):
        changed = bytearray(row)
        changed[position] ^= 1 << position % 8
        with pytest.raises(BitProofError):
            bits.check(b"here", 3, bytes(changed))
    for context, index in ((b"there", 3), (b"here", 4)):
        with pytest.raises(BitProofError):
            bits.check(context, index, row)


def test_rows_tell_nothing_of_an_answer_or_a_place():
    """Whoever is asked twice cannot be found again, and yes and no look alike."""
    permits = [True, False] * 20
    first = count(ABOUT, said(permits), random_bytes)
    other = replace(ABOUT, log_size=8)
    second = count(other, said(permits), random_bytes)
    both = [{row_of(made, n)[:32] for n in range(40)} for made in (first, second)]
    assert not both[0] & both[1]
    places = [place_of(ABOUT, first.rows, one.body) for one in said(permits)]
    assert [place.counted for place in places if place] == permits
    assert [place.row for place in places if place] != sorted(p.row for p in places if p)


# -- the registry's own


class World:
    """A hub with a study, a hospital whose patients decided, and the maker of tallies."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.hub = ConsentHub(database)
        self.hospital = Hospital(self.hub, folder, "basel")
        self.hospital.site.pin(self.hub.trust.to_json(), "http://127.0.0.1:1", None)
        self.people = self.hospital.enrol(PEOPLE + FEWEST)
        grant(self.hub, self.people[:PEOPLE])
        grant(self.hub, self.people[PEOPLE:], "refuse")
        self.hub.registry.restrict(self.people[0].pid, "revoke", "session")
        given = {**load_study(Path("examples/heart.yaml")), "expires": clock() + 86_400}
        self.study = issue(Study.model_validate(given), SigningKey.generate(), clock())
        with database.unit_of_work() as connection:
            studies.propose(connection, self.hub.journal, self.study, account_id=1, now=clock())
        self.counting = Counting(
            database=database, journal=self.hub.journal, hub_key=self.hub.hub_key, now=clock
        )

    def newest(self, person: Person) -> dict[str, object]:
        return self.hub.registry.history(person.pid)[-1]["proof"]


@pytest.fixture
def world(sqlite_database: Database, tmp_path: Path) -> Iterator[World]:
    made = World(sqlite_database, tmp_path)
    yield made
    made.hospital.close()


def test_the_registrys_tally_verifies_and_each_patient_finds_herself_in_it(world: World):
    file = world.counting.tally("heart-risk", None, "basel")
    report = verify_tally(file, world.hub.trust)
    assert (report.facts["consented"], report.facts["patients"]) == (PEOPLE - 1, PEOPLE + FEWEST)
    assert any("NOT CHECKED" in step for step in report.steps)
    for person, counted in (
        (world.people[0], False),
        (world.people[1], True),
        (world.people[-1], False),
    ):
        mine = verify_tally(file, world.hub.trust, world.newest(person)).facts["mine"]
        assert mine["counted"] is counted
    earlier = world.hub.registry.history(world.people[0].pid)[0]["proof"]
    with pytest.raises(VerificationError, match="newest"):
        verify_tally(file, world.hub.trust, earlier)
    assert verify_receipt(file["tally"], world.hub.trust).facts["kind"] == "tally"


def test_there_is_one_tally_of_a_study_and_a_hospital_however_often_it_is_asked_for(world: World):
    """Two of neighbouring sizes would differ by what one patient decided between them."""
    first = world.counting.tally("heart-risk", None, "basel")
    world.hub.registry.restrict(world.people[1].pid, "revoke", "session")
    again = world.counting.tally("heart-risk", 1, "basel")
    assert again["tally"]["document"] == first["tally"]["document"]
    assert again["rows"] == first["rows"]
    assert verify_tally(world.counting.made("heart-risk", None, "basel"), world.hub.trust)


def test_fewer_than_the_smallest_band_are_not_counted(world: World):
    for person in world.people[1:12]:
        world.hub.registry.restrict(person.pid, "revoke", "session")
    with pytest.raises(TooFewToTellError) as caught:
        world.counting.tally("heart-risk", None, "basel")
    assert "49" not in caught.value.message  # says the band's edge, and no count
    with pytest.raises(NoTallyError):
        world.counting.made("heart-risk", None, "basel")


def test_a_tally_is_of_a_member_and_a_study_that_exist(world: World):
    with pytest.raises(NotFoundError):
        world.counting.tally("heart-risk", None, "elsewhere")
    with pytest.raises(NotFoundError):
        world.counting.tally("unknown", None, "basel")


@pytest.mark.parametrize("member", ["consented", "patients", "site", "at", "study_id", "version"])
def test_a_hub_that_signs_another_number_over_the_same_rows_is_refused(world: World, member: str):
    file = world.counting.tally("heart-risk", None, "basel")
    given = Tally.model_validate(file["tally"]["document"]["credentialSubject"])
    changed = {"site": "zurich", "study_id": "other"}.get(member) or getattr(given, member) + 1
    lie = issue(given.model_copy(update={member: changed}), world.hub.hub_key, clock())
    with world.hub.database.unit_of_work() as connection:
        digest = world.hub.journal.record(connection, "tally", lie).digest
        bundle = world.hub.journal.receipt(connection, digest, sites={})
    with pytest.raises(CoopError):
        verify_tally({**file, "tally": bundle}, world.hub.trust)


def test_a_size_that_the_log_did_not_sign_is_refused(world: World):
    file = world.counting.tally("heart-risk", None, "basel")
    given = Tally.model_validate(file["tally"]["document"]["credentialSubject"])
    forged = note.sign_checkpoint("hub.test/log", 50, bytes(32), SigningKey.generate())
    lie = issue(given.model_copy(update={"checkpoint": forged}), world.hub.hub_key, clock())
    with world.hub.database.unit_of_work() as connection:
        digest = world.hub.journal.record(connection, "tally", lie).digest
        bundle = world.hub.journal.receipt(connection, digest, sites={})
    with pytest.raises(note.NoteError):
        verify_tally({**file, "tally": bundle}, world.hub.trust)


def test_other_rows_another_study_or_another_form_are_refused(world: World):
    file = world.counting.tally("heart-risk", None, "basel")
    rows = bytearray(from_b64u(file["rows"]))
    rows[5] ^= 1
    for change in (
        {"rows": b64u(bytes(rows))},
        {"rows": ""},
        {"v": 2},
        {"more": 1},
        {"study": file["tally"]},
        {"tally": file["study"]},
    ):
        with pytest.raises(CoopError):
            verify_tally({**file, **change}, world.hub.trust)


def test_two_processes_make_one_tally(database: Database, tmp_path: Path):
    """The second finds the first's when it comes to keep its own."""
    world = World(database, tmp_path)
    with world.hub.database.reading() as connection:
        row = studies.get(connection, "heart-risk", None)
    first = world.counting._made(row, "basel")
    second = world.counting._made(row, "basel")
    assert (first.digest, first.rows) == (second.digest, second.rows)
    assert (
        sha256(bytes(first.rows)).hex()
        == Tally.model_validate(
            world.counting.tally("heart-risk", None, "basel")["tally"]["document"][
                "credentialSubject"
            ]
        ).rows_sha256
    )


def test_the_command_verifies_a_file(world: World, tmp_path: Path):
    file = world.counting.tally("heart-risk", None, "basel")
    (tmp_path / "tally.json").write_bytes(jcs(file))
    (tmp_path / "mine.json").write_bytes(jcs(world.newest(world.people[1])))
    world.hub.trust.save(tmp_path / "trust.json")
    command = [Path(sys.executable).parent / "coop", "verify", "tally", tmp_path / "tally.json"]
    options = ["--mine", tmp_path / "mine.json", "--trust", tmp_path / "trust.json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "counted as one who permits it" in done.stdout
    (tmp_path / "tally.json").write_bytes(jcs({**file, "rows": ""}))
    assert subprocess.run([*command, *options], capture_output=True, check=False).returncode == 1
