"""Does a change allow more? Never wrongly no; and exact for what people sign."""

from dataclasses import replace

import pytest
from budget import budget
from random_policies import NOON, Random, policy, random_standing, request, standing

from consent.decide import State, decide
from consent.policy import Preset, preset, walk
from consent.purposes import CORONARY, HEART, HMB, Use
from consent.widening import KINDS_MAX, _kinds, more, widens
from coop.documents.provision import TIME_MAX, Policy, Provision

WIDTH = [Preset.REFUSE, Preset.TRAIN_ONLY, Preset.ALL_RESEARCH, Preset.WITH_COMPANIES]
"""Ready-made choices, each wider than the one before."""


def made(choice: Preset, **said: object) -> Policy:
    return preset(choice, disease=HEART, study_id="heart", **said)


def narrowed(random: Random, held: Policy) -> Policy:
    """A policy that cannot allow more than `held`, in one of the ways people narrow."""
    root = held.provision
    deny = Provision(type="deny", actors=[random.choice(["Company", "heart", "commercial"])])
    changes = [
        {"provision": Provision(type="deny", children=[root, deny])},
        {"provision": Provision(type="deny", children=[Provision(type="deny"), root])},
        {"epsilon_cap_micro": min(held.epsilon_cap_micro or 9, 4)},
        {"min_cohort": max(held.min_cohort or 0, 500)},
    ]
    return held.model_copy(update=random.choice(changes))


@pytest.mark.parametrize("seed", range(budget(1, 20)))
def test_what_is_said_not_to_widen_allows_nothing_more(seed: int):
    """Against sampled decisions: a request allowed now was allowed before, with no fewer duties."""
    random, narrow = Random(seed), 0
    for _ in range(budget(300, 3_000)):
        old = policy(random, 3)
        new = narrowed(random, old) if random.random() < 0.6 else policy(random, 2)
        if more(old, new):
            continue
        narrow += 1
        for _ in range(budget(30, 100)):
            asked = request(random)
            now, before = decide(standing(new), asked), decide(standing(old), asked)
            assert before.permits or not now.permits, (old, new, asked)
            assert not now.permits or set(before.obligations) <= set(now.obligations)
    assert narrow > 30


@pytest.mark.parametrize("seed", range(budget(1, 10)))
def test_what_is_said_to_widen_allows_something_more(seed: int):
    """Small policies, that are compared whole: some request is allowed now and was not before."""
    random, wider, shown = Random(seed), 0, 0
    for _ in range(budget(60, 600)):
        old, new = policy(random, 2), policy(random, 2)
        both = [part for made in (old, new) for _, _, part in walk(made.provision)]
        limited = old.epsilon_cap_micro or old.min_cohort
        if limited or _kinds(both) is None or not more(old, new):
            continue
        wider += 1
        asked = (request(random) for _ in range(2_000))
        shown += any(
            decide(standing(new), one).permits and not decide(standing(old), one).permits
            for one in asked
        )
    # Sampled requests miss rare kinds, and fewer duties widen, too.
    assert shown > wider * 0.7 > 5


def test_the_ready_made_choices_stand_in_their_order():
    for place, old in enumerate(WIDTH):
        for other, new in enumerate(WIDTH):
            assert more(made(old), made(new)) is (other > place), (old, new)
    assert more(made(Preset.THIS_STUDY), made(Preset.ALL_RESEARCH))
    assert not more(made(Preset.ALL_RESEARCH), made(Preset.THIS_STUDY))
    assert more(made(Preset.DISEASE_ONLY), made(Preset.ALL_RESEARCH))
    assert not more(made(Preset.ALL_RESEARCH), made(Preset.DISEASE_ONLY))


def test_each_axis_is_looked_at():
    whole = Provision(type="permit")
    parts = [
        {"actions": [Use.TRAIN]}, {"purposes": [HMB]}, {"purposes": [HEART]},
        {"classes": ["cardiology"]}, {"actors": ["heart"]}, {"start": NOON}, {"end": NOON},
        {"data_start": 5}, {"data_end": 5}, {"purposes": [HMB, "DUO:0000018"]},
        {"purposes": [HMB, "DUO:0000019"]}, {"purposes": [HMB, "DUO:0000028"]},
        {"children": [Provision(type="deny", actors=["heart", "lung"])]},
    ]  # fmt: skip
    for part in parts:
        small = Policy(provision=Provision(type="permit", **part))
        base = Provision(type="permit", purposes=part["purposes"][:1]) if "DUO:0000019" in part.get(
            "purposes", []) else whole  # fmt: skip
        assert more(small, Policy(provision=base)), part
        assert not more(Policy(provision=base), small), part
    heart, coronary = (
        Policy(provision=Provision(type="permit", purposes=[code])) for code in (HEART, CORONARY)
    )
    assert (more(heart, coronary), more(coronary, heart)) == (False, True)
    for limit, values in (("epsilon_cap_micro", (4, 5, None)), ("min_cohort", (5, 4, None))):
        policies = [Policy(provision=whole, **{limit: value}) for value in values]
        for place, old in enumerate(policies):
            for other, new in enumerate(policies):
                assert more(old, new) is (other > place), (limit, place, other)


def test_in_doubt_it_widens():
    names = [f"study-{number}" for number in range(60)]
    large = Policy(provision=Provision(type="permit", actors=names))
    fewer = Policy(provision=Provision(type="permit", actors=names[:-1]))
    assert len(names) ** 2 > KINDS_MAX
    assert more(large, fewer)
    assert not more(large, large.model_copy())


def test_a_policy_no_machine_can_obey_allows_nothing():
    odd = Policy(provision=Provision(type="permit", actions=["sell"]))
    assert more(odd, made(Preset.ALL_RESEARCH))
    assert not more(made(Preset.ALL_RESEARCH), odd)


def test_a_standing_widens_by_time_state_and_death_too():
    held = standing(made(Preset.ALL_RESEARCH))
    less = replace(held, policy=made(Preset.TRAIN_ONLY))
    assert not widens(held, less)
    assert widens(less, held)
    assert widens(None, less)
    for before in (State.NONE, State.SUSPENDED, State.REVOKED):
        assert widens(replace(held, state=before), less)
        assert not widens(less, replace(held, state=before))
    assert widens(replace(held, objected=True), less)
    assert not widens(held, replace(held, objected=True))
    assert widens(replace(held, ends_at=NOON), replace(less, ends_at=NOON + 1))
    assert widens(replace(held, starts_at=NOON), replace(less, starts_at=NOON - 1))
    assert not widens(held, replace(less, starts_at=NOON, ends_at=TIME_MAX - 1))
    assert widens(held, replace(less, on_death="continue"))
    assert not widens(replace(held, on_death="continue"), less)


def test_random_standings_agree_with_the_decisions():
    random = Random(11)
    for _ in range(budget(300, 5_000)):
        before = random_standing(random)
        after = replace(before, policy=before.policy and narrowed(random, before.policy))
        if widens(before, after):
            continue
        for _ in range(10):
            asked = request(random)
            assert decide(before, asked).permits or not decide(after, asked).permits
