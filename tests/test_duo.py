"""DUO as an order: every purpose must be covered, and where we differ from the Broad matcher."""

import csv
import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from beside import published
from broad_matcher import ABSTAIN, APPROVE, DENY, DataUse, match
from hypothesis import given
from hypothesis import strategies as st
from mondo_extract import compared

from consent import mondo
from consent.columns import Columns
from consent.decide import Effect, Request, Standing, State, decide
from consent.duo import ASSERTED_MAX, Reading, asserted
from consent.mondo import DISEASES, above
from consent.policy import PolicyError, check
from consent.purposes import (
    ANCESTRY,
    BIOMEDICAL,
    CLINICAL_CARE,
    CORONARY,
    DISEASE,
    DRUGS,
    DS,
    GENETIC,
    GRU,
    HEART,
    HMB,
    METHODS,
    MODIFIER,
    MODIFIERS,
    NOT_FOR_PROFIT,
    NOTHING,
    NRES,
    OBLIGATIONS,
    OBSOLETE,
    PEOPLE_JUDGE,
    PERMISSION,
    PERMISSIONS,
    POA,
    PURPOSES,
    closure,
)
from coop.documents.provision import Policy, Provision

SPEC = Path(__file__).parent.parent / "docs/spec/duo.md"
CANCER, BREAST = "MONDO:0004992", "MONDO:0004989"
REQUEST = Request(
    action="train-federated",
    purpose=HMB,
    data_class="cardiology",
    study_id="heart",
    organisation="University",
    commercial=False,
    at=1_800_000_000,
)

UNSET_YES_NO = (None, True, False)
STATED = [
    DataUse(general=g, health=h, ancestry=a, methods=m, non_profit=n, diseases=d)
    for g, h, a, m, n, d in itertools.product(
        *[UNSET_YES_NO] * 4, (None, True), ((), (CANCER,), (BREAST,), (HEART,))
    )
]
"""Every purpose the Broad form can state with these diseases: 3·3·3·3·2·4."""
ALLOWED = [
    replace(DataUse(**allows), non_profit=limit)
    for allows in (
        {"general": True},
        {"health": True},
        {"ancestry": True},
        {"diseases": (CANCER,)},
        {"diseases": (BREAST,)},
    )
    for limit in (None, True)
]
CLASSES = {
    "all research of one field's data": (
        "nothing there asks whether the data allow all research unless they say health research; "
        "data that allow one field do not allow every field"
    ),
    "all research hidden by health research": (
        "both are asserted, and the covered one is enough there; here each must be covered"
    ),
    "only methods of one disease's data": (
        "a purpose without a disease is found to match any disease; method development is part of "
        "health, ancestry or general research, "
        "and of one disease's research only beside that research"
    ),
    "a no that is not unset": (
        "a purpose that says no to a field is held against the data as if it had asked for it; "
        "who does not ask for something is not refused for it"
    ),
    "nothing asserted, found to match": "nothing is asserted, so there is nothing to approve",
    "nothing asserted, found not to match": (
        "nothing is asserted, so there is nothing to deny: people ask what the study is for"
    ),
}
"""Why the answers differ."""


def codes(use: DataUse) -> tuple[str, ...]:
    named = ((use.general, GRU), (use.health, HMB), (use.ancestry, POA), (use.methods, METHODS))
    return (*(code for stated, code in named if stated), *use.diseases)


def request_of(use: DataUse) -> Request:
    first, *rest = codes(use) or ("",)
    purpose, disease = (DS, first) if first.startswith("MONDO:") else (first, None)
    return replace(
        REQUEST,
        purpose=purpose,
        disease=disease,
        further=tuple(rest),
        commercial=not use.non_profit,
    )


def standing(*purposes: str) -> Standing:
    policy = Policy(provision=Provision(type="permit", purposes=list(purposes)))
    check(policy)
    return Standing(
        state=State.ACTIVE, policy=policy, head_digest="0" * 64, sequence=1, log_index=0
    )


def standing_of(use: DataUse) -> Standing:
    return standing(*codes(use), *([NOT_FOR_PROFIT] if use.non_profit else []))


def in_the_order(use: DataUse, data: DataUse) -> str:
    """The order itself, from sets of imaginable studies: below is inside."""
    studies = {
        *((field, disease) for field in ("health",) for disease in ("heart", "breast", "other")),
        *((field, disease) for field in ("health",) for disease in ("cancer",)),
        ("ancestry", ""),
        ("birds", ""),
    }
    health = {study for study in studies if study[0] == "health"}
    kinds = {HEART: {"heart"}, BREAST: {"breast"}, CANCER: {"breast", "cancer"}}

    def inside(fields: DataUse) -> list[set[tuple[str, str]]]:
        sets = [studies] if fields.general else []
        sets += [health] if fields.health else []
        sets += [{("ancestry", "")}] if fields.ancestry else []
        return sets + [{s for s in health if s[1] in kinds[code]} for code in fields.diseases]

    asked, allowed = inside(use), inside(data)
    if not asked and not use.methods:
        return ABSTAIN
    if data.non_profit and not use.non_profit:
        return DENY
    if not asked:
        return APPROVE if data.general or data.health or data.ancestry else DENY
    return APPROVE if all(any(one <= other for other in allowed) for one in asked) else DENY


def class_of(use: DataUse, data: DataUse, broad: str, ours: str) -> str:
    first, second, third, fourth, fifth, sixth = CLASSES
    match (broad, ours):
        case ("approve", "deny") if use.general:
            return second if data.health else first
        case ("approve", "deny") if codes(use) == (METHODS,) and data.diseases:
            return third
        case ("deny", "approve") if match_unset(use, data) == APPROVE:
            return fourth
        case ("approve", "abstain"):
            return fifth
        case ("deny", "abstain"):
            return sixth
    return "in no class"


def match_unset(use: DataUse, data: DataUse) -> str:
    """What the Broad matcher says of the same purpose without its noes."""
    fields = ("general", "health", "ancestry", "methods")
    return match(replace(use, **{f: getattr(use, f) or None for f in fields}), data)


def ours_of(use: DataUse, data: DataUse) -> str:
    effect = decide(standing_of(data), request_of(use)).effect
    return {Effect.PERMIT: APPROVE, Effect.DENY: DENY, Effect.ABSTAIN: ABSTAIN}[effect]


def said(use: DataUse) -> str:
    fields = {"general": "GRU", "health": "HMB", "ancestry": "POA", "methods": "methods"}
    words = [word for field, word in fields.items() if getattr(use, field)]
    words += [f"no {word}" for field, word in fields.items() if getattr(use, field) is False]
    words += [DISEASES[code][0] for code in use.diseases]
    return ", ".join([*words, *(["not for profit"] if use.non_profit else [])]) or "nothing"


def divergences() -> list[str]:
    """The table of docs/spec/duo.md."""
    found: dict[tuple[str, str, str], list[tuple[DataUse, DataUse]]] = {}
    for use, data in itertools.product(STATED, ALLOWED):
        broad, ours = match(use, data), ours_of(use, data)
        if broad != ours:
            found.setdefault((class_of(use, data, broad, ours), broad, ours), []).append(
                (use, data)
            )
    lines = []
    for name, why in CLASSES.items():
        for (found_name, broad, ours), pairs in found.items():
            if found_name == name:
                use, data = min(pairs, key=lambda pair: (len(said(pair[0])), len(said(pair[1]))))
                case = f"{said(use)} / {said(data)}"
                lines.append(f"| {name} | {broad} | {ours} | {len(pairs)} | {case} | {why} |")
    assert {name for name, _, _ in found} == set(CLASSES)
    return lines


def test_every_answer_is_the_orders_own_and_none_of_6480_fails_open():
    pairs = list(itertools.product(STATED, ALLOWED))
    assert len(pairs) == 648 * 10
    for use, data in pairs:
        assert ours_of(use, data) == in_the_order(use, data), (use, data)


def test_where_we_differ_from_the_broad_matcher_stands_in_the_specification():
    table = divergences()
    text = SPEC.read_text()
    missing = [line for line in table if line not in text]
    assert not missing, "put these lines into docs/spec/duo.md:\n" + "\n".join(table)
    written = [line for line in text.splitlines() if re.search(r"\| (approve|deny) \|", line)]
    assert len(written) == len(table), "docs/spec/duo.md lists a class that is no more"


def test_every_duo_code_is_known_and_said_in_the_specification():
    text = SPEC.read_text()
    with (published("duo") / "duo.csv").open(encoding="utf-8") as lines:
        terms = {row["id"] for row in csv.DictReader(lines)}
    known = {*PERMISSIONS, DS, *MODIFIERS, PERMISSION, MODIFIER, *OBSOLETE}
    assert terms <= known
    assert known - terms == set(OBSOLETE)
    assert [code for code in known | {*PURPOSES, *PEOPLE_JUDGE} if code not in text] == []


@pytest.mark.parametrize("code", sorted(PEOPLE_JUDGE))
def test_what_no_permission_speaks_of_goes_to_people_whatever_is_allowed(code: str):
    everything = standing(NRES)
    for request in (
        replace(REQUEST, purpose=code),
        replace(REQUEST, further=(code,)),
    ):
        answer = decide(everything, request)
        assert answer.effect is Effect.ABSTAIN
        assert answer.reasons == ("request.for-people",)


@pytest.mark.parametrize("code", sorted(NOTHING))
def test_a_study_that_asserts_nothing_goes_to_people(code: str):
    answer = decide(standing(NRES), replace(REQUEST, purpose=code))
    assert (answer.effect, answer.reasons) == (Effect.ABSTAIN, ("request.nothing-asserted",))
    assert not decide(None, replace(REQUEST, purpose=code)).permits
    assert decide(standing(HMB), replace(REQUEST, purpose=code, further=(HEART,))).permits


def test_one_purpose_nobody_consented_to_keeps_the_record_out():
    heart = standing(HEART, POA)
    both = replace(REQUEST, purpose=DS, disease=CORONARY, further=(POA,))
    assert decide(heart, both).permits
    assert not decide(standing(HEART), both).permits
    assert not decide(heart, replace(both, further=(POA, HMB))).permits
    assert not decide(heart, replace(both, further=(POA, "DUO:9999999"))).permits
    assert not decide(heart, replace(both, further=(POA, "heart"))).permits


def test_several_purposes_oblige_to_what_each_of_them_obliges_to():
    part = {"type": "permit"}
    policy = Policy(
        provision=Provision(
            type="deny",
            children=[
                Provision(**part, purposes=[HEART, "DUO:0000019"], data_end=2000),
                Provision(**part, purposes=[POA, "DUO:0000029"], data_start=1000),
            ],
        )
    )
    held = replace(standing(NRES), policy=policy)
    both = replace(REQUEST, purpose=DS, disease=HEART, further=(POA,))
    answer = decide(held, replace(both, data_start=1000, data_end=2000))
    assert answer.permits
    assert answer.obligations == ("publish", "return-results")
    assert answer.data_window == (1000, 2000)
    assert not decide(held, replace(both, data_start=999, data_end=2000)).permits


def test_words_for_research_ask_for_the_permission_above_them():
    for word in (BIOMEDICAL, GENETIC, DRUGS):
        assert decide(standing(HMB), replace(REQUEST, purpose=word)).permits
        assert not decide(standing(HEART), replace(REQUEST, purpose=word)).permits
    assert decide(standing(POA), replace(REQUEST, purpose=ANCESTRY)).permits
    assert decide(standing(HEART), replace(REQUEST, purpose=DISEASE, disease=CORONARY)).permits
    assert not decide(standing(HEART), replace(REQUEST, purpose=DISEASE)).permits


def test_what_she_denies_stays_denied_under_another_word():
    denied = Provision(type="deny", purposes=[HEART])
    policy = Policy(provision=Provision(type="permit", children=[denied]))
    for word in (HMB, BIOMEDICAL, GENETIC, DRUGS, DS, DISEASE):
        request = replace(REQUEST, purpose=word, disease=HEART)
        assert not decide(replace(standing(NRES), policy=policy), request).permits, word


def test_clinical_care_beside_a_permission_neither_widens_nor_narrows():
    assert decide(standing(HMB, CLINICAL_CARE), REQUEST).permits
    assert not decide(standing(HEART, CLINICAL_CARE), REQUEST).permits


def test_obsolete_and_abstract_codes_cannot_be_signed():
    for code in (*OBSOLETE, PERMISSION, MODIFIER, METHODS, *PEOPLE_JUDGE):
        with pytest.raises(PolicyError, match="purpose we know"):
            standing(code)


def test_every_modifier_is_judged_obliges_or_goes_to_people():
    for code in MODIFIERS:
        answer = decide(standing(HMB, code), REQUEST)
        assert answer.effect is not Effect.DENY
        if code in OBLIGATIONS:
            assert answer.obligations == (OBLIGATIONS[code],)
        paying = decide(standing(HMB, code), replace(REQUEST, commercial=True))
        assert answer.permits or paying.effect is Effect.ABSTAIN


@given(st.lists(st.sampled_from([*PURPOSES, *PEOPLE_JUDGE, HEART, "", "x"]), max_size=4))
def test_a_further_purpose_never_widens(further: list[str]):
    for held in (standing(HMB), standing(HEART, POA), standing(NRES)):
        wide = decide(held, replace(REQUEST, purpose=DS, disease=HEART))
        narrow = decide(held, replace(REQUEST, purpose=DS, disease=HEART, further=tuple(further)))
        assert wide.permits or not narrow.permits


def test_a_long_list_of_purposes_is_not_read():
    assert asserted(HMB, None, (HEART,) * ASSERTED_MAX).reading is Reading.CLEAR
    assert asserted(HMB, None, (HEART,) * (ASSERTED_MAX + 1)).reading is Reading.UNKNOWN


def test_whole_cohorts_are_decided_alike_whatever_is_asserted():
    held = {
        f"{number:026}": replace(
            standing(*purposes), state=State.ACTIVE if number % 5 else State.REVOKED
        )
        for number, purposes in enumerate(
            [
                *itertools.combinations(
                    [GRU, HMB, POA, HEART, CANCER, "DUO:0000012", "DUO:0000019"], 3
                )
            ]
        )
        if set(purposes) - MODIFIERS
    }
    columns = Columns.build(held.items())
    for use in STATED[::7]:
        for request in (request_of(use), replace(request_of(use), data_start=5, data_end=5)):
            answers = columns.answers(request)
            for line, pid in enumerate(answers.pids):
                one = decide(held[pid], request)
                assert answers.effect(line) is one.effect
                assert answers.obligations(line) == one.obligations
                assert answers.window(line) == one.data_window
    for code in (*NOTHING, *PEOPLE_JUDGE):
        answers = columns.answers(replace(REQUEST, purpose=code))
        for line, pid in enumerate(answers.pids):
            one = decide(held[pid], replace(REQUEST, purpose=code))
            assert answers.effect(line) is one.effect
        assert not answers.permitted()


# -- diseases --------------------------------------------------------------------------------------


def test_the_disease_table_is_the_pinned_one():
    table = Path(mondo.__file__).with_name("mondo.tsv").read_bytes()
    assert hashlib.sha256(table).hexdigest() == mondo.SHA256
    assert mondo.RELEASE.encode() in table.splitlines()[0]
    assert b"CC BY 4.0" in table.splitlines()[0]
    assert f"{len(DISEASES)} of its".encode() in table


def test_every_disease_has_its_place_and_none_is_above_itself():
    assert len(DISEASES) > 500
    for code, (label, parents) in DISEASES.items():
        assert mondo.is_disease(code)
        assert label
        assert list(parents) == sorted(set(parents))
        for parent in parents:
            assert parent in DISEASES
            assert code not in above(parent)
            assert above(parent) < above(code)


def test_known_diseases_stand_where_a_physician_expects_them():
    kinds = {
        "MONDO:0005068": HEART,  # myocardial infarction
        CORONARY: HEART,
        HEART: "MONDO:0004995",  # cardiovascular disorder
        "MONDO:0005148": "MONDO:0005015",  # type 2 diabetes, diabetes
        "MONDO:0005061": "MONDO:0008903",  # lung adenocarcinoma, lung cancer
        BREAST: CANCER,
        "MONDO:0004981": HEART,  # atrial fibrillation
        "MONDO:0005301": "MONDO:0005071",  # multiple sclerosis, nervous system
    }
    for low, high in kinds.items():
        assert high in above(low)
        assert low not in above(high)
    assert "MONDO:0005071" not in above("MONDO:0005148")
    assert above("MONDO:9999999") == {"MONDO:9999999"}
    assert closure(DS, "MONDO:9999999") == {"MONDO:9999999", HMB, GRU, NRES}


def test_a_table_that_says_other_than_the_release_is_found_out():
    release = {
        code: {"label": label, "deprecated": False, "ancestors": dict.fromkeys(parents, 1)}
        for code, (label, parents) in DISEASES.items()
    }
    assert compared(release) == []
    release[HEART] = {**release[HEART], "label": "another", "ancestors": {}}
    release[CORONARY] = {**release[CORONARY], "deprecated": True}
    del release[BREAST]
    assert len(compared(release)) == 4
