"""FHIR consents are read strictly and written without loss."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from budget import budget
from fhir.resources.consent import Consent as R5Consent
from fhir.resources.R4B.consent import Consent as R4Consent
from fhir_vectors import HL7, checker, hl7, mii, policies
from hypothesis import given, settings

from consent.decide import Request, Standing, State, decide
from consent.fhir import mii as broad_consent
from consent.fhir import reader, times, words
from consent.fhir.record import Record, envelope_in, resource, state_at
from consent.fhir.refusals import (
    NotExpressibleError,
    UnreadableConsentError,
    UnsignedConsentError,
    Why,
)
from consent.fhir.words import Version
from consent.policy import Preset, preset
from consent.purposes import HMB
from coop.canonical import NotCanonicalError, parse_object
from coop.documents.provision import TIME_MAX, Policy, Provision

NOON = 1_800_000_000
PID = "a" * 26
VERSIONS = [Version.R4, Version.R5]
MODELS = {Version.R4: R4Consent, Version.R5: R5Consent}


def record(policy: Policy | None, **changes: Any) -> Record:
    fields = {
        "pid": PID,
        "site": "cleveland",
        "domain": "research",
        "did": "did:key:z6Mk",
        "custody": "self",
        "state": State.ACTIVE,
        "sequence": 3,
        "at": NOON,
        "event": "grant",
        "head_sha256": "0" * 64,
        "log_index": 7,
        "policy": policy,
        "envelope": {"signed": "event"},
    }
    return Record(**{**fields, **changes})


def sent(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def written(policy: Policy, version: Version) -> dict[str, Any]:
    """As it comes out of the wire, in force."""
    made = sent(resource(record(policy), version, 1))
    return {**made, "status": "active"}


def refused(document: dict[str, Any], version: Version = Version.R4) -> set[tuple[Why, str]]:
    with pytest.raises(UnreadableConsentError) as caught:
        reader.read(document, version)
    assert caught.value.issues
    return {(problem.why, problem.where) for problem in caught.value.problems}


def reasons(document: dict[str, Any], version: Version) -> set[str]:
    return {why.removeprefix("fhir.") for why, _ in refused(document, version)}


# -- without loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@given(policy=policies)
@settings(max_examples=budget(150, 20_000), deadline=None)
def test_what_is_written_is_read_back_as_the_same_policy(version, policy):
    assert reader.read(written(policy, version), version) == policy


@pytest.mark.parametrize("version", VERSIONS)
@given(policy=policies)
@settings(max_examples=budget(40, 2_000), deadline=None)
def test_what_is_written_is_fhir_to_others(version, policy):
    made = written(policy, version)
    MODELS[version].model_validate(made)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", list(Preset))
def test_every_ready_made_choice_travels(version, name):
    policy = preset(name, disease="MONDO:0005010", study_id="heart", epsilon_cap_micro=500_000)
    made = written(policy, version)
    MODELS[version].model_validate(made)
    assert reader.read(made, version) == policy
    assert envelope_in(made, version) == {"signed": "event"}


def test_r5_means_the_same_to_whoever_does_not_know_our_marks():
    """A level that only flips has the conditions of the rule below it, so it changes nothing."""
    policy = Policy(
        provision=Provision(
            type="permit",
            actions=["evaluate"],
            children=[Provision(type="permit", classes=["x"], purposes=[HMB, "DUO:0000019"])],
        )
    )
    made = written(policy, Version.R5)
    root = made["provision"][0]
    assert made["decision"] == "deny"
    assert [ext["url"] for ext in root["extension"]] == [words.ROOT]
    (flip,) = root["provision"]
    (rule,) = flip["provision"]
    assert flip["code"] == rule["code"]
    assert flip["purpose"] == rule["purpose"]
    assert "extension" not in rule


# -- HL7's own examples ----------------------------------------------------------------------------

ACTOR, CODE, ROOT, CARE = "unknown-actor", "unknown-code", "untyped-root", "not-research"
KEPT = "unsupported-restriction"
EXAMPLES = {
    # None of them is a consent to research, so none may become one; and what else is unclear.
    ("r4", "Emergency"): {CARE, ACTOR, CODE, ROOT},
    ("r4", "Out"): {CARE, ACTOR, ROOT},
    ("r4", "basic"): {CARE, ROOT},
    ("r4", "grantor"): {CARE, ACTOR, CODE, ROOT},
    ("r4", "notAuthor"): {CARE, ACTOR, ROOT},
    ("r4", "notOrg"): {CARE, ACTOR, CODE, "contradiction"},
    ("r4", "notThem"): {CARE, ACTOR, CODE, ROOT},
    ("r4", "notThis"): {CARE, KEPT},
    ("r4", "notTime"): {CARE, ROOT},
    ("r4", "pkb"): {CARE, ACTOR, CODE, KEPT, ROOT, "untyped-rule"},
    ("r4", "signature"): {CARE, ACTOR, CODE, KEPT, ROOT},
    ("r4", "smartonfhir"): {CARE, CODE, KEPT, ROOT, "representative"},
    ("r5", "CDA"): {CARE, ACTOR, CODE, KEPT},
    ("r5", "Emergency"): {CARE, ACTOR, CODE},
    ("r5", "Out"): {CARE, ACTOR},
    ("r5", "basic"): {CARE},
    ("r5", "grantor"): {CARE, ACTOR, CODE, KEPT, "representative"},
    ("r5", "notAuthor"): {CARE, ACTOR},
    ("r5", "notOrg"): {CARE, ACTOR, CODE},
    ("r5", "notThem"): {CARE, ACTOR, CODE},
    ("r5", "notThis"): {CARE, KEPT},
    ("r5", "notTime"): {CARE},
    ("r5", "pkb"): {CARE, ACTOR, CODE, KEPT},
    ("r5", "smartonfhir"): {CARE, CODE, KEPT, "representative"},
}


def test_the_table_names_every_example_of_hl7():
    found = {
        (path.parent.name, path.stem.removeprefix("Consent-consent-example-"))
        for path in HL7.glob("r*/Consent-*.json")
    }
    assert found == set(EXAMPLES)
    assert len(found) == 24


@pytest.mark.parametrize(("version", "name"), list(EXAMPLES), ids="-".join)
def test_each_example_of_hl7_is_refused_for_exactly_these_reasons(version, name):
    which = Version.R4 if version == "r4" else Version.R5
    assert reasons(hl7(version, name), which) == EXAMPLES[version, name]


def as_research(document: dict[str, Any], version: Version) -> dict[str, Any]:
    """The same example, had the patient consented to research."""
    if version is Version.R4:
        return {**document, "scope": {"coding": [{"system": words.SCOPE, "code": "research"}]}}
    concept = {"coding": [{"system": words.CATEGORY, "code": "research"}]}
    return {**document, "category": [concept]}


def test_examples_that_say_one_clear_thing_are_read_once_they_are_for_research():
    basic = reader.read(as_research(hl7("r5", "basic"), Version.R5), Version.R5)
    # Denied, except in a period that began before 1970 and ends with the first day of 2019.
    assert basic.provision == Provision(
        type="deny", children=[Provision(type="permit", end=1_546_387_200)]
    )
    not_then = reader.read(as_research(hl7("r5", "notTime"), Version.R5), Version.R5)
    assert not_then.provision == Provision(
        type="permit",
        children=[Provision(type="deny", start=1_420_070_400, end=1_422_835_200)],
    )


def test_hl7s_two_readings_of_an_untyped_root_are_both_refused():
    """`basic` means "only then", `notTime` "only not then", and they are written alike."""
    for name in ("basic", "notTime"):
        document = as_research(hl7("r4", name), Version.R4)
        assert refused(document) == {(Why.UNTYPED_ROOT, "Consent.provision.type")}
        typed = copy.deepcopy(document)
        typed["provision"]["type"] = "permit"
        assert reader.read(typed, Version.R4).provision.type == "permit"


# -- strict ----------------------------------------------------------------------------------------

GOOD = written(preset(Preset.ALL_RESEARCH), Version.R4)


def changed(**members: Any) -> dict[str, Any]:
    made = {**copy.deepcopy(GOOD), **members}
    return {name: value for name, value in made.items() if value is not ...}


def ruled(**members: Any) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    made["provision"]["provision"][0] |= members
    return made


RULE = "Consent.provision.provision[0]"
UNCLEAR = {
    "no base rule": (
        changed(policyRule=..., provision={"provision": []}),
        (Why.MISSING_BASE_RULE, "Consent.provision.type"),
    ),
    "contradictory base rule": (
        changed(policyRule={"coding": [{"system": words.ACT_CODE, "code": "OPTIN"}]}),
        (Why.CONTRADICTION, "Consent.provision.type"),
    ),
    "another base rule": (
        changed(policyRule={"coding": [{"system": words.ACT_CODE, "code": "INFA"}]}),
        (Why.UNKNOWN_CODE, "Consent.policyRule"),
    ),
    "a rule in words": (
        changed(policyRule={"text": "OPT OUT of everything; see the paper"}),
        (Why.UNKNOWN_CODE, "Consent.policyRule"),
    ),
    "both base rules": (
        changed(
            policyRule={
                "coding": [
                    {"system": words.ACT_CODE, "code": "OPTIN"},
                    {"system": words.ACT_CODE, "code": "OPTOUT"},
                ]
            }
        ),
        (Why.CONTRADICTION, "Consent.policyRule"),
    ),
    "rule without type": (
        {**GOOD, "provision": {"type": "deny", "provision": [{}]}},
        (Why.UNTYPED_RULE, f"{RULE}.type"),
    ),
    "type nobody knows": (ruled(type="maybe"), (Why.INVALID, f"{RULE}.type")),
    "modifier": (
        changed(modifierExtension=[{"url": "urn:else", "valueBoolean": True}]),
        (Why.UNKNOWN_MODIFIER, "Consent.modifierExtension[0]"),
    ),
    "modifier on a rule": (
        ruled(modifierExtension=[{"url": words.MIN_COHORT, "valueString": "5"}]),
        (Why.UNKNOWN_MODIFIER, f"{RULE}.modifierExtension"),
    ),
    "implicit rules": (
        changed(implicitRules="urn:x"),
        (Why.UNKNOWN_MODIFIER, "Consent.implicitRules"),
    ),
    "extension on a rule": (
        ruled(extension=[{"url": "urn:else", "valueBoolean": True}]),
        (Why.UNKNOWN_ELEMENT, f"{RULE}.extension[0]"),
    ),
    "action": (
        ruled(action=[{"coding": [{"system": "http://x", "code": "access"}]}]),
        (Why.UNKNOWN_CODE, f"{RULE}.action[0]"),
    ),
    "action in words": (ruled(action=[{"text": "train"}]), (Why.UNKNOWN_CODE, f"{RULE}.action[0]")),
    "two actions in one": (
        ruled(
            action=[
                {
                    "coding": [
                        {"system": words.USE, "code": "evaluate"},
                        {"system": words.USE, "code": "train-federated"},
                    ]
                }
            ]
        ),
        (Why.CONTRADICTION, f"{RULE}.action[0]"),
    ),
    "purpose": (
        ruled(purpose=[{"system": words.ACT_REASON, "code": "ETREAT"}]),
        (Why.UNKNOWN_CODE, f"{RULE}.purpose[0]"),
    ),
    "purpose of another system": (
        ruled(purpose=[{"system": "http://x", "code": "DUO:0000042"}]),
        (Why.UNKNOWN_CODE, f"{RULE}.purpose[0]"),
    ),
    "code": (
        ruled(code=[{"coding": [{"system": words.LOINC, "code": "34133-9"}]}]),
        (Why.UNKNOWN_CODE, f"{RULE}.code[0]"),
    ),
    "actor": (
        ruled(actor=[{"reference": {"reference": "Organization/1"}}]),
        (Why.UNKNOWN_ACTOR, f"{RULE}.actor[0].reference"),
    ),
    "label": (
        ruled(securityLabel=[{"system": "http://x", "code": "R"}]),
        (Why.UNSUPPORTED, f"{RULE}.securityLabel"),
    ),
    "single resources": (
        ruled(data=[{"meaning": "instance", "reference": {"reference": "Observation/1"}}]),
        (Why.UNSUPPORTED, f"{RULE}.data"),
    ),
    "attorney": (
        changed(performer=[{"reference": "RelatedPerson/peter"}]),
        (Why.REPRESENTATIVE, "Consent.performer[0]"),
    ),
    "not verified": (
        changed(verification=[{"verified": False}]),
        (Why.NOT_VERIFIED, "Consent.verification[0].verified"),
    ),
    "rules elsewhere": (
        changed(policy=[{"uri": "http://example.org/rules"}]),
        (Why.OUTSIDE_POLICY, "Consent.policy[0]"),
    ),
    "draft": (changed(status="draft"), (Why.NOT_IN_FORCE, "Consent.status")),
    "entered in error": (changed(status="entered-in-error"), (Why.NOT_IN_FORCE, "Consent.status")),
    "for care": (
        changed(scope={"coding": [{"system": words.SCOPE, "code": "treatment"}]}),
        (Why.NOT_RESEARCH, "Consent.scope"),
    ),
    "category": (
        changed(category=[{"coding": [{"system": words.CATEGORY, "code": "rsdid"}]}]),
        (Why.UNKNOWN_CODE, "Consent.category"),
    ),
    "R5 in R4": (changed(decision="permit"), (Why.UNKNOWN_ELEMENT, "Consent.decision")),
    "no patient": (changed(patient=...), (Why.INVALID, "Consent.patient")),
    "label on the whole": (
        changed(meta={"security": [{"code": "R"}]}),
        (Why.UNKNOWN_ELEMENT, "Consent.meta.security"),
    ),
    "null": (ruled(period=None), (Why.INVALID, f"{RULE}.period")),
    "empty list": (ruled(purpose=[]), (Why.INVALID, f"{RULE}.purpose")),
    "no time": (ruled(period={"start": "yesterday"}), (Why.TIME, f"{RULE}.period.start")),
    "half a second": (
        ruled(period={"end": "2026-01-01T10:00:00.5Z"}),
        (Why.TIME, f"{RULE}.period.end"),
    ),
    "time without zone": (
        ruled(period={"end": "2026-01-01T10:00:00"}),
        (Why.TIME, f"{RULE}.period.end"),
    ),
    "no such day": (ruled(period={"end": "2026-02-30"}), (Why.TIME, f"{RULE}.period.end")),
    "backwards": (
        ruled(period={"start": "2026-02-02", "end": "2026-02-01"}),
        (Why.TIME, f"{RULE}.period.end"),
    ),
    "data before 1970": (
        ruled(dataPeriod={"start": "1964-01-01"}),
        (Why.TIME, f"{RULE}.dataPeriod.start"),
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_refused_with_its_reason_and_its_place(name: str):
    document, reason = UNCLEAR[name]
    assert reason in refused(document)


def test_the_good_document_of_these_tests_is_good():
    assert reader.read(GOOD, Version.R4) == preset(Preset.ALL_RESEARCH)


def test_leaving_out_any_code_would_be_noticed():
    """No two of these rules are read alike: nothing in a rule is ignored."""
    policy = Policy(
        provision=Provision(
            type="deny",
            children=[
                Provision(
                    type="permit",
                    end=NOON,
                    actions=["evaluate"],
                    purposes=[HMB],
                    classes=["cardiology"],
                    actors=["heart"],
                    data_end=NOON,
                )
            ],
        )
    )
    made = written(policy, Version.R4)
    seen = {policy.model_dump_json()}
    for name in ("period", "action", "purpose", "code", "actor", "dataPeriod"):
        less = copy.deepcopy(made)
        del less["provision"]["provision"][0][name]
        seen.add(reader.read(less, Version.R4).model_dump_json())
    assert len(seen) == 7


def test_a_flip_that_hides_something_is_refused():
    made = written(preset(Preset.ALL_RESEARCH), Version.R5)
    mark = {"url": words.FLIP, "valueBoolean": True}
    inner = {"action": [{"coding": [{"system": words.USE, "code": "evaluate"}]}]}
    for provision in ({}, {"provision": [inner]}, {"provision": [{}, {}]}):
        hidden = {**made, "provision": [{"extension": [mark], **provision}]}
        assert "contradiction" in reasons(hidden, Version.R5)
    for document in (
        {**made, "decision": ...},
        {**made, "decision": "perhaps"},
    ):
        shown = {name: value for name, value in document.items() if value is not ...}
        assert "missing-base-rule" in reasons(shown, Version.R5)
    root = {"url": words.ROOT, "valueBoolean": True}
    for document in (
        {**made, "decision": "permit", "provision": [{"extension": [root]}]},
        {**made, "provision": [{"extension": [root]}, {}]},
    ):
        assert "contradiction" in reasons(document, Version.R5)


def test_the_specification_names_every_reason_and_every_word_of_ours():
    text = (Path(__file__).parent.parent / "docs/spec/fhir.md").read_text()
    ours = {value for value in vars(words).values() if str(value).startswith("urn:coop:")}
    assert [name for name in {*map(str, Why), *ours} if f"`{name}`" not in text] == []


# -- hostile ---------------------------------------------------------------------------------------


def test_a_bomb_is_refused_quickly():
    deep: dict[str, Any] = {"type": "deny"}
    for _ in range(900):
        deep = {"type": "deny", "provision": [deep]}
    assert "invalid" in reasons({**GOOD, "provision": deep}, Version.R4)
    assert "invalid" in reasons(
        {
            **GOOD,
            "provision": {"type": "deny", "provision": [{"type": "deny"} for _ in range(100_000)]},
        },
        Version.R4,
    )
    wide = {"type": "permit", "actor": [{"reference": 1}] * 1000}
    assert "invalid" in reasons(
        {**GOOD, "provision": {"type": "deny", "provision": [wide]}}, Version.R4
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"resourceType": "Consent", "status": NaN}',
        '{"resourceType": "Consent", "status": 1e400}',
        '{"resourceType": "Consent", "status": "draft", "status": "active"}',
        '{"resourceType": "Consent"' + ', "a": [' * 5000,
        '{"a": "\\ud800"}',
        "[]",
        "",
        '{"a": "' + "x" * 300_000 + '"}',
    ],
    ids=["nan", "infinity", "twice", "deep", "surrogate", "list", "nothing", "huge"],
)
def test_what_is_not_strict_json_never_reaches_the_reader(text: str):
    with pytest.raises(NotCanonicalError):
        parse_object(text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document",
    [
        {},
        {"resourceType": "Patient"},
        {"resourceType": ["Consent"]},
        {"resourceType": "Consent"},
        {"resourceType": "Consent", "provision": []},
        {"resourceType": "Consent", "provision": {"provision": {"type": "permit"}}},
        {"resourceType": "Consent", "scope": "research", "category": "x", "meta": []},
        {"resourceType": "Consent", "modifierExtension": [None, 5, {"url": 5}]},
        {"resourceType": "Consent", "provision": {"period": "2026", "actor": {"a": 1}}},
        {"resourceType": "Consent", "category": [{"coding": [{"code": {}}]}]},
        {"resourceType": "Consent", "contained": [{"resourceType": "Consent"}]},
    ],
    ids=str,
)
def test_nonsense_is_refused_and_never_fails(version, document):
    assert refused(document, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_member_replaced_by_nonsense_is_refused_or_read(version):
    """No value in any place makes the reader fail in another way than by refusing."""
    made = written(preset(Preset.DISEASE_ONLY, disease="MONDO:0005010", end=NOON), version)
    good = reader.read(made, version)

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = []
        for name, item in items:
            found.append((*path, name))
            if isinstance(item, dict | list):
                found += places(item, (*path, name))
        return found

    outcomes = set()
    for path in places(made):
        for nonsense in (None, 5, True, "", "x", [], {}, [[]], [None], {"x": "y"}):
            other = copy.deepcopy(made)
            inside = other
            for step in path[:-1]:
                inside = inside[step]
            inside[path[-1]] = nonsense
            try:
                outcomes.add(reader.read(other, version) == good)
            except UnreadableConsentError:
                outcomes.add("refused")
    # Some members (an id, a date of signature) say nothing about the rules.
    assert outcomes <= {True, "refused", False}
    assert "refused" in outcomes


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("1970", (0, 31_536_000)),
        ("1970-02", (2_678_400, 5_097_600)),
        ("1970-12", (28_857_600, 31_536_000)),
        ("1970-01-02", (86_400, 172_800)),
        ("1970-01-01T00:00:09Z", (9, 10)),
        ("1970-01-01T02:00:09+02:00", (9, 10)),
        ("1969-12-31T22:30:09.000-01:30", (9, 10)),
        ("9999", (253_370_764_800, 253_402_300_800)),
        ("9999-12-31", (253_402_214_400, 253_402_300_800)),
        ("1964-01-01", (-189_388_800, -189_302_400)),
    ],
)
def test_a_date_covers_all_of_its_own_precision(text, span):
    assert times.span_of(text) == span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "26",
        "2026-13",
        "2026-00",
        "2026-02-29",
        "2026-01-01T24:00:00Z",
        "2026-01-01T10:00:60Z",
        "2026-01-01T10:00:00+15:00",
        "2026-01-01T10:00Z",
        "2026-01-01 ",
        "٢٠٢٦",
        "0000",
        "2026-01-01T10:00:00.1Z",
    ],
)
def test_what_is_no_date_is_none(text):
    assert times.span_of(text) is None


def test_an_end_in_fhir_is_included_and_ours_is_not():
    policy = preset(Preset.ALL_RESEARCH, end=NOON)
    made = written(policy, Version.R4)
    assert made["provision"]["provision"][0]["period"] == {"end": times.moment(NOON - 1)}
    request = Request(
        action="evaluate",
        purpose=HMB,
        data_class="cardiology",
        study_id="heart",
        organisation="University",
        commercial=False,
        at=NOON - 1,
    )
    standing = Standing(
        state=State.ACTIVE,
        policy=reader.read(made, Version.R4),
        head_digest="0" * 64,
        sequence=1,
        log_index=0,
    )
    assert decide(standing, request).permits
    assert not decide(standing, replace(request, at=NOON)).permits


# -- the whole resource ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "state", "status"),
    [
        ({}, "active", "active"),
        ({"state": State.SUSPENDED}, "suspended", "inactive"),
        ({"state": State.REVOKED}, "revoked", "inactive"),
        ({"policy": preset(Preset.ALL_RESEARCH, end=NOON)}, "expired", "inactive"),
        ({"policy": preset(Preset.ALL_RESEARCH, end=NOON + 1)}, "active", "active"),
        ({"policy": preset(Preset.REFUSE)}, "active", "active"),
        ({"ends_at": NOON}, "expired", "inactive"),
        ({"ends_at": NOON + 1}, "active", "active"),
        ({"starts_at": NOON + 1}, "waiting", "inactive"),
        ({"starts_at": TIME_MAX}, "waiting", "inactive"),
        ({"state": State.REVOKED, "policy": None, "envelope": None}, "revoked", "inactive"),
    ],
)
def test_a_chain_shows_its_state_and_whether_it_is_in_force(changes, state, status):
    shown = record(changes.pop("policy", preset(Preset.ALL_RESEARCH)), **changes)
    assert state_at(shown, NOON) == state
    for version in VERSIONS:
        made = resource(shown, version, NOON)
        assert made["status"] == status
        MODELS[version].model_validate(made)
        assert ("sourceAttachment" in made) == (shown.envelope is not None)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_guardian_gave_is_written_only_for_as_long_as_she_may_give_it(version):
    given = record(preset(Preset.ALL_RESEARCH), starts_at=NOON, ends_at=NOON + 100)
    made = {**sent(resource(given, version, NOON)), "status": "active"}
    root = reader.read(made, version).provision
    assert (root.start, root.end) == (NOON, NOON + 100)
    assert root.children == preset(Preset.ALL_RESEARCH).provision.children


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "attachment",
    [
        None,
        {},
        {"contentType": "application/pdf", "data": "e30="},
        {"contentType": "application/vc"},
        {"contentType": "application/vc", "data": "not base64!"},
        {"contentType": "application/vc", "data": "W10="},
        {"contentType": "application/vc", "data": "/w=="},
        {"contentType": "application/vc", "data": "e30=" * 30_000},
        "text",
    ],
    ids=str,
)
def test_a_resource_without_a_signed_event_is_told_how_to_carry_one(version, attachment):
    held = [attachment] if version is Version.R5 else attachment
    with pytest.raises(UnsignedConsentError, match="consents:draft"):
        envelope_in({"sourceAttachment": held}, version)


# -- the German broad consent ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Einwilligung", "Einwilligung_2"])
def test_the_miis_own_examples_are_read_and_written_back(name):
    example = mii(name)
    assert broad_consent.is_mii(example)
    policy = broad_consent.read(example)
    (use,) = [part for part in policy.provision.children if part.purposes]
    # In force for thirty years, on data collected in the first five: a gate and a window.
    assert (use.start, use.end) == (1_598_918_400, 2_545_603_200)
    assert (use.data_start, use.data_end) == (1_598_918_400, 1_756_684_800)
    assert use.purposes == (HMB,)
    kept = {code for part in policy.provision.children for code in part.classes}
    assert kept == {"mii:6", "mii:7", "mii:19", "mii:20", "mii:22"}
    made = broad_consent.resource(policy, pid=PID, site="x", at=1_598_918_400, document=1791)
    assert broad_consent.read(sent(made)) == policy
    R4Consent.model_validate(made)


def test_the_miis_own_checker_finds_no_error_in_what_we_write():
    for name in ("Einwilligung", "Einwilligung_2"):
        policy = broad_consent.read(mii(name))
        made = broad_consent.resource(policy, pid=PID, site="x", at=1_598_918_400, document=1791)
        found = checker.check(sent(made))
        before = checker.check(mii(name))
        assert [one for one in found if one[0] == "error"] == []
        assert {one for one in found if one[1] != "required"} <= set(before)


def broad(*rules: tuple[str, list[int], str, str]) -> dict[str, Any]:
    example = mii("Einwilligung")
    example["provision"]["provision"] = [
        {
            "type": kind,
            "period": {"start": start, "end": end},
            "code": [
                {
                    "coding": [
                        {
                            "system": broad_consent.SYSTEM,
                            "code": f"2.16.840.1.113883.3.1937.777.24.5.3.{code}",
                        }
                    ]
                }
                for code in codes
            ],
        }
        for kind, codes, start, end in rules
    ]
    return example


LONG = ("2020-09-01", "2050-08-31")
FIVE = ("2020-09-01", "2025-08-31")


def broad_reasons(document: dict[str, Any]) -> set[str]:
    with pytest.raises(UnreadableConsentError) as caught:
        broad_consent.read(document)
    return {problem.why.removeprefix("fhir.") for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([("permit", [7, 8], *LONG)], "unclear-data-window"),
        ([("permit", [6, 8], *LONG)], "contradiction"),
        ([("permit", [6, 7, 8], *LONG), ("permit", [6], *FIVE)], "unclear-data-window"),
        ([("permit", [6, 7, 8], *LONG), ("deny", [7], *LONG)], "contradiction"),
        ([("permit", [1], *LONG)], "group-code"),
        ([("permit", [99], *LONG)], "unknown-code"),
        ([("permit", [], *LONG)], "unknown-code"),
        ([("perhaps", [8], *LONG)], "untyped-rule"),
        ([("permit", [8], "2050-08-31", "2020-09-01")], "unusable-time"),
    ],
    ids=str,
)
def test_an_mii_consent_that_is_not_clear_is_refused(rules, reason):
    assert reason in broad_reasons(broad(*rules))


def test_an_mii_consent_for_a_minor_or_without_a_form_is_refused():
    good = broad(("permit", [6, 7, 8], *LONG))
    assert broad_consent.read(good)
    form = "urn:oid:2.16.840.1.113883.3.1937.777.24.2."
    assert "representative" in broad_reasons({**good, "policy": [{"uri": f"{form}3542"}]})
    assert "outside-policy" in broad_reasons({**good, "policy": [{"uri": f"{form}9"}]})
    assert "outside-policy" in broad_reasons(
        {name: value for name, value in good.items() if name != "policy"}
    )
    permitting = copy.deepcopy(good)
    permitting["provision"]["type"] = "permit"
    assert "contradiction" in broad_reasons(permitting)


def test_an_mii_withdrawal_denies_and_retrospective_data_open_the_past():
    (rule,) = broad_consent.read(broad(("deny", [8], *LONG))).provision.children
    assert (rule.type, rule.purposes) == ("deny", (HMB,))
    before = broad_consent.read(broad(("permit", [6], *FIVE), ("permit", [7, 8, 45], *LONG)))
    (use,) = [part for part in before.provision.children if part.purposes]
    assert (use.data_start, use.data_end) == (0, 1_756_684_800)
    only_before = broad_consent.read(broad(("permit", [7, 8, 45], *LONG)))
    (use,) = [part for part in only_before.provision.children if part.purposes]
    assert (use.data_start, use.data_end) == (0, 1_598_918_400)


def test_what_the_mii_profile_cannot_say_is_not_written_in_it():
    good = broad_consent.read(mii("Einwilligung"))
    root = good.provision
    other = [
        preset(Preset.ALL_RESEARCH),
        Policy(provision=root, epsilon_cap_micro=1),
        Policy(provision=root.model_copy(update={"end": TIME_MAX})),
        Policy(provision=root.model_copy(update={"children": root.children[1:]})),
        Policy(provision=Provision(type="deny", start=1, end=NOON)),
    ]
    for policy in other:
        with pytest.raises(NotExpressibleError):
            broad_consent.resource(policy, pid=PID, site="x", at=NOON, document=1791)
    with pytest.raises(NotExpressibleError):
        broad_consent.resource(good, pid=PID, site="x", at=NOON, document=3542)
