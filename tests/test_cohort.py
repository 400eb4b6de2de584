"""Cohort questions at a hospital: closed grammar, debit first, stored answers replayed for free."""

import numpy as np
import pytest
import sqlalchemy as sa
from coop_world import HOSPITAL, now, world
from coop_world import digest as digest_of
from hypothesis import given
from hypothesis import strategies as st

from consent.policy import preset
from coop.canonical import sha256
from coop.documents.envelope import WrongDocumentError, issue, open_document
from coop.documents.serving import CohortAnswer, CohortJob, CohortQuery, Predicate
from coop.keys import SigningKey
from federated import cohort
from federated.accounting import rho_nano_of
from federated.answers import State, answer
from federated.approval import NotApprovedError, revoke
from federated.budget import BudgetExhaustedError, cohort_of, debit, site_spend
from federated.cohort import BadQueryError, ChangedJobError, answer_cohort, matches
from federated.importers import import_csv
from federated.mandate import OutOfTimeError, PurposeNotUnderstoodError
from federated.mirror import LeaseExpiredError
from federated.models import WrongWeightsError
from federated.round import WithdrawnError
from federated.tables import tabulate

RHO = 500_000  # 0.0005: a quarter of the study's line
MEN = {"field": "sex", "operator": "is", "text": "male"}
OLD = {"field": "age_years", "operator": "at-least", "number": 60}


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


@pytest.fixture
def run(coop, request):
    return coop.ready(f"s{sha256(request.node.name.encode()).hex()[:12]}")


def job(run, job_id="job-1", *, by=None, where=(MEN,), risk=False, rho=RHO, **changes):
    query = {
        "where": list(where),
        "release": "count-and-mean-risk" if risk else "count",
        "model_id": "heart-risk-1" if risk else None,
        "rho_nano": rho,
    }
    values = {
        "job_id": f"{run.study.study_id}-{job_id}",
        "site": HOSPITAL,
        "study_sha256": digest_of(run.document),
        "study_id": run.study.study_id,
        "version": 1,
        "query": CohortQuery.model_validate(query),
        "not_after": now() + 600,
    }
    subject = CohortJob.model_validate({**values, **changes})
    return issue(subject, by or run.world.folder.hub_key, now())


def asked(run, document, mirror=None, weights=None):
    return answer_cohort(run.world.site, mirror or run.world.mirror, document, weights=weights)


def said(run, document):
    return open_document(CohortAnswer, document, issuers={run.world.site.key.did}).subject


def spent(run):
    with run.world.site.database.reading() as connection:
        return site_spend(connection, run.study.study_id, 1)


def test_a_question_is_answered_with_noise_of_the_stated_spread(coop, run):
    document = job(run)
    subject = said(run, asked(run, document))
    assert (subject.job_id, subject.site) == (document["credentialSubject"]["job_id"], HOSPITAL)
    assert subject.job_sha256 == digest_of(document)
    assert rho_nano_of(subject.sigma_count_micro) <= subject.rho_nano == RHO
    assert subject.risk_sum_noised_micro is None
    assert spent(run) == {"training": 0, "evaluation": 0, "reserve": 0, "cohort": RHO}


def test_everyone_whose_row_is_looked_at_pays_whether_she_matches_or_not(coop, run):
    subject = said(run, asked(run, job(run, where=[{**OLD, "number": 1000}])))
    with coop.site.database.reading() as connection:
        assert len(cohort_of(connection, subject.debit_sequence)) >= 60


def test_a_mean_risk_releases_two_numbers_for_one_price(coop, run):
    weights = run.weights
    weights["weight"][-1] = 3  # everybody's risk is .95
    subject = said(run, asked(run, job(run, risk=True, where=[]), weights=weights))
    assert subject.sigma_risk_micro == subject.sigma_count_micro
    assert 2 * rho_nano_of(subject.sigma_count_micro) <= RHO
    assert abs(subject.risk_sum_noised_micro) > 0
    assert spent(run)["cohort"] == RHO


TABLE = {"release": "histogram", "field": "age_years", "edges": [50, 60, 70]}


def table(run, job_id="table", **parts):
    document = job(run, job_id)
    query = {"where": [], "rho_nano": RHO, **parts}
    subject = {**document["credentialSubject"], "query": query}
    subject.pop("type", None)
    subject.pop("id", None)
    made = CohortJob.model_validate(
        {n: v for n, v in subject.items() if n in CohortJob.model_fields}
    )
    return issue(made, run.world.folder.hub_key, now())


def test_a_histogram_is_noised_in_every_cell_for_the_price_of_one_count(run):
    subject = said(run, asked(run, table(run, **TABLE)))
    assert len(subject.cells_noised) == 4
    assert subject.count_noised == sum(subject.cells_noised)
    assert rho_nano_of(subject.sigma_count_micro) <= RHO  # a patient is in one cell
    assert spent(run)["cohort"] == RHO
    survival = {"release": "survival", "field": "st_depression", "event": "age_years"}
    both = said(run, asked(run, table(run, "b", **survival, edges=[1, 2])))
    assert len(both.cells_noised) == 6


@pytest.mark.parametrize(
    "parts",
    [
        {"release": "histogram", "field": "age_years"},
        {"release": "histogram", "edges": [1]},
        {"release": "histogram", "field": "sex", "edges": [1]},
        {"release": "histogram", "field": "age_years", "edges": [2, 2]},
        {"release": "histogram", "field": "age_years", "edges": [2], "event": "age_years"},
        {"release": "survival", "field": "age_years", "edges": [2]},
        {"release": "survival", "field": "age_years", "edges": [2], "event": "secret"},
        {"release": "count", "edges": [1]},
        {"release": "count", "field": "age_years"},
    ],
)
def test_a_table_outside_the_grammar_is_refused_before_any_debit(run, parts):
    with pytest.raises(BadQueryError, match="query"):
        asked(run, table(run, **parts))
    assert spent(run)["cohort"] == 0


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "time": st.one_of(st.integers(-5, 20), st.floats(), st.text(max_size=1)),
                "ill": st.one_of(st.booleans(), st.integers(0, 2), st.none()),
            },
        ),
        max_size=30,
    ),
    edges=st.lists(st.integers(-3, 15), min_size=1, max_size=6, unique=True).map(sorted),
    survival=st.booleans(),
    extra=st.fixed_dictionaries({"time": st.integers(-5, 20), "ill": st.booleans()}),
)
def test_one_patient_is_in_one_cell_or_none(rows, edges, survival, extra):
    kind = {"release": "survival", "event": "ill"} if survival else {"release": "histogram"}
    query = CohortQuery(where=[], field="time", edges=edges, rho_nano=1, **kind)
    before, after = tabulate(rows, query), tabulate([*rows, extra], query)
    changes = [now_ - then for then, now_ in zip(before, after, strict=True)]
    assert sorted(changes) == [0] * (query.cells - 1) + [1]
    place = sum(edge <= extra["time"] for edge in edges)
    place += len(edges) + 1 if survival and not extra["ill"] else 0
    assert changes[place] == 1


def test_the_same_job_gets_the_same_bytes_for_free(run):
    document = job(run)
    first = asked(run, document)
    assert asked(run, document) == first
    assert spent(run)["cohort"] == RHO


def test_the_same_question_in_another_job_gets_the_same_numbers_for_free(run):
    one = said(run, asked(run, job(run, "a", where=[MEN, OLD])))
    two = said(run, asked(run, job(run, "b", where=[MEN, OLD])))
    assert (two.count_noised, two.debit_sequence) == (one.count_noised, one.debit_sequence)
    assert two.job_id != one.job_id
    assert spent(run)["cohort"] == RHO


def test_a_replay_reads_no_row_and_needs_no_lease(run, monkeypatch):
    document = job(run)
    first = asked(run, document)
    other = job(run, "b")
    for name in ("rows_of", "permitted"):
        monkeypatch.setattr(cohort, name, None)
    assert asked(run, document, mirror=object()) == first
    assert said(run, asked(run, other, mirror=object())).debit_sequence > 0


def test_new_data_means_a_new_draw_and_a_new_debit(coop, run):
    document, first = job(run), None
    first = asked(run, document)
    coop.newcomers(1)
    again = said(run, asked(run, job(run, "b")))
    assert again.debit_sequence != said(run, first).debit_sequence
    assert spent(run)["cohort"] == 2 * RHO
    assert asked(run, document) == first  # the answered job stays as it was


def test_the_studys_cohort_line_ends_and_then_nobody_is_asked(run):
    for number in range(4):
        asked(run, job(run, str(number), where=[{**OLD, "number": number}]))
    with pytest.raises(BudgetExhaustedError):
        asked(run, job(run, "5", where=[{**OLD, "number": 5}]))
    assert spent(run)["cohort"] == run.study.budget.cohort_rho_nano


@pytest.mark.parametrize(
    "where",
    [
        {"field": "severity", "operator": "at-least", "number": 1},
        {"field": "patient", "operator": "is", "text": "P001"},
        {"field": "age_years", "operator": "is", "text": "60"},
        {"field": "sex", "operator": "at-least", "number": 1},
        {"field": "age_years", "operator": "at-least", "text": "60"},
        {"field": "age_years", "operator": "at-least"},
        {"field": "sex", "operator": "is", "number": 1, "text": "male"},
    ],
)
def test_a_question_outside_the_studys_grammar_is_refused(run, where):
    with pytest.raises(BadQueryError):
        asked(run, job(run, where=[where]))
    assert spent(run)["cohort"] == 0


def test_a_risk_question_needs_a_model_that_fits(run):
    with pytest.raises(BadQueryError):
        asked(run, job(run, risk=True))
    short = {"weight": np.zeros(3, dtype=np.float32)}
    with pytest.raises(WrongWeightsError):
        asked(run, job(run, risk=True), weights=short)
    with pytest.raises(BadQueryError):
        asked(run, job(run, risk=True, rho=1), weights=run.weights)
    assert spent(run)["cohort"] == 0


def test_only_the_pinned_hub_asks_and_only_for_this_hospital_and_in_time(run):
    with pytest.raises(WrongDocumentError):
        asked(run, job(run, by=SigningKey.generate()))
    with pytest.raises(BadQueryError):
        asked(run, job(run, site="budapest"))
    with pytest.raises(OutOfTimeError):
        asked(run, job(run, not_after=now()))
    with pytest.raises(NotApprovedError):
        asked(run, job(run, study_sha256="0" * 64))
    assert spent(run)["cohort"] == 0


def test_a_study_without_this_use_is_not_asked(coop):
    run = coop.ready("no-questions", uses=["train-federated", "evaluate", "release-model"])
    with pytest.raises(PurposeNotUnderstoodError):
        asked(run, job(run))


def test_after_the_approval_is_taken_back_nothing_is_answered_or_replayed(coop, run):
    document = job(run)
    asked(run, document)
    revoke(coop.site, digest_of(run.document), now=now())
    with pytest.raises(NotApprovedError):
        asked(run, document)


def test_a_job_id_names_one_question_for_ever(run):
    asked(run, job(run))
    with pytest.raises(ChangedJobError):
        asked(run, job(run, where=[OLD]))


def test_her_own_cap_covers_the_study_and_its_questions_together(coop, run):
    exact, generous = coop.newcomers(2)
    # The study costs 0.96 without questions about groups, and 0.9992 with them.
    coop.say("amend", [exact], preset("all-research", epsilon_cap_micro=960_000))
    coop.say("amend", [generous], preset("all-research", epsilon_cap_micro=3_000_000))
    coop.cosign()
    subject = said(run, asked(run, job(run)))
    with coop.site.database.reading() as connection:
        payers = cohort_of(connection, subject.debit_sequence)
    assert generous.pid in payers
    assert exact.pid not in payers


class Between:
    """The hospital's mirror, with something happening in the world before each lease."""

    def __init__(self, mirror, *steps):
        self.mirror = mirror
        self.steps = list(steps)

    def lease(self):
        if self.steps:
            self.steps.pop(0)()
        return self.mirror.lease()


def test_a_withdrawal_before_the_release_discards_the_answer_and_keeps_the_debit(coop, run):
    (leaving,) = coop.newcomers(1)
    document = job(run)
    mirror = Between(coop.mirror, lambda: None, lambda: coop.say("revoke", [leaving]))
    with pytest.raises(WithdrawnError):
        asked(run, document, mirror)
    assert spent(run)["cohort"] == RHO
    subject = said(run, asked(run, document))
    assert spent(run)["cohort"] == 2 * RHO
    with coop.site.database.reading() as connection:
        assert leaving.pid not in cohort_of(connection, subject.debit_sequence)
        states = connection.execute(
            sa.select(answer.c.state)
            .join(debit, debit.c.sequence == answer.c.debit_sequence)
            .where(debit.c.study_id == run.study.study_id, answer.c.key.startswith("cohort:"))
            .order_by(debit.c.sequence)
        ).scalars()
        assert list(states) == [State.DISCARDED, State.STORED]


def test_a_lease_that_ends_while_the_release_waits_for_the_database_lets_nothing_out(
    run, monkeypatch
):
    lock, waits = cohort.budget.lock, ["replay", "grant"]

    def slow_lock(connection):
        lock(connection)
        if not waits:
            monkeypatch.setattr("federated.held_lease.boottime", lambda: float("inf"))
        del waits[:1]

    with monkeypatch.context() as patch:
        patch.setattr(cohort.budget, "lock", slow_lock)
        with pytest.raises(LeaseExpiredError):
            asked(run, job(run))
    monkeypatch.undo()
    asked(run, job(run))
    assert spent(run)["cohort"] == RHO


def test_a_withdrawal_after_the_release_leaves_the_stored_answer_to_be_replayed(coop, run):
    (leaving,) = coop.newcomers(1)
    first = asked(run, job(run))
    coop.say("revoke", [leaving])
    assert said(run, asked(run, job(run, "b"))).count_noised == said(run, first).count_noised
    # A different question is a fresh draw, and she is not in it.
    fresh = said(run, asked(run, job(run, "c", where=[OLD])))
    with coop.site.database.reading() as connection:
        assert leaving.pid not in cohort_of(connection, fresh.debit_sequence)


class PowerCutError(Exception):
    """The process ends here."""


def test_a_crash_between_debit_and_answer_charges_once(run, monkeypatch):
    def cut(*_):
        raise PowerCutError

    document = job(run)
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "_numbers", cut)
        with pytest.raises(PowerCutError):
            asked(run, document)
    assert spent(run)["cohort"] == RHO
    asked(run, document)
    assert spent(run)["cohort"] == RHO


def test_a_crash_between_storing_and_sending_sends_the_stored_numbers(run, monkeypatch):
    def cut(*_):
        raise PowerCutError

    document = job(run)
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "_release", cut)
        with pytest.raises(PowerCutError):
            asked(run, document)
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "_numbers", cut)  # never computed a second time
        asked(run, document)
    assert spent(run)["cohort"] == RHO


def test_a_value_the_model_cannot_read_raises_nothing(coop, run):
    odd = coop.site.folder / "odd.csv"
    odd.write_text("patient,age_years,sex,severity\nODD-1,,male,1\n")
    import_csv(coop.site, odd)
    (patient,) = coop.enrol(["ODD-1"])
    coop.say("grant", [patient], preset("all-research"))
    coop.cosign()
    asked(run, job(run, risk=True, where=[]), weights=run.weights)


values = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5))


@given(st.dictionaries(st.sampled_from(["age_years", "sex"]), values))
def test_a_condition_on_a_missing_or_odd_value_is_false_and_never_an_error(row):
    young = Predicate(field="age_years", operator="below", number=60)
    old = Predicate(field="age_years", operator="at-least", number=60)
    value = row.get("age_years")
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124  (NaN)
    assert matches(row, [young]) + matches(row, [old]) == number
    man = Predicate(field="sex", operator="is", text="male")
    assert matches(row, [man]) == (row.get("sex") == "male")
    assert matches(row, [])
