"""Random policies and requests for the tests that hold one evaluator against another.

Few codes, so that rules meet requests; every kind of rule, so that each branch is taken. A policy
that no machine can obey is among them. Everything follows from the generator's seed.
"""

from dataclasses import replace
from random import Random  # noqa: TID251  (seeded, for tests)

from consent.decide import Request, Standing, State
from consent.purposes import CARDIOVASCULAR, CORONARY, DS, GRU, HEART, HMB, METHODS, NRES, POA, Use
from coop.documents.provision import TIME_MAX, Policy, Provision

NOON = 1_800_000_000
ACTIONS = [Use.TRAIN, Use.EVALUATE, Use.INFER]
PURPOSES = [NRES, GRU, HMB, POA, HEART, CORONARY]
MODIFIERS = ["DUO:0000018", "DUO:0000019", "DUO:0000029", "DUO:0000028"]
CLASSES = ["cardiology", "oncology"]
ACTORS = ["heart", "lung", "University", "Company", "commercial"]
TIMES = [0, NOON - 1, NOON, NOON + 1, TIME_MAX]
DATES = [0, 100, 200, TIME_MAX]


def some(random: Random, words: list[str], *, most: int = 2) -> list[str]:
    """Up to `most` of the words; often none, which means any."""
    return random.sample(words, random.choice([0, 0, 0, *range(1, most + 1)]))


def ordered(random: Random, values: list[int], whole: float) -> tuple[int, int]:
    """Two of the values in order; all of time with probability `whole`."""
    if random.random() < whole:
        return 0, TIME_MAX
    first, second = sorted(random.sample(values, 2))
    return first, second


def provision(random: Random, depth: int = 3, kind: str | None = None) -> Provision:
    """A rule with up to `depth` levels below it."""
    kind = kind or random.choice(["permit", "deny"])
    purposes = some(random, PURPOSES)
    if kind == "permit" and purposes and random.random() < 0.8:
        purposes += some(random, MODIFIERS)
    start, end = ordered(random, TIMES, 0.7)
    data_start, data_end = ordered(random, DATES, 0.8 if kind == "permit" else 1)
    children = random.choice([0, 0, 1, 2, 3]) if depth else 0
    return Provision(
        type=kind,
        start=start,
        end=end,
        actions=some(random, ACTIONS),
        purposes=purposes,
        classes=some(random, CLASSES, most=1),
        actors=some(random, ACTORS),
        data_start=data_start,
        data_end=data_end,
        children=[provision(random, depth - 1) for _ in range(children)],
    )


def policy(random: Random, depth: int = 5) -> Policy:
    """A policy of up to `depth` levels; now and then one that is refused as a whole."""
    open_root = random.random() < 0.7
    root = (
        Provision(
            type=random.choice(["permit", "deny", "deny"]),
            children=[provision(random, depth - 2) for _ in range(random.choice([1, 2, 2, 3]))],
        )
        if open_root
        else provision(random, depth - 1)
    )
    if random.random() < 0.02:
        root = Provision(type="deny", children=[root], actions=["sell"])
    return Policy(
        provision=root,
        epsilon_cap_micro=random.choice([None, None, None, 5]),
        min_cohort=random.choice([None, None, None, 100]),
    )


def standing(held: Policy | None, state: State = State.ACTIVE) -> Standing:
    """A chain that stands like this."""
    return Standing(state=state, policy=held, head_digest="0" * 64, sequence=1, log_index=0)


def random_standing(random: Random) -> Standing:
    """Mostly active; now and then objected, or given by somebody whose word waits or is over."""
    state = State.ACTIVE if random.random() < 0.93 else random.choice(list(State))
    starts_at, ends_at = ordered(random, TIMES, 0.9)
    return replace(
        standing(policy(random) if random.random() < 0.98 else None, state),
        objected=random.random() < 0.03,
        starts_at=starts_at,
        ends_at=ends_at,
    )


def request(random: Random) -> Request:
    """A question; now and then one that nobody can permit."""
    purpose = random.choice([NRES, GRU, HMB, HMB, POA, DS, DS, DS])
    data_start, data_end = ordered(random, [0, 50, 100, 150, 200, TIME_MAX], 0.5)
    return Request(
        action="sell" if random.random() < 0.01 else random.choice(ACTIONS),
        purpose="DUO:9999999" if random.random() < 0.01 else purpose,
        disease=random.choice([None, HEART, CORONARY, CARDIOVASCULAR, "MONDO:9999999"])
        if purpose == DS and random.random() < 0.05
        else random.choice([HEART, CORONARY, CARDIOVASCULAR])
        if purpose == DS
        else None,
        further=tuple(
            some(random, [GRU, HMB, POA, HEART, CORONARY, METHODS, "DUO:0000034", "DUO:0000001"])
            if random.random() < 0.3
            else []
        ),
        data_class=random.choice([*CLASSES, "other"]),
        study_id=random.choice(["heart", "lung", "other", "commercial"]),
        organisation=random.choice(["University", "Company", "Other"]),
        commercial=random.random() < 0.3,
        at=random.choice([*[NOON] * 6, 0, NOON - 2, NOON - 1, NOON + 1, TIME_MAX]),
        epsilon_micro=random.choice([None, 5, 5, 6]),
        population=random.choice([None, 99, *[100] * 6]),
        data_start=data_start,
        data_end=data_end,
    )
