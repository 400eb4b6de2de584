"""An audited cohort: whoever is opened was nobody's choice, and had permitted the round."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from math import comb
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from budget import budget
from coop_world import HOSPITAL, Patient, World, now, world
from typer.testing import CliRunner

from consent.policy import preset
from consent.proofs import cohort
from consent.proofs.cohort import Leaf, arrange, caught_micro, commitment, places_of, surely_found
from coop import members
from coop.canonical import document_digest, jcs, parse_object
from coop.cli import app
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.training import RoundReceipt, RoundRecord
from coop.errors import CoopError, InvalidInputError, NotFoundError
from coop.journal import note
from coop.journal.receipts import bundle_of
from coop.verify import ChallengeError, NoPermitError, verify_cohort
from coop.verify.bundles import Report
from federated.answers import answer
from federated.approval import approve
from federated.budget import cohort_of
from federated.cohort_audit import AuditedBeforeError, NotWitnessedYetError, opened
from federated.evidence import NoEvidenceError
from federated.mirror import Mirror
from federated.models import to_safetensors
from federated.round import RoundInput, answer_round
from federated.rounds import Rounds
from federated.site import Site
from federated.uses import statement

SEED = b"s" * 32
PIDS = [
    f"{'a' * 22}{number:04d}".translate(str.maketrans("0189", "hijk")) for number in range(2000)
]
File = dict[str, Any]


# -- the commitment --------------------------------------------------------------------------------


def test_places_say_nothing_of_who_is_a_member_or_how_many_are():
    few = arrange({PIDS[0]: 7}, 64, SEED)
    many = arrange(dict.fromkeys(PIDS[:60], 7), 64, SEED)
    assert len(few.leaves) == len(many.leaves) == 64
    assert [leaf.hashed() for leaf in many.leaves] == sorted(map(Leaf.hashed, many.leaves))
    assert [leaf.pid for leaf in many.leaves if leaf.pid] != PIDS[:60]
    assert arrange({}, 0, SEED).leaves == [Leaf(salt=arrange({}, 1, SEED).leaves[0].salt)]
    # Another seed, nothing in common: two rounds over the same patients cannot be compared.
    again = arrange(dict.fromkeys(PIDS[:60], 7), 64, b"t" * 32)
    assert not set(map(Leaf.hashed, again.leaves)) & set(map(Leaf.hashed, many.leaves))
    assert len({leaf.salt for leaf in many.leaves}) == 64


def test_a_commitment_is_to_one_tree_of_one_size():
    made = arrange(dict.fromkeys(PIDS[:60], 7), 64, SEED)
    assert made.commitment == commitment(made.tree.root(), 64)
    others = [commitment(made.tree.root(), 63), arrange({PIDS[0]: 7}, 64, SEED).commitment]
    others.append(arrange(dict.fromkeys(PIDS[:60], 8), 64, SEED).commitment)
    assert made.commitment not in others
    assert cohort.count_commitment(SEED, 60) != cohort.count_commitment(SEED, 61)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_challenge_orders_every_place_once(size):
    ordered = list(places_of(b"c" * 32, size))
    assert sorted(ordered) == list(range(size))
    if size > 7:
        assert ordered != list(places_of(b"d" * 32, size))


def test_every_order_is_as_likely():
    tries = budget(3000, 60_000)
    seen = Counter(tuple(places_of(number.to_bytes(32), 3)) for number in range(tries))
    assert len(seen) == 6
    expected = tries / 6
    # Chi-square with 5 degrees of freedom: 1 in 10,000 is above 25.7; the seeds are fixed.
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 25.7


def test_a_challenge_depends_on_everything_it_is_made_of():
    given = ("1" * 64, "2" * 64, "log\n5\nroot\n", ["— a x", "— b y"])
    made = cohort.challenge(*given)
    assert made == cohort.challenge(*given[:3], ["— b y", "— a x"])
    changed = [
        ("3" * 64, *given[1:]),
        (given[0], "3" * 64, *given[2:]),
        (*given[:2], "log\n6\nroot\n", given[3]),
        (*given[:3], ["— a x"]),
        (*given[:3], ["— a x", "— b z"]),
    ]
    assert len({made, *(cohort.challenge(*one) for one in changed)}) == 6


# -- how much an audit shows -----------------------------------------------------------------------


def missed(size: int, without: int, drawn: int) -> float:
    return comb(size - without, drawn) / comb(size, drawn)


@pytest.mark.parametrize(("size", "drawn"), [(100, 10), (1000, 300), (20_000, 300), (300, 299)])
def test_the_chance_is_exact_where_one_percent_is_a_whole_number(size, drawn):
    exact = (1 - missed(size, size // 100, drawn)) * 1_000_000
    assert abs(caught_micro(drawn, size, 10) - exact) <= 1


@pytest.mark.parametrize("share", [1, 7, 10, 33, 500, 1000])
def test_the_chance_is_promised_for_every_smaller_cohort_too(share):
    at_most, drawn = 400, 40
    promised = caught_micro(drawn, at_most, share)
    for size in range(drawn, at_most + 1):
        without = -(-size * share // 1000)
        assert promised <= (1 - missed(size, without, drawn)) * 1_000_000 + 1


def test_three_hundred_members_find_one_percent_in_95_of_100_audits_however_many_there_are():
    for size in (1000, 30_000, 1_000_000, 10**9):
        assert caught_micro(300, size, 10) >= 950_000
        assert surely_found(300, size, 950_000) <= 10
    assert caught_micro(0, 10, 10) == 0
    assert surely_found(0, 10, 950_000) is None
    assert [cohort.places_max(size, 300) for size in (50, 10**6)] == [50, 30_000]
    assert surely_found(1, 10**6, 950_000) == 950


def test_a_cohort_with_one_percent_too_many_is_caught_as_often_as_promised():
    """Dummies outnumber members, and make no difference: so many members are opened."""
    bad = set(PIDS[:10])
    made = arrange(dict.fromkeys(PIDS[:1000], 7), 3000, SEED)
    tries, drawn = budget(300, 3000), 200
    found = 0
    for number in range(tries):
        members = (made.leaves[place].pid for place in places_of(number.to_bytes(32), 3000))
        first = islice((pid for pid in members if pid), drawn)
        found += not bad.isdisjoint(first)
    promised = caught_micro(drawn, 1000, 10) / 1_000_000
    assert 0.85 < promised < 0.95
    deviation = (promised * (1 - promised) / tries) ** 0.5
    assert abs(found / tries - promised) < 4 * deviation


# -- from the round to the verdict -----------------------------------------------------------------


@pytest.fixture(scope="module")
def coop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@dataclass
class Trained:
    """One round that the hub accepted, with its chain."""

    coop: World
    chain: File
    receipt: Opened[RoundReceipt]

    def opened(self, **terms: Any) -> File:
        self.coop.mirror.sync()
        found = opened(self.coop.site, self.chain, now=now(), **terms)
        return parse_object(jcs(found), bytes_max=10**8)  # as from a file

    def verified(self, file: File, **terms: Any) -> Report:
        return verify_cohort(file, self.coop.site.trust, **terms)


def train(
    coop: World, name: str, *, phase: str = "train", cosign: bool = True, mirror: Any = None
) -> Trained:
    """A study's only round (or its evaluation), answered here and concluded at the hub."""
    study, _ = coop.study(name, recipe__rounds=1)
    approve(coop.site, coop.client, name, now=now())
    rounds = Rounds(coop.database, coop.journal, coop.folder.hub_key, now=now)
    order = document_digest(rounds.create(study.study_id, study.version))
    while True:
        asked = rounds.next_round(order)
        request = rounds.request(asked)
        told = RoundInput(
            order=asked.order.document, request=request.document, weights=asked.weights
        )
        given = answer_round(coop.site, mirror or coop.mirror, told)
        receipt = open_document(RoundReceipt, given.receipt, issuers={coop.site.key.did})
        state = to_safetensors(asked.weights)
        rounds.conclude(asked, request, [receipt], [], state, sha256(state).hexdigest())
        if asked.phase == phase:
            break
    if cosign:
        coop.cosign()
    chain = coop.client.get(f"/v1/rounds/{order}/chains/{asked.round}")
    return Trained(coop=coop, chain=chain, receipt=receipt)


@pytest.fixture(scope="module")
def trained(coop: World) -> Trained:
    return train(coop, "audited")


@pytest.fixture(scope="module")
def file(trained: Trained) -> File:
    return trained.opened()


def members_in(file: File) -> list[File]:
    return [one["member"] for one in file["openings"] if "member" in one]


def kept(trained: Trained) -> dict[str, int]:
    with trained.coop.site.database.reading() as connection:
        return cohort_of(connection, trained.receipt.subject.debit_sequence)


def test_an_honest_cohort_passes_and_the_report_says_how_much_that_shows(trained, file):
    report = trained.verified(file)
    assert {one["pid"] for one in members_in(file)} == kept(trained).keys()
    assert report.facts["everybody"] is True
    assert report.facts["one_percent_found_micro"] == 1_000_000
    assert report.facts["members"] == len(kept(trained)) < report.facts["places"]
    assert report.facts["receipt_sha256"] == trained.receipt.digest
    assert any("every member was opened" in step for step in report.steps)
    assert any("CANNOT BE SHOWN" in step for step in report.steps)
    assert any("budapest" in step and "zurich" in step for step in report.steps)


def test_an_evaluation_is_audited_by_its_own_question(coop):
    trained = train(coop, "evaluated", phase="evaluate")
    report = trained.verified(trained.opened())
    assert report.facts["phase"] == "evaluate"
    assert report.facts["members"] > 0


def test_a_few_openings_show_a_few_members_and_say_so(coop):
    trained = train(coop, "a-few")
    file = trained.opened(members=5)
    report = trained.verified(file, members=5)
    assert len(members_in(file)) == 5
    assert report.facts["everybody"] is False
    # Whoever chose the checkpoint chose whom to open: only the auditor's own choice has odds.
    assert report.facts["one_percent_found_micro"] is None
    assert any("NOT STATED" in step for step in report.steps)
    chosen = checkpoint_of(coop)
    file = trained.opened(members=5, checkpoint=chosen)
    report = trained.verified(file, members=5, checkpoint=chosen)
    promised = caught_micro(5, len(coop.patients) - (report.facts["opened"] - 5), 10)
    assert report.facts["one_percent_found_micro"] == promised
    assert any("1 % or more of the cohort" in step for step in report.steps)
    # Of everybody else it holds what the hub knows: the pid and the digest of what she signed.
    rest = jcs({name: value for name, value in file.items() if name not in {"heads", "openings"}})
    hidden = kept(trained).keys() - {one["pid"] for one in members_in(file)}
    assert not any(pid.encode() in rest + jcs(file["openings"]) for pid in hidden)
    with pytest.raises(cohort.CohortProofError, match="fewer"):
        trained.verified(file)  # three hundred were asked for
    with pytest.raises(cohort.CohortProofError, match="more"):
        trained.verified(file, members=4)


def test_an_auditor_who_chose_the_checkpoint_knows_that_nobody_else_did(coop):
    trained = train(coop, "chosen")
    chosen = checkpoint_of(coop)
    coop.say("suspend", coop.newcomers(1))  # the log goes on
    coop.cosign()
    file = trained.opened(checkpoint=chosen)
    report = trained.verified(file, checkpoint=chosen)
    assert not any("NOT CHECKED, give --checkpoint" in step for step in report.steps)
    with pytest.raises(ChallengeError, match="you chose"):
        trained.verified(file, checkpoint=checkpoint_of(coop))
    # One cosignature fewer is another draw.
    *body, last = chosen.rstrip("\n").split("\n")
    assert last.startswith("— ")
    with pytest.raises(ChallengeError, match="cosignatures"):
        trained.verified(file, checkpoint="\n".join(body) + "\n")


def checkpoint_of(coop: World) -> str:
    with coop.database.reading() as connection:
        return coop.journal.checkpoint(connection)


def test_whoever_was_shown_to_an_auditor_reads_it_on_her_list_and_nobody_else_does(coop):
    trained = train(coop, "on-her-list")
    shown = {one["pid"] for one in members_in(trained.opened(members=5))}
    for pid in kept(trained):
        said = statement(coop.site, pid, now())["credentialSubject"]["uses"]
        audits = [
            use for use in said if use["what"] == "audit" and use["study_id"] == "on-her-list"
        ]
        named = [(use["document_sha256"], use["round"]) for use in audits]
        assert named == ([(trained.receipt.digest, 1)] if pid in shown else [])


def test_a_round_is_opened_for_one_challenge_and_no_second(coop):
    trained = train(coop, "once")
    first = trained.opened(members=3)
    coop.newcomers(1)  # the log goes on and is cosigned
    again = trained.opened(members=3)
    assert again == first
    assert len(trained.opened(members=2)["openings"]) < len(first["openings"])
    for terms in ({"members": 4}, {"members": 3, "checkpoint": checkpoint_of(coop)}):
        with pytest.raises(AuditedBeforeError):
            trained.opened(**terms)


def test_a_new_process_opens_the_same(coop):
    trained = train(coop, "restarted")
    first = trained.opened()
    coop.sites[HOSPITAL].close()
    coop.sites[HOSPITAL] = Site.open(coop.site.folder)
    coop.mirrors[HOSPITAL] = Mirror(coop.site, coop.client)
    assert trained.opened() == first


def test_nothing_is_opened_before_the_others_have_seen_the_receipt(coop):
    trained = train(coop, "unseen", cosign=False)
    with pytest.raises(NotWitnessedYetError):
        trained.opened()
    with pytest.raises(NotWitnessedYetError):
        trained.opened(checkpoint=checkpoint_of(coop))  # newer, and only the hub's
    coop.mirrors["zurich"].witness()
    with pytest.raises(NotWitnessedYetError):
        trained.opened()  # one of two
    coop.cosign()
    assert trained.verified(trained.opened())


@pytest.mark.parametrize("members", [0, -1, 10_001])
def test_an_audit_has_a_size(trained, members):
    with pytest.raises(InvalidInputError):
        trained.opened(members=members)


def test_another_round_or_hospital_has_nothing_to_open(trained):
    for receipts in ([], None, [trained.chain["order"]]):
        with pytest.raises(NotFoundError):
            opened(trained.coop.site, {**trained.chain, "receipts": receipts}, now=now())


def test_a_database_that_was_put_back_cannot_answer(coop):
    trained = train(coop, "put-back")
    with coop.site.database.unit_of_work() as connection:
        same = answer.c.document_sha256 == trained.receipt.digest
        seed = connection.scalar(sa.select(answer.c.seed).where(same))
        connection.execute(sa.update(answer).where(same).values(seed="0" * 64))
    with pytest.raises(NoEvidenceError, match="commits"):
        trained.opened()
    with coop.site.database.unit_of_work() as connection:
        values = {"seed": seed, "document_sha256": "0" * 64}
        connection.execute(sa.update(answer).where(same).values(values))
    with pytest.raises(NoEvidenceError, match="backup"):
        trained.opened()


# -- a hospital that did what it may not -----------------------------------------------------------


def trainees(coop: World) -> list[Patient]:
    """Newcomers, at least one of them in the training fold."""
    while True:
        found = coop.newcomers(3)
        if not all(coop.site.is_evaluation(p.pid, 40) for p in found):
            return found


def revoked(coop: World) -> None:
    coop.say("revoke", trainees(coop))


def refused_all(coop: World) -> None:
    coop.say("amend", trainees(coop), preset("refuse"))


def capped(coop: World) -> None:
    coop.say("amend", trainees(coop), preset("all-research", epsilon_cap_micro=1))


def objected(coop: World) -> None:
    coop.say("object", trainees(coop))


def not_cosigned(coop: World) -> None:
    people = trainees(coop)
    coop.say("revoke", people)
    coop.say("grant", people, preset("all-research"))


@pytest.mark.parametrize("prepare", [revoked, refused_all, capped, objected, not_cosigned])
def test_a_node_that_trained_on_rows_without_a_permit_is_caught(
    coop: World, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[World], None]
):
    prepare(coop)
    if prepare is not not_cosigned:
        coop.cosign()
    with monkeypatch.context() as patch:
        patch.setattr("federated.round.permitted", lambda _, pids, __: set(pids))
        trained = train(coop, f"careless-{prepare.__name__.replace('_', '-')}")
    with pytest.raises(NoPermitError, match="place"):
        trained.verified(trained.opened())


def test_a_node_that_sent_an_answer_after_a_withdrawal_is_caught(
    coop: World, monkeypatch: pytest.MonkeyPatch
):
    people = trainees(coop)
    leases = []

    class Between:
        def lease(self):
            leases.append(None)
            if len(leases) == 2:
                coop.say("revoke", people)
            return coop.mirror.lease()

    with monkeypatch.context() as patch:
        patch.setattr("federated.round._refuse_if_withdrawn", lambda *_: None)
        trained = train(coop, "too-late", mirror=Between())
    with pytest.raises(NoPermitError, match="place"):
        trained.verified(trained.opened())


# -- a file that was changed -----------------------------------------------------------------------


def refusal(trained: Trained, file: File, **terms: Any) -> str:
    """The code with which a file is refused."""
    with pytest.raises(CoopError) as caught:
        trained.verified(file, **terms)
    return caught.value.code


def edited(file: File, change: Callable[[File], object]) -> File:
    made = copy.deepcopy(file)
    change(made)
    return made


def dummy_place(file: File) -> int:
    return next(n for n, one in enumerate(file["openings"]) if "member" not in one)


def member_place(file: File) -> int:
    return next(n for n, one in enumerate(file["openings"]) if "member" in one)


def as_dummy(file: File) -> None:
    del file["openings"][member_place(file)]["member"]


def swap(file: File) -> None:
    openings = file["openings"]
    openings[0], openings[1] = openings[1], openings[0]


def without_withdrawal(file: File) -> None:
    members_in(file)[0]["documents"].pop()


def out_of_order(file: File) -> None:
    members_in(file)[0]["documents"].reverse()


def of_another(file: File) -> None:
    members = members_in(file)
    members[0]["documents"] = members[1]["documents"]


CHANGES: dict[str, tuple[Callable[[File], object], set[str]]] = {
    "a member passes for a dummy": (as_dummy, {"journal.bad-proof"}),
    "leaves change places": (swap, {"journal.bad-proof"}),
    "the last opening is missing": (lambda f: f["openings"].pop(), {"audit.opening"}),
    "one is opened twice": (
        lambda f: f["openings"].append(f["openings"][0]),
        {"audit.opening"},
    ),
    "another leaf": (
        lambda f: f["openings"][0].update(salt="0" * 64),
        {"journal.bad-proof"},
    ),
    "a larger tree": (lambda f: f.update(places=f["places"] + 1), {"audit.opening"}),
    "another root": (lambda f: f.update(root="0" * 64), {"audit.opening"}),
    "a document is missing": (without_withdrawal, {"audit.no-permit"}),
    "documents out of order": (out_of_order, {"audit.no-permit"}),
    "somebody else's documents": (of_another, {"audit.no-permit"}),
    "another consent": (
        lambda f: members_in(f)[0].update(consent=members_in(f)[0]["consent"] + 1),
        {"journal.bad-proof"},
    ),
    "a head left out": (lambda f: f["heads"].popitem(), {"verify.failed"}),
    "the other lease": (lambda f: f.update(lease=f["release_lease"]), {"verify.failed"}),
    "leases the wrong way round": (
        lambda f: f.update(lease=f["release_lease"], release_lease=f["lease"]),
        {"verify.failed"},
    ),
    "no record": (lambda f: f.pop("record"), {"audit.malformed"}),
    "another record": (lambda f: f.update(record=f["order"]), {"verify.failed"}),
    "more": (lambda f: f.update(more=1), {"audit.malformed"}),
    "another version": (lambda f: f.update(v=2), {"audit.malformed"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_was_changed_is_refused(trained: Trained, file: File, name: str):
    change, codes = CHANGES[name]
    assert refusal(trained, edited(file, change)) in codes


def test_another_challenge_than_the_logs_is_refused(coop: World, trained: Trained, file: File):
    """A later checkpoint, one before the receipt, one that only the hospital itself cosigned."""
    coop.newcomers(1)  # so that there is a later one, whichever test ran before
    with coop.database.reading() as connection:
        sites = members.site_dids(connection)
        fresh = coop.journal.receipt(connection, trained.receipt.digest, sites=sites)
        size = coop.journal.size(connection)
        place = coop.journal.logged(connection, trained.receipt.digest)
        proof = coop.journal.inclusion(connection, place.index, size)
        text = coop.journal.checkpoint(connection)
    assert refusal(trained, {**file, "receipt": fresh}) == "journal.bad-proof"
    body, _, signatures = text.partition("\n\n")
    unseen = f"{body}\n\n{signatures.splitlines()[0]}\n"
    alone = note.cosign(unseen, name=HOSPITAL, key=coop.site.key, now=now())
    bundle = bundle_of(RoundReceipt.kind, trained.receipt.document, place, proof, alone)
    assert refusal(trained, {**file, "receipt": bundle}) == "audit.challenge"
    early = file["receipt"]["proof"].replace(f"index {place.index}", f"index {size + 5}")
    receipt = {**file["receipt"], "proof": early}
    assert refusal(trained, {**file, "receipt": receipt}) == "journal.bad-proof"


def test_the_opening_of_another_round_does_not_fit(coop: World, trained: Trained, file: File):
    other = train(coop, "another-round").opened()
    for name in ("receipt", "record", "order", "study", "lease", "release_lease"):
        assert refusal(trained, {**file, name: other[name]})
    assert refusal(trained, {**file, "root": other["root"], "openings": other["openings"]})


def test_a_receipt_that_the_hub_did_not_accept_is_not_audited(coop: World, trained, file: File):
    record = file["record"]["document"]["credentialSubject"]
    for accepted in ([], [{**record["accepted"][0], "site": "zurich"}]):
        subject = RoundRecord.model_validate({**record, "accepted": accepted})
        document = issue(subject, coop.folder.hub_key, now())
        with coop.database.unit_of_work() as connection:
            logged = coop.journal.record(connection, RoundRecord.kind, document)
            bundle = coop.journal.receipt(connection, logged.digest, sites={})
        assert refusal(trained, {**file, "record": bundle}) == "verify.failed"


def test_every_byte_counts(coop: World):
    trained = train(coop, "bytes")
    file = trained.opened(members=2)
    data = jcs(file)
    trained.verified(parse_object(data, bytes_max=10**8), members=2)
    step = max(1, len(data) // budget(150, 20_000))
    passed = []
    for position in range(0, len(data), step):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            trained.verified(parse_object(bytes(changed), bytes_max=10**8), members=2)
        except CoopError:
            continue
        passed.append((position, bytes(changed[max(position - 40, 0) : position + 40])))
    assert passed == []


# -- the commands ----------------------------------------------------------------------------------


def test_from_the_hospitals_command_to_the_auditors(coop: World, tmp_path: Path):
    trained = train(coop, "commands")
    said = trained.receipt.subject
    out, pinned = tmp_path / "audit.json", tmp_path / "trust.json"
    coop.site.trust.save(pinned)
    run = CliRunner().invoke
    where = ["--out", str(out), "--state", str(coop.site.folder)]
    made = run(app, ["hospital", "audit", f"{said.order_sha256}/{said.round}", *where])
    assert made.exit_code == 0, made.output
    assert out.stat().st_mode & 0o077 == 0
    note_file = tmp_path / "checkpoint"
    note_file.write_text(checkpoint_of(coop))
    where += ["--checkpoint", str(note_file)]
    check = ["verify", "cohort", str(out), "--trust", str(pinned), "--checkpoint", str(note_file)]
    made = run(app, ["hospital", "audit", f"{said.order_sha256}/{said.round}", *where])
    assert made.exit_code == 0, made.output
    passed = run(app, check)
    assert passed.exit_code == 0, passed.output
    assert "all had permitted it" in passed.output
    out.write_bytes(jcs(edited(parse_object(out.read_bytes(), bytes_max=10**8), as_dummy)))
    failed = run(app, check)
    assert failed.exit_code == 1
    assert "journal.bad-proof" in failed.output
    wrong = run(app, ["hospital", "audit", "seven", *where])
    assert wrong.exit_code == 2
