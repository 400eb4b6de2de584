"""A hospital's own prohibitions: they only narrow, and in every doubt they are closed."""

import sys
from pathlib import Path

import pytest
from budget import budget
from coop_world import now, world
from hypothesis import given, settings
from hypothesis import strategies as st
from small_round import study as signed_study
from test_cohort import asked as ask
from test_cohort import job

from consent.overlay import (
    SCHEMA,
    Facts,
    OverlayLibraryError,
    OverlayPermitsError,
    OverlaySchemaError,
    OverlaySyntaxError,
    forbidding,
    read,
)
from consent.policy import Preset, preset
from consent.purposes import CORONARY, DS, HEART, HMB
from coop.canonical import sha256
from coop.documents.envelope import open_document
from coop.documents.provision import Policy, Provision
from coop.documents.study import Study
from coop.documents.training import RoundReceipt
from federated import overlay as house
from federated import round as rounds
from federated.budget import cohort_of
from federated.doctor import checks
from federated.local_api import application
from federated.node import Node, staff_token
from federated.overlay import FILE, HouseRuleError
from federated.round import answer_round

SPEC = Path(__file__).parent.parent / "docs" / "spec" / "overlay.md"
NO_COMPANIES = (
    '@id("no companies")\nforbid(principal, action, resource) when { principal.commercial };'
)
NO_EVALUATION = 'forbid(principal, action == Action::"evaluate", resource);'
BROKEN = {
    "not Cedar": ("forbid(", OverlaySyntaxError),
    "a permit": ("permit(principal, action, resource);", OverlayPermitsError),
    "a permit after a prohibition": (
        NO_EVALUATION + "\npermit(principal, action, resource);", OverlayPermitsError),
    "a permit that a comment seems to hide": (
        "// only this\r\npermit(principal, action, resource);", OverlayPermitsError),
    "a template": ("forbid(principal == ?principal, action, resource);", OverlayPermitsError),
    "an unknown action": (
        'forbid(principal, action == Action::"sell", resource);', OverlaySchemaError),
    "an unknown fact": (
        "forbid(principal, action, resource) when { context.patient == 1 };", OverlaySchemaError),
    "a fact of another type": (
        'forbid(principal, action, resource) when { resource.people < "10" };', OverlaySchemaError),
    "an unknown kind of asker": (
        'forbid(principal == Person::"x", action, resource);', OverlaySchemaError),
}  # fmt: skip


def study(**changes: object) -> Study:
    made = open_document(Study, signed_study(), issuers=None).subject
    return made.model_copy(update=changes)


def facts(action: str = "train-federated", at: int = 1_790_000_000, **changes: object) -> Facts:
    return Facts(action=action, at=at, study=study(**changes))


def forbids(text: str, asked: Facts) -> tuple[str, ...]:
    return forbidding(read(text), asked)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "error"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_a_list_of_prohibitions_is_no_overlay(text, error):
    with pytest.raises(error):
        read(text)


@pytest.mark.parametrize("text", ["", "// nothing yet\n", "\n\n"])
def test_an_empty_overlay_forbids_nothing(text):
    assert forbids(text, facts()) == ()


def test_without_cedar_an_overlay_cannot_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "cedarpy", None)
    with pytest.raises(OverlayLibraryError):
        read("// without Cedar this is unreadable")


# -- what it sees ----------------------------------------------------------------------------------

SEEN = {
    "principal.commercial": ({"commercial": True}, {"commercial": False}),
    'principal == Organisation::"Unloved \\"Ltd\\""': (
        {"proposer": 'Unloved "Ltd"'}, {"proposer": "Unloved"}),
    'resource == Study::"heart"': ({"study_id": "heart"}, {"study_id": "lung"}),
    "resource.version > 1": ({"version": 2}, {"version": 1}),
    f'resource.purposes.contains("{HEART}")': (
        {"purpose": DS, "disease": HEART}, {"purpose": DS, "disease": CORONARY}),
    f'resource.within.contains("{HEART}")': (
        {"purpose": DS, "disease": CORONARY}, {"purpose": HMB}),
    f'resource.within.containsAny(["{HMB}"])': (
        {"purpose": "DUO:0000042", "further_purposes": [CORONARY]}, {"purpose": "DUO:0000042"}),
    'resource.data_class != "cardiology"': ({"data_class": "genome"}, {"data_class": "cardiology"}),
    "resource.people < 100": (
        {"recipe": study().recipe.model_copy(update={"population": 99})}, {}),
    "resource.epsilon_micro > 1000000": (
        {"budget": study().budget.model_copy(update={"epsilon_micro": 1_000_001})}, {}),
    '!(resource.ethics_reference like "EK-*")': ({"ethics_reference": "none"}, {}),
    'resource.fields.contains("severity")': (
        {}, {"label": study().label.model_copy(update={"field": "other"})}),
}  # fmt: skip


@pytest.mark.parametrize("condition", SEEN)
def test_an_overlay_sees_the_request(condition):
    text = f"forbid(principal, action, resource) when {{ {condition} }};"
    yes, no = SEEN[condition]
    assert forbids(text, facts(**yes)) == ("rule 1",)
    assert forbids(text, facts(**no)) == ()


def test_an_overlay_sees_action_and_instant_and_names_its_rules():
    late = "forbid(principal, action, resource) when { context.at >= 50 };"
    text = f"{NO_COMPANIES}\n{NO_EVALUATION}\n{late}"
    assert forbids(text, facts(at=49)) == ()
    assert forbids(text, facts(at=50)) == ("rule 3",)
    assert set(forbids(text, facts("evaluate", 50, commercial=True))) == {
        "no companies", "rule 2", "rule 3",
    }  # fmt: skip


def test_a_rule_that_cannot_be_evaluated_forbids():
    """Cedar skips a rule in error: that would open what the rule was written to close."""
    text = "forbid(principal, action, resource) when { context.at + 9223372036854775807 < 0 };"
    (reason,) = forbids(text, facts(at=5))
    assert "cannot be evaluated" in reason
    assert forbids(text, facts(at=0)) == ()


conditions = st.sampled_from(
    [None, *SEEN, "context.at >= 50", "context.at + 9223372036854775807 < 0"]
)
actions = st.sampled_from(["train-federated", "evaluate", "infer-aggregate"])
rules = st.builds(
    lambda action, condition: (
        f"forbid(principal, {action}, resource)"
        + (f" when {{ {condition} }};" if condition else ";")
    ),
    st.sampled_from(
        ["action", 'action == Action::"evaluate"', 'action in [Action::"infer-aggregate"]']
    ),
    conditions,
)
questions = st.builds(
    lambda action, at, changes: facts(action, at, **changes[0 if at % 2 else 1]),
    actions,
    st.integers(0, 100),
    st.sampled_from(list(SEEN.values())),
)


@given(st.lists(rules, max_size=4), st.lists(rules, max_size=2), questions)
@settings(max_examples=budget(100, 5_000), deadline=None)
def test_more_rules_never_open_anything(some, more, asked):
    before, after = forbids("\n".join(some), asked), forbids("\n".join(some + more), asked)
    assert not before or after
    assert forbids("", asked) == ()


# -- at the node -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@pytest.fixture
def run(coop, request):
    yield coop.ready(f"s{sha256(request.node.name.encode()).hex()[:12]}")
    (coop.site.folder / FILE).unlink(missing_ok=True)


def write(run, text: str) -> None:
    (run.world.site.folder / FILE).write_text(text)


def answered(run, *asked):
    return answer_round(run.world.site, run.world.mirror, run.input(*asked))


def members_of(run, answer) -> set[str]:
    receipt = open_document(RoundReceipt, answer.receipt, issuers=None).subject
    with run.world.site.database.reading() as connection:
        return set(cohort_of(connection, receipt.debit_sequence))


def test_rounds_evaluations_and_questions_are_refused_and_cost_nothing(run):
    write(run, f'forbid(principal, action, resource == Study::"{run.study.study_id}");')
    for asked in ((1, "train"), (run.study.recipe.rounds + 1, "evaluate")):
        with pytest.raises(HouseRuleError):
            answered(run, *asked)
    with pytest.raises(HouseRuleError):
        ask(run, job(run))
    (run.world.site.folder / FILE).unlink()
    # It took effect without a restart, and so does its end; nothing was debited meanwhile.
    assert open_document(RoundReceipt, answered(run).receipt, issuers=None).subject.round == 1


def test_an_overlay_forbids_one_use_and_leaves_the_others(run):
    write(run, 'forbid(principal, action == Action::"infer-aggregate", resource);')
    assert members_of(run, answered(run))
    with pytest.raises(HouseRuleError):
        ask(run, job(run))


def test_who_takes_part_under_an_overlay_would_have_taken_part_without(coop, run):
    free = coop.ready(f"{run.study.study_id}-b")
    write(run, NO_COMPANIES)
    assert members_of(run, answered(run)) <= members_of(free, answered(free)) != set()


@pytest.mark.parametrize(("text", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_overlay_closes_everything_and_the_doctor_says_why(coop, run, text, error):
    write(run, text)
    with pytest.raises(HouseRuleError) as refused:
        answered(run)
    # The hub learns the same code and words whatever the overlay is or says.
    assert (
        str(refused.value)
        == "overlay.forbidden: the hospital's own rules forbid this use of its records"
    )
    found = checks(coop.site)["checks"]["own prohibitions"]
    assert not found["ok"]
    assert found["found"].startswith(error.code)


def test_what_cannot_even_be_opened_closes_everything(coop, run):
    path = coop.site.folder / FILE
    broken = [
        lambda: path.write_bytes(b"\xff\xfe"),
        lambda: path.write_text("//" + "x" * 70_000),
        lambda: path.symlink_to(coop.site.folder / "nowhere"),
        path.mkdir,
    ]
    for make in broken:
        make()
        with pytest.raises(HouseRuleError):
            answered(run)
        assert house.facts(coop.site, now=now())["code"] == "overlay.unreadable"
        path.rmdir() if path.is_dir() else path.unlink()
    assert members_of(run, answered(run))


def test_without_cedar_a_hospital_with_an_overlay_answers_nothing(coop, run, monkeypatch):
    write(run, "// unread so far")
    monkeypatch.setitem(sys.modules, "cedarpy", None)
    with pytest.raises(HouseRuleError):
        answered(run)
    assert house.facts(coop.site, now=now())["code"] == "overlay.no-cedar"
    (coop.site.folder / FILE).unlink()
    assert members_of(run, answered(run))


def test_a_rule_written_while_an_answer_is_made_holds_it_back(run, monkeypatch):
    """What was computed stays, unreleased; it may leave once the rule is gone."""
    made = rounds._update

    def slowly(*args):
        write(run, NO_EVALUATION.replace("evaluate", "train-federated"))
        return made(*args)

    monkeypatch.setattr(rounds, "_update", slowly)
    with pytest.raises(HouseRuleError):
        answered(run)
    (run.world.site.folder / FILE).unlink()
    assert answered(run).receipt


def test_the_hospitals_own_console_names_the_rule(coop, run):
    from fastapi.testclient import TestClient

    rule = f'forbid(principal, action, resource == Study::"{run.study.study_id}");'
    write(run, f'@id("not this one")\n{rule}')
    node = Node(coop.site)
    headers = {"Authorization": f"Bearer {staff_token(coop.site.folder)}"}
    said = TestClient(application(node)).get("/local/v1/status", headers=headers).json()["overlay"]
    node.client.close()
    assert (said["ok"], said["rules"]) == (True, ["not this one"])
    assert {(one["study_id"], one["action"]) for one in said["forbids"]} == {
        (run.study.study_id, action) for action in run.study.uses if action in house._ACTIONS
    }
    assert all(one["rules"] == ["not this one"] for one in said["forbids"])


# -- her own limits, at the node -------------------------------------------------------------------


def test_she_is_among_as_many_people_as_she_wants_or_not_at_all(coop, run):
    """Held against the study's public number: a count of today would tell who decided what."""
    everyone = preset(Preset.ALL_RESEARCH)
    public = run.study.recipe.population
    enough, more = coop.newcomers(2)
    for patient, least in ((enough, public), (more, public + 1)):
        coop.say("amend", [patient], everyone.model_copy(update={"min_cohort": least}))
    coop.cosign()
    rounds_of = members_of(run, answered(run))
    evaluation = members_of(run, answered(run, run.study.recipe.rounds + 1, "evaluate"))
    assert enough.pid in rounds_of | evaluation
    assert more.pid not in rounds_of | evaluation


def test_who_opens_only_some_dates_stays_out_of_rows_without_dates(coop, run):
    permit = Provision(type="permit", classes=["cardiology"], data_start=1_000)
    (patient,) = coop.newcomers(1)
    coop.say("amend", [patient], Policy(provision=permit))
    coop.cosign()
    rounds_of = members_of(run, answered(run))
    evaluation = members_of(run, answered(run, run.study.recipe.rounds + 1, "evaluate"))
    assert patient.pid not in rounds_of | evaluation
    coop.say("amend", [patient], Policy(provision=replace_window(permit)))
    coop.cosign()
    again = coop.ready(f"{run.study.study_id}-b")
    both = members_of(again, answered(again)) | members_of(
        again, answered(again, again.study.recipe.rounds + 1, "evaluate")
    )
    assert patient.pid in both


def replace_window(provision: Provision) -> Provision:
    return provision.model_copy(update={"data_start": 0})


# -- the page --------------------------------------------------------------------------------------


def test_the_page_shows_the_schema_that_is_checked_and_an_overlay_that_is_read():
    page = SPEC.read_text()
    blocks = [part.split("```")[0] for part in page.split("```cedar\n")[1:]]
    assert SCHEMA in page
    assert len(blocks) == 1
    assert len(read(blocks[0]).rules) >= 3
