"""What is wrong elsewhere is a test here: the defects found in other federations' code.

Most have a test of their own beside the part they are about; `WHERE` names it, and a test holds
that it is still there. The others are below.
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from pydantic import ValidationError
from test_studyfile import GOOD, written

import federated
from coop.cli import _wrong_settings, app
from coop.documents.study import Budget, Recipe, Study
from coop.documents.training import Order, RoundRequest
from coop.settings import Settings
from coop.studyfile import StudyFileError, load_study

TESTS = Path(__file__).parent
WHERE = {
    "a fresh accountant every round": "test_privacy_loss.py::"
    "test_ten_runs_cost_what_their_joined_history_costs_and_not_what_the_last_one_says",
    "a restart loses the privacy": "test_faults.py::"
    "test_a_hub_killed_in_a_round_resumes_and_nothing_is_debited_twice",
    "noise that the remote side chooses": "test_forgery.py::"
    "test_an_order_with_less_noise_is_refused_and_leaves_the_budget_whole",
    "metrics that nobody pays for": "test_evaluation.py::"
    "test_noise_that_costs_more_than_was_debited_is_never_drawn",
    "a random generator with a seed": "test_noise.py::test_no_librarys_seed_repeats_the_noise",
    "an audit log that may be edited": "test_every_byte.py::test_no_bit_of_any_byte_can_be_changed",
    "approval by a row at the hub": "test_forgery.py::"
    "test_approvals_the_hub_inserts_for_its_hospitals_train_no_row",
    "a cohort asked for again on other data": "test_quality.py::"
    "test_other_data_than_approved_is_told_until_the_hospital_approves_again",
    "one bad record ends the run": "test_importers.py::"
    "test_a_malformed_line_is_set_aside_with_line_and_reason",
    "code that the job brings": "test_executor.py::"
    "test_foreign_code_is_refused_and_never_touches_the_disk",
    "an allow-list that is empty lets all in": "test_executor.py::"
    "test_an_empty_allow_list_refuses_even_our_own",
    "a node that nobody selected is sent the task": "test_round.py::"
    "test_the_roster_must_name_this_hospital_once_with_its_own_key_and_approval",
    "no rule means allowed": "test_decide.py::"
    "test_every_question_has_an_answer_and_only_a_living_consent_permits",
    "keys of an organisation and not of people": "test_control.py::"
    "test_one_approver_signs_nothing_and_the_second_signs_once",
    "a message of success before it is true": "test_hub_cli.py::"
    "test_a_second_hub_on_the_port_or_the_folder_says_so_and_ends",
    "a threshold on rows, not people": "test_fhir_import.py::"
    "test_a_patient_becomes_one_row_of_exactly_the_studys_fields",
}


def defined() -> dict[str, set[str]]:
    """Every test by its file."""
    return {
        path.name: {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        for path in TESTS.glob("test_*.py")
    }


def test_every_defect_has_its_test():
    found = defined()
    lost = {
        defect: where
        for defect, where in WHERE.items()
        if where.partition("::")[2] not in found.get(where.partition("::")[0], set())
    }
    assert lost == {}


def test_nobody_outside_the_mechanism_states_a_sensitivity():
    """A free sensitivity beside the clipping norm once made an epsilon of 10^5 look like 10.

    Here the one mechanism takes the bound that its callers derive from what they clipped; nothing
    signed, sent or configured has such a number.
    """
    free = set()
    for module in walk_packages(federated.__path__, "federated."):
        if module.name.rpartition(".")[2].startswith("_") or ".data" in module.name:
            continue
        for name, value in vars(import_module(module.name)).items():
            if not name.startswith("_") and inspect.isfunction(value):
                free |= {name for p in inspect.signature(value).parameters if "sensitiv" in p}
    assert free == {"gaussian"}
    for signed in (Study, Recipe, Budget, Order, RoundRequest):
        assert not [name for name in signed.model_fields if "sensitiv" in name]


@pytest.mark.parametrize("part", ["budget", "recipe", "evaluation"])
def test_without_its_privacy_settings_there_is_no_study_and_nothing_trains(
    tmp_path: Path, part: str
):
    """Elsewhere a missing file meant: no privacy."""
    study = {name: value for name, value in GOOD.items() if name != part}
    with pytest.raises(StudyFileError, match=part):
        load_study(written(tmp_path, study))
    with pytest.raises(ValidationError):
        Study.model_validate(
            {name: value for name, value in load(tmp_path).items() if name != part}
        )


def load(folder: Path) -> dict:
    return load_study(written(folder, GOOD))


@pytest.mark.parametrize(
    ("part", "slip", "meant"),
    [
        ("budget", "epsilom", "epsilon"),
        ("recipe", "learning_rates", "learning_rate"),
        ("evaluation", "fold_percents", "fold_percent"),
        (None, "lay_sumary", "lay_summary"),
    ],
)
def test_a_slip_in_a_study_file_is_named_with_what_was_meant(
    tmp_path: Path, part: str | None, slip: str, meant: str
):
    """Elsewhere an unknown key was ignored and the default held."""
    study = {**GOOD, part: {**GOOD[part], slip: 1}} if part else {**GOOD, slip: "x"}
    with pytest.raises(StudyFileError, match=f"'{slip}' is unknown; did you mean '{meant}'"):
        load_study(written(tmp_path, study))


def test_a_slip_in_a_setting_is_named_with_what_was_meant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COOP_TRSUT_FILE", "trust.json")
    with pytest.raises(ValidationError) as caught:
        Settings()
    said = _wrong_settings(caught.value)
    assert said.startswith("COOP_TRSUT_FILE is unknown; did you mean COOP_TRUST_FILE?")
    monkeypatch.delenv("COOP_TRSUT_FILE")
    monkeypatch.setenv("COOP_SOMETHING_OF_THEIR_OWN", "1")  # not ours, and like nothing of ours
    Settings()


GRANTS = {
    "hospital approve": "console and API: approvals:revoke",
    "hospital accept": "hospital accept --end",
    "hospital represent": "hospital represent --end",
    "patient consent": "patient withdraw",
    "patient object": "patient object --lift",
    "patient suspend": "patient resume",
    "patient proxy": "patient proxy --end",
}


def test_every_verb_that_gives_has_one_that_takes_back():
    from typer.main import get_command

    whole = get_command(app)
    context = whole.make_context("coop", [], resilient_parsing=True)
    for given, taken in GRANTS.items():
        for words in (given, *([taken] if taken.split()[0] in {"hospital", "patient"} else [])):
            group, name, *options = words.split()
            command = whole.get_command(context, group).commands[name]
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(options) <= known, words
