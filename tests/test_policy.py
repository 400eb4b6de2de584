"""A policy is obeyed to the letter or refused as a whole."""

import csv

import pytest
from beside import published
from hypothesis import given
from hypothesis import strategies as st

from consent.policy import DEPTH_MAX, PolicyError, Preset, check, parse, preset, preset_of, summary
from consent.purposes import CORONARY, DS, GRU, HMB, MODIFIERS, NRES, PERMISSIONS, POA, closure
from coop.canonical import jcs, parse_object
from coop.documents.provision import Policy, Provision

ARGUMENTS = {Preset.DISEASE_ONLY: {"disease": CORONARY}, Preset.THIS_STUDY: {"study_id": "heart"}}


def made(name: Preset) -> Policy:
    return preset(name, **ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", list(Preset))
def test_every_ready_made_choice_is_valid_named_and_survives_the_wire(name):
    policy = made(name)
    check(policy)
    assert preset_of(policy) == name
    wire = parse_object(jcs(policy.model_dump(mode="json", exclude_none=True)))
    assert parse(wire) == policy


def test_ready_made_choices_differ_and_say_so_in_words():
    texts = {str(summary(made(name))) for name in Preset}
    assert len(texts) == len(Preset)
    assert summary(made(Preset.REFUSE)) == [["My record may", "not be used for research"]]
    assert ["Never by", "companies"] in summary(made(Preset.ALL_RESEARCH))
    capped = preset("all-research", epsilon_cap_micro=1_500_000)
    assert ["Privacy cost per study at most", "ε 1.5"] in summary(capped)


def test_a_choice_that_needs_more_says_what():
    for name, field in (("disease-only", "disease"), ("this-study", "study_id"), ("x", "preset")):
        with pytest.raises(PolicyError, match=field):
            preset(name)


@pytest.mark.parametrize(
    ("provision", "field"),
    [
        ({"type": "permit", "actions": ["train"]}, "actions"),
        ({"type": "permit", "purposes": ["DUO:0000001"]}, "purposes"),
        ({"type": "permit", "purposes": [DS]}, "purposes"),
        ({"type": "permit", "purposes": ["MONDO:12"]}, "purposes"),
        ({"type": "permit", "purposes": ["DUO:0000046"]}, "purposes"),
        ({"type": "deny", "purposes": [GRU, "DUO:0000046"]}, "purposes"),
        ({"type": "permit", "start": 5, "end": 5}, "period"),
        ({"type": "permit", "actors": [""]}, "actors"),
        ({"type": "deny", "children": [{"type": "permit", "classes": [""]}]}, "children.0.classes"),
        ({"type": "maybe"}, "type"),
        ({"type": "permit", "action": []}, "action"),
        ({"type": "permit", "start": -1}, "start"),
    ],
)
def test_what_is_unknown_or_unclear_is_refused_by_name(provision, field):
    with pytest.raises(PolicyError, match=field):
        parse({"provision": provision})


def test_a_policy_too_deep_or_too_large_is_refused():
    deep = Provision(type="permit")
    for _ in range(DEPTH_MAX):
        deep = Provision(type="deny", children=[deep])
    with pytest.raises(PolicyError):
        check(Policy(provision=deep))
    leaf = Provision(type="permit", actions=["evaluate"])
    row = Provision(type="deny", children=[leaf] * 64)
    with pytest.raises(PolicyError):
        check(Policy(provision=Provision(type="deny", children=[row] * 3)))


@given(st.sampled_from([NRES, GRU, HMB, POA]), st.sampled_from([NRES, GRU, HMB, POA]))
def test_the_purposes_are_ordered(upper, lower):
    if upper in closure(lower) and lower in closure(upper):
        assert upper == lower
    for above in closure(lower):
        assert closure(above) <= closure(lower)


def test_the_codes_are_duos_own():
    with (published("duo") / "duo.csv").open() as file:
        known = {row["id"] for row in csv.DictReader(file)}
    assert known >= MODIFIERS | PERMISSIONS.keys() | {DS}
