"""What the gate costs: one decision, a million patients at once, and the same beside Cedar."""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random  # noqa: TID251  (seeded, to make the inputs)
from typing import Final

from rows import Rows  # first: it takes this folder off the path

from consent.columns import Columns
from consent.decide import Request, Standing, State, decide
from consent.policy import COMMERCIAL, Preset, preset
from consent.proofs.tally import About, Answer, check, count
from consent.purposes import CORONARY, DS, GRU, HEART, HMB, Use
from coop.documents.provision import Policy, Provision

SEED: Final = 7
NOON: Final = 1_800_000_000
YEAR: Final = 31_557_600
PATIENTS: Final = 1_000_000
BODIES: Final = 2_000  # distinct policies, their periods aside
SAMPLED: Final = 10_000
CEDAR_DECISIONS: Final = 2_000
TALLIED: Final = 1_000
BITS: Final = 130  # of a pid


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


SECTIONS: Final[dict[str, Callable[[Rows], None]]] = {
    "decision": decision,
    "cohort_1m": cohort_1m,
    "tally": tally,
}

if __name__ == "__main__":
    main()
