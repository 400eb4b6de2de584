"""Consent is decided in one place: total, default deny, half-open in time."""

from dataclasses import replace

import pytest
from budget import budget
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.decide import Decision, Effect, Request, Standing, State, decide
from consent.policy import Preset, preset
from consent.purposes import (
    CARDIOVASCULAR,
    CORONARY,
    DS,
    GRU,
    HEART,
    HMB,
    MODIFIERS,
    NRES,
    POA,
    Use,
    closure,
)
from coop.documents.provision import TIME_MAX, Policy, Provision

NOON = 1_800_000_000
REQUEST = Request(
    action="train-federated",
    purpose=HMB,
    data_class="cardiology",
    study_id="heart",
    organisation="University",
    commercial=False,
    at=NOON,
)


def standing(policy: Policy | None, state: State = State.ACTIVE) -> Standing:
    return Standing(state=state, policy=policy, head_digest="0" * 64, sequence=1, log_index=0)


def permit(**limits: object) -> Policy:
    return Policy(provision=Provision(type="permit", **limits))


def effect(policy: Policy, **changes: object) -> Effect:
    return decide(standing(policy), replace(REQUEST, **changes)).effect


words = st.sampled_from(
    [*Use, NRES, GRU, HMB, DS, POA, CORONARY, *sorted(MODIFIERS), "commercial", "heart", "", "x"]
)
provisions = st.recursive(
    st.builds(
        Provision,
        type=st.sampled_from(["permit", "deny"]),
        start=st.sampled_from([0, NOON, NOON + 1]),
        end=st.sampled_from([TIME_MAX, NOON, NOON + 1]),
        actions=st.lists(words, max_size=3),
        purposes=st.lists(words, max_size=3),
        classes=st.lists(words, max_size=2),
        actors=st.lists(words, max_size=2),
    ),
    lambda children: st.builds(
        Provision, type=st.sampled_from(["permit", "deny"]), children=st.lists(children, max_size=3)
    ),
    max_leaves=8,
)
requests = st.builds(
    Request,
    action=words,
    purpose=words,
    data_class=words,
    study_id=words,
    organisation=words,
    commercial=st.booleans(),
    at=st.integers(NOON - 2, NOON + 2),
    disease=st.none() | words,
    epsilon_micro=st.none() | st.integers(0, 10),
)
standings = st.none() | st.builds(
    standing,
    st.none() | st.builds(Policy, provision=provisions, epsilon_cap_micro=st.none() | st.just(5)),
    st.sampled_from(State),
)


@given(standings, requests)
@settings(max_examples=budget(300, 20_000))
def test_every_question_has_an_answer_and_only_a_living_consent_permits(held, request):
    answer = decide(held, request)
    assert isinstance(answer, Decision)
    assert answer == decide(held, request)
    assert answer.reasons
    if answer.permits:
        assert held is not None
        assert held.state is State.ACTIVE
        assert request.action in set(Use)
        assert closure(request.purpose, request.disease)


@given(provisions, requests)
@settings(max_examples=budget(300, 20_000))
def test_one_more_denial_never_widens(provision, request):
    before = decide(standing(Policy(provision=provision)), request)
    narrowed = Provision(type="deny", children=[provision, Provision(type="deny")])
    assert not decide(standing(Policy(provision=narrowed)), request).permits
    if not before.permits:
        wrapped = Provision(type="deny", children=[provision])
        assert not decide(standing(Policy(provision=wrapped)), request).permits


@pytest.mark.parametrize("state", [State.NONE, State.SUSPENDED, State.REVOKED])
def test_only_an_active_chain_permits(state):
    assert decide(standing(permit()), REQUEST).permits
    assert not decide(standing(permit(), state), REQUEST).permits
    assert not decide(None, REQUEST).permits


def test_periods_are_half_open_at_both_ends():
    policy = permit(start=NOON, end=NOON + 10)
    assert effect(policy, at=NOON - 1) is Effect.DENY
    assert effect(policy, at=NOON) is Effect.PERMIT
    assert effect(policy, at=NOON + 9) is Effect.PERMIT
    assert effect(policy, at=NOON + 10) is Effect.DENY


def test_a_permission_covers_what_is_below_it_and_nothing_above():
    assert effect(permit(purposes=[GRU]), purpose=HMB) is Effect.PERMIT
    assert effect(permit(purposes=[HMB]), purpose=GRU) is Effect.DENY
    assert effect(permit(purposes=[HMB]), purpose=POA) is Effect.DENY
    heart = permit(purposes=[HEART])
    assert effect(heart, purpose=DS, disease=CORONARY) is Effect.PERMIT
    assert effect(heart, purpose=DS, disease=CARDIOVASCULAR) is Effect.DENY
    assert effect(heart, purpose=HMB, disease=HEART) is Effect.DENY
    assert effect(permit(purposes=[HMB]), purpose=DS, disease="MONDO:9999999") is Effect.PERMIT


def test_what_is_not_understood_is_denied():
    assert effect(permit(), purpose="DUO:9999999") is Effect.DENY
    assert effect(permit(), purpose=DS) is Effect.DENY
    assert effect(permit(), purpose=DS, disease="flu") is Effect.DENY
    assert effect(permit(), action="sell") is Effect.DENY
    assert effect(permit(purposes=[DS]), purpose=HMB) is Effect.DENY  # a malformed policy


def test_consent_to_training_is_not_consent_to_inference():
    policy = preset(Preset.TRAIN_ONLY)
    assert effect(policy, action="train-federated") is Effect.PERMIT
    assert effect(policy, action="infer-aggregate") is Effect.DENY
    assert effect(preset(Preset.ALL_RESEARCH), action="infer-aggregate") is Effect.PERMIT


def test_companies_are_kept_out_unless_she_lets_them_in():
    for name in (Preset.ALL_RESEARCH, Preset.NO_COMPANIES, Preset.TRAIN_ONLY):
        assert effect(preset(name)) is Effect.PERMIT
        assert effect(preset(name), commercial=True) is Effect.DENY
    assert effect(preset(Preset.WITH_COMPANIES), commercial=True) is Effect.PERMIT


def test_an_organisation_cannot_claim_the_word_commercial():
    only = permit(actors=["commercial"])
    assert effect(only, organisation="commercial") is Effect.DENY
    assert effect(only, study_id="commercial") is Effect.DENY
    assert effect(only, commercial=True) is Effect.PERMIT


def test_refusing_is_a_decision_that_permits_nothing():
    for action in Use:
        assert effect(preset(Preset.REFUSE), action=action) is Effect.DENY


def test_a_study_or_disease_of_her_choice_is_all_she_gives():
    this = preset(Preset.THIS_STUDY, study_id="heart")
    assert effect(this) is Effect.PERMIT
    assert effect(this, study_id="lung") is Effect.DENY
    disease = preset(Preset.DISEASE_ONLY, disease=HEART)
    assert effect(disease, purpose=DS, disease=CORONARY) is Effect.PERMIT
    assert effect(disease, purpose=HMB) is Effect.DENY


def test_what_no_machine_can_judge_is_abstained_from_and_opens_nothing():
    policy = permit(purposes=[GRU, "DUO:0000028"])
    answer = decide(standing(policy), REQUEST)
    assert answer.effect is Effect.ABSTAIN
    assert not answer.permits
    both = Policy(
        provision=Provision(
            type="deny",
            children=[policy.provision, Provision(type="permit", purposes=[GRU])],
        )
    )
    assert effect(both) is Effect.ABSTAIN
    exception = Policy(
        provision=Provision(
            type="permit",
            purposes=[GRU, "DUO:0000028"],
            children=[Provision(type="permit", actions=["evaluate"])],
        )
    )
    assert effect(exception, action="evaluate") is Effect.ABSTAIN


def test_obligations_and_her_own_ceiling_travel_with_the_permit():
    policy = Policy(
        provision=Provision(type="permit", purposes=[GRU, "DUO:0000019", "DUO:0000029"]),
        epsilon_cap_micro=500_000,
    )
    assert effect(policy, epsilon_micro=None) is Effect.DENY, "an unknown cost is above her ceiling"
    answer = decide(standing(policy), replace(REQUEST, epsilon_micro=1))
    assert answer.obligations == ("publish", "return-results")
    assert answer.epsilon_cap_micro == 500_000
    assert effect(policy, epsilon_micro=500_000) is Effect.PERMIT
    assert effect(policy, epsilon_micro=500_001) is Effect.DENY


def test_a_denying_sibling_beats_a_permitting_one():
    tree = Provision(
        type="permit",
        children=[Provision(type="permit"), Provision(type="deny", classes=["cardiology"])],
    )
    assert effect(Policy(provision=tree)) is Effect.DENY
    assert effect(Policy(provision=tree), data_class="oncology") is Effect.PERMIT
