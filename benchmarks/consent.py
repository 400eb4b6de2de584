"""What the gate costs: one decision, a million patients at once, and the same beside Cedar."""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random  # noqa: TID251  (seeded, to make the inputs)
from tempfile import TemporaryDirectory
from typing import Final

from rows import Rows  # first: it takes this folder off the path

from consent.columns import Columns
from consent.decide import Request, Standing, State, decide
from consent.erase import erase
from consent.policy import COMMERCIAL, Preset, preset
from consent.proofs.tally import About, Answer, check, count
from consent.purposes import CORONARY, DS, GRU, HEART, HMB, Use
from consent.store import site_document
from coop.client import Client
from coop.db import Database
from coop.documents.consent import Consent
from coop.documents.envelope import issue
from coop.documents.erasure import Erasure
from coop.documents.provision import Policy, Provision
from coop.journal import note
from coop.journal.audit import audit
from coop.journal.merkle import Tree, verify_inclusion
from coop.journal.receipts import check_bundle
from coop.journal.store import Journal
from coop.journal.trust import Trust
from coop.keys import SigningKey
from coop.members import site_table

# The tests' own words for Cedar and their cooperative; behind everything else on the path.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

SEED: Final = 7
NOON: Final = 1_800_000_000
YEAR: Final = 31_557_600
PATIENTS: Final = 1_000_000
BODIES: Final = 2_000  # distinct policies, their periods aside
SAMPLED: Final = 10_000
CEDAR_DECISIONS: Final = 4_000
RECEIPTS: Final = 10
TALLIED: Final = 1_000
BITS: Final = 130  # of a pid
LOGGED: Final = 20_000
BATCH: Final = 1_000  # what `POST /v1/consents` takes at once
LEAVES: Final = 1_000_000
CHAIN: Final = 40  # documents of one patient: more than most decide in a life


def main() -> None:
    """Measure every section, or the ones named."""
    rows = Rows("consent")
    named = sys.argv[1:] or list(SECTIONS)
    for name in named:
        SECTIONS[name](rows)
    rows.finish()


# -- one decision ----------------------------------------------------------------------------------


def decision(rows: Rows) -> None:
    """One record, one question: the ready-made choices and a form of three levels."""
    random = Random(SEED)
    held = [_standing(policy) for policy in _realistic()]
    asked = [_request(random) for _ in range(50)]
    pairs = [(random.choice(held), random.choice(asked)) for _ in range(50_000)]
    answers = [decide(*pair) for pair in pairs]
    spent = []
    for standing, request in pairs:
        began = time.thread_time_ns()
        decide(standing, request)
        spent.append(time.thread_time_ns() - began)
    spent.sort()
    kinds = {answer.effect for answer in answers}
    sound = len(kinds) == 3 and answers == [decide(*pair) for pair in pairs]  # noqa: PLR2004
    said = f"{len(pairs)} pairs of {len(held)} policies and {len(asked)} requests, seed {SEED}"
    for name, share, target in (("p50", 0.5, 5), ("p99", 0.99, 50)):
        rows.add(
            f"single decision, {name}", spent[int(len(spent) * share)] / 1000, "CPU µs", input=said,
            target=target, better="lower", checked=sound,
        )  # fmt: skip


def _realistic() -> list[Policy]:
    """Every ready-made choice, and what a hospital's broad form asks."""
    made = [
        preset(choice, disease=HEART, study_id="heart", epsilon_cap_micro=2_000_000)
        for choice in Preset
    ]
    form = Provision(
        type="deny",
        children=[
            Provision(
                type="permit",
                end=NOON + 5 * YEAR,
                actions=[Use.TRAIN, Use.EVALUATE],
                purposes=[GRU, "DUO:0000019", "DUO:0000018"],
                classes=["cardiology", "laboratory"],
                children=[
                    Provision(type="deny", actors=["Unloved Ltd", COMMERCIAL]),
                    Provision(type="deny", classes=["genome"]),
                ],
            ),
            Provision(type="permit", actions=[Use.INFER], purposes=[HMB], end=NOON + 30 * YEAR),
            Provision(type="permit", actions=[Use.RELEASE], purposes=[GRU, "DUO:0000028"]),
        ],
    )
    return [*made, Policy(provision=form, epsilon_cap_micro=3_000_000, min_cohort=100)]


def _request(random: Random) -> Request:
    return Request(
        action=random.choice([Use.TRAIN, Use.EVALUATE, Use.INFER, Use.RELEASE]),
        purpose=(purpose := random.choice([GRU, HMB, DS])),
        disease=random.choice([HEART, CORONARY]) if purpose == DS else None,
        data_class=random.choice(["cardiology", "cardiology", "laboratory"]),
        study_id=random.choice(["heart", "lung"]),
        organisation=random.choice(["University", "Unloved Ltd"]),
        commercial=random.random() < 0.2,  # noqa: PLR2004
        at=NOON,
        epsilon_micro=1_000_000,
        population=550,
    )


def _standing(policy: Policy) -> Standing:
    return Standing(
        state=State.ACTIVE, policy=policy, head_digest="0" * 64, sequence=1, log_index=0
    )


# -- the same beside Cedar -------------------------------------------------------------------------


def cedar(rows: Rows) -> None:
    """The same decisions by Cedar at its fastest: parsed before, asked in whole batches."""
    import cedarpy  # noqa: PLC0415  (the peer)
    from cedar_policies import cedar_of, graph, questions_of  # noqa: PLC0415

    random = Random(SEED)
    held = [_standing(policy) for policy in _realistic()]
    asked = [_request(random) for _ in range(CEDAR_DECISIONS // len(held))]
    purposes = graph()
    sets = [cedarpy.PolicySet.from_str(cedar_of(standing) or "") for standing in held]
    batches = [[q for one in asked for q in questions_of(held[0], one) or ()] for _ in held]
    began = time.process_time()
    said = [
        cedarpy.is_authorized_batch(batch, policies, purposes)
        for policies, batch in zip(sets, batches, strict=True)
    ]
    theirs = time.process_time() - began
    began = time.process_time()
    ours = [[decide(standing, one).permits for one in asked] for standing in held]
    spent = time.process_time() - began
    same = ours == [[answer.allowed for answer in answers] for answers in said]
    count = len(held) * len(asked)
    text = f"{count} decisions, {len(held)} policies x {len(asked)} requests, seed {SEED}, equal"
    for name, value, unit, target in (
        ("cedarpy, one decision", theirs / count * 1e6, "CPU µs", None),
        ("decide, one decision", spent / count * 1e6, "CPU µs", None),
        ("decide beside cedarpy", theirs / spent, "times faster", 20),
    ):
        rows.add(name, value, unit, input=text, target=target, checked=same)


# -- a million patients ----------------------------------------------------------------------------


def cohort_1m(rows: Rows) -> None:
    """A million patients, each with periods of her own, and who of them permits a request."""
    random = Random(SEED)
    sample: dict[str, Standing] = {}
    columns = Columns.build(_patients(sample))
    request = Request(
        action=Use.TRAIN,
        purpose=DS,
        disease=CORONARY,
        data_class="class-3",
        study_id="study-4",
        organisation="University",
        commercial=False,
        at=NOON,
        epsilon_micro=1_000_000,
        population=550,
    )
    permitted = columns.permitted(request)
    began = time.process_time()
    columns.permitted(request)
    spent = time.process_time() - began
    tracemalloc.start()
    columns.permitted(request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pids = sum(sys.getsizeof(f"{0:026d}") + 8 for _ in range(PATIENTS))
    sound = 0 < len(permitted) < PATIENTS
    questions = [request, *(_asked_of_many(random) for _ in range(9))]
    for question in questions:
        known = set(columns.permitted(question))
        sound &= all(decide(sample[pid], question).permits == (pid in known) for pid in sample)
    said = (
        f"{PATIENTS} patients, {columns.rows} provision rows of depth 2, {BODIES} policies with "
        f"random periods, seed {SEED}; equal to decide on {len(sample)} patients x "
        f"{len(questions)} requests"
    )
    rows.add(
        "cohort of a million, evaluated", spent, "CPU s", input=said, target=0.25, better="lower",
        checked=sound,
    )  # fmt: skip
    rows.add(
        "its memory: columns, pids and evaluation", (columns.nbytes + pids + peak) / 1e6, "MB",
        input=said, target=200, better="lower", checked=sound,
    )  # fmt: skip
    changed = {pid: sample[pid] for pid in random.sample(sorted(sample), 100)}
    began = time.process_time()
    after = columns.updated(changed)
    rows.add(
        "100 changed patients", time.process_time() - began, "CPU s", input=said, better="lower",
        checked=sorted(after.permitted(request)) == sorted(permitted),
    )  # fmt: skip


def _patients(sample: dict[str, Standing]) -> Iterator[tuple[str, Standing]]:
    """The patients one by one: a million policies at once would fill the machine."""
    random = Random(SEED)
    bodies = [_body(random, number) for number in range(BODIES)]
    for number in range(PATIENTS):
        pid = f"{random.getrandbits(BITS):026x}"[:26]
        standing = _standing(_with_periods(random, bodies[number % BODIES]))
        if number % (PATIENTS // SAMPLED) == 0:
            sample[pid] = standing
        yield pid, standing


def _body(random: Random, number: int) -> list[dict[str, object]]:
    """What one form says: one or two rules under a root that denies; no two forms alike."""
    first: dict[str, object] = {
        "type": "permit",
        "actions": random.sample([Use.TRAIN, Use.EVALUATE, Use.INFER, Use.RELEASE], 3),
        "purposes": [random.choice([GRU, HMB, HEART, CORONARY])],
        "classes": random.sample([f"class-{n}" for n in range(6)], 3),
        "actors": [f"study-{n}" for n in {*random.sample(range(8), 4)}] + [f"only-{number}"],
    }
    second: dict[str, object] = {"type": "deny", "actors": [f"never-{number}", COMMERCIAL]}
    return [first, second] if number % 2 else [first]


def _with_periods(random: Random, body: list[dict[str, object]]) -> Policy:
    parts = []
    for part in body:
        start = NOON + random.randrange(-3 * YEAR, YEAR)
        parts.append({**part, "start": start, "end": start + random.randrange(YEAR, 6 * YEAR)})
    children = tuple(_unchecked(**part) for part in parts)
    root = _unchecked(type="deny", children=children)
    return Policy.model_construct(provision=root, epsilon_cap_micro=None, min_cohort=None)


def _unchecked(**said: object) -> Provision:
    """A provision without pydantic's checks: two and a half million of them would take minutes."""
    whole = {name: field.default for name, field in Provision.model_fields.items()}
    codes = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
    return Provision.model_construct(**{**whole, **codes})


def _asked_of_many(random: Random) -> Request:
    return Request(
        action=random.choice([Use.TRAIN, Use.EVALUATE, Use.INFER]),
        purpose=DS,
        disease=random.choice([HEART, CORONARY]),
        data_class=f"class-{random.randrange(7)}",
        study_id=f"study-{random.randrange(9)}",
        organisation=f"never-{random.randrange(BODIES)}",
        commercial=random.random() < 0.3,  # noqa: PLR2004
        at=NOON + random.randrange(-YEAR, YEAR),
    )


# -- a tally ---------------------------------------------------------------------------------------


def tally(rows: Rows) -> None:
    """A thousand patients of one hospital, counted and added up again."""
    random = Random(SEED)
    about = About(
        log="did:key:z6Mk",
        origin="hub.example/log",
        log_size=5_000,
        root=f"{SEED:064x}",
        site="basel",
        study_sha256=f"{SEED:064x}",
        action=Use.TRAIN,
        at=NOON,
    )
    bodies = [random.randbytes(1_000) for _ in range(TALLIED)]
    answers = [Answer(body, random.random() < 0.8) for body in bodies]  # noqa: PLR2004
    began = time.process_time()
    counted = count(about, answers, random.randbytes)
    made = time.process_time() - began
    began = time.process_time()
    check(
        about,
        counted.rows,
        patients=TALLIED,
        consented=counted.consented,
        blinding=counted.blinding,
    )
    verified = time.process_time() - began
    sound = counted.consented == sum(answer.permits for answer in answers)
    said = f"{TALLIED} patients, {counted.consented} of whom permit, seed {SEED}"
    rows.add(
        "tally verified", verified, "CPU s", input=said, target=1, better="lower", checked=sound
    )
    rows.add("tally made", made, "CPU s", input=said, better="lower", checked=sound)
    each = len(counted.rows) / TALLIED
    rows.add(
        "its size", each, "bytes a patient", input=said, target=160, better="lower", checked=sound
    )


# -- a receipt ------------------------------------------------------------------------------------


def receipt(rows: Rows) -> None:
    """From a patient's signed word to her receipt with two cosignatures, over HTTP on loopback."""
    from coop_world import WITNESSES, now, world  # noqa: PLC0415  (real hub, real hospitals)

    with TemporaryDirectory() as folder, world(Path(folder)) as coop:
        spent, sound = [], True
        for patient in coop.patients[:RECEIPTS]:
            subject = Consent(
                pid=patient.pid, site="cleveland", domain="research", sequence=2,
                previous=patient.head, event="suspend",
            )  # fmt: skip
            document = issue(subject, patient.key, now())
            with Client(coop.url, key=patient.key) as client:
                began = time.perf_counter()
                client.post("/v1/consents", {"documents": [document]})
                for name in WITNESSES:
                    coop.mirrors[name].witness()
                said = client.get(f"/v1/consents/{patient.pid}/history")["events"][-1]
                spent.append(time.perf_counter() - began)
            proof = check_bundle(said["proof"]["receipt"], coop.site.trust)
            sound &= len(proof.cosigners) == len(WITNESSES) and said["event"] == "suspend"
    spent.sort()
    rows.add(
        "receipt with two cosignatures", spent[-1], "s", target=2, better="lower", checked=sound,
        input=f"slowest of {RECEIPTS}: signed event to checked receipt, hub and two hospitals over "
        "HTTP on loopback, witnesses asked at once",
    )  # fmt: skip


# -- the log ---------------------------------------------------------------------------------------


def log(rows: Rows) -> None:
    """Durable appends, a receipt and an erasure on one log; proofs in a tree of a million."""
    with TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/log.sqlite")
        database.upgrade()
        _log(rows, database)
        database.close()
    random, tree = Random(SEED), Tree()
    leaves = [random.randbytes(32) for _ in range(LEAVES)]
    for leaf in leaves:
        tree.append(leaf)
    asked = [random.randrange(LEAVES) for _ in range(SAMPLED)]
    root = tree.root()
    began = time.process_time()
    proofs = [tree.inclusion(index) for index in asked]
    spent = time.process_time() - began
    for index, proof in zip(asked, proofs, strict=True):
        verify_inclusion(leaves[index], index, LEAVES, proof, root)
    rows.add(
        "inclusion proof", spent / SAMPLED * 1e6, "CPU µs", target=200, better="lower",
        input=f"{SAMPLED} random entries of {LEAVES}, each verified, seed {SEED}",
    )  # fmt: skip


def _log(rows: Rows, database: Database) -> None:
    keys = {name: SigningKey.generate() for name in ("log", "hub", "basel", "zurich", "geneva")}
    dids = {name: keys[name].did for name in ("basel", "zurich", "geneva")}
    journal = Journal(database, keys["log"], "bench/log", lambda: NOON)
    made = [_erasure(keys["hub"], [number]) for number in range(LOGGED)]  # of a receipt's size
    began = time.perf_counter()
    for start in range(0, LOGGED, BATCH):
        with database.unit_of_work() as connection:
            journal.record_many(connection, "consent", made[start : start + BATCH])
    spent = time.perf_counter() - began
    with database.reading() as connection:
        sound = audit(connection, journal).documents == LOGGED
    said = f"{LOGGED} documents, SQLite with synchronous=FULL"
    rows.add(
        "log append, durable", LOGGED / spent, "1/s", target=5000, checked=sound,
        input=f"{said}, {BATCH} to a commit",
    )  # fmt: skip
    rows.add("one such commit", spent / LOGGED * BATCH, "s", target=0.2, better="lower", input=said)
    trust = Trust(hub=keys["hub"].did, log=keys["log"].did, origin="bench/log", sites=dids, k=2)
    began = time.perf_counter()
    with database.unit_of_work() as connection:
        digest = journal.record(connection, "consent", _erasure(keys["hub"], [])).digest
    for name in ("zurich", "geneva"):
        with database.unit_of_work() as connection:
            text = journal.checkpoint(connection)
            signed = note.cosign(text, name=name, key=keys[name], now=NOON)
            journal.add_cosignature(connection, name, dids[name], signed)
    with database.reading() as connection:
        receipt = journal.receipt(connection, digest, sites=dids)
    spent = time.perf_counter() - began
    rows.add(
        "receipt with two cosignatures, in one process", spent, "s", better="lower", input=said,
        checked=len(check_bundle(receipt, trust).cosigners) == 2,  # noqa: PLR2004
    )  # fmt: skip
    _erased(rows, database, journal, keys["basel"])


def _erased(rows: Rows, database: Database, journal: Journal, key: SigningKey) -> None:
    pid, many = "a" * 26, range(CHAIN)
    with database.unit_of_work() as connection:
        row = {"name": "basel", "did": key.did, "supernode_key": "k", "joined_at": 0}
        connection.execute(site_table.insert().values(**row, state="active"))
        chain = [_erasure(key, [number]) for number in many]
        places = journal.record_many(connection, "consent", chain)
        listed = [
            {"log_index": one.index, "site": "basel", "pid": pid, "digest": one.digest}
            for one in places
        ]
        connection.execute(site_document.insert(), listed)
    document = _erasure(key, [one.index for one in places])
    began = time.process_time()
    with database.unit_of_work() as connection:
        erase(connection, journal, "basel", (document, pid), lambda *_: None)
    spent = time.process_time() - began
    with database.reading() as connection:
        sound = audit(connection, journal).erased == CHAIN
    rows.add(
        "erasure at the hub", spent, "CPU s", target=0.05, better="lower", checked=sound,
        input=f"a chain of {CHAIN} in a log of {LOGGED}",
    )  # fmt: skip


def _erasure(key: SigningKey, entries: list[int]) -> dict[str, object]:
    digests = {name: str(n) * 64 for n, name in enumerate(("record", "reason", "registrar"))}
    said = Erasure(site="basel", entries=entries, second="9" * 64, **digests)
    return issue(said, key, NOON)


SECTIONS: Final[dict[str, Callable[[Rows], None]]] = {
    "decision": decision,
    "cedar": cedar,
    "cohort_1m": cohort_1m,
    "tally": tally,
    "receipt": receipt,
    "log": log,
}

if __name__ == "__main__":
    main()
