import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_world import DS, NOON, SITES, World, study_of

from consent import freshness
from coop import ledger, members
from coop.canonical import document_digest, jcs
from coop.db import Database
from coop.documents.envelope import issue, open_document
from coop.documents.serving import CohortAnswer, CohortJob, CohortQuery, InferenceReceipt, Predicate
from coop.documents.study import MICRO
from coop.errors import InvalidInputError, InvariantError, NotFoundError
from coop.keys import SigningKey
from coop.money import NANO
from coop.signed_request import sign
from federated.accounting import sigma_micro_for
from inference_gateway import pricing, query
from inference_gateway.cohort import (
    ANSWER_S,
    SETTLE_S,
    CohortAsk,
    NobodyToAskError,
    NotFinishedError,
    QuestionFailedError,
)
from inference_gateway.commitments import result_sha256
from inference_gateway.jobs import CLAIM_S, LateAttemptError
from inference_gateway.query import BeyondBudgetError, QueryNotAllowedError
from inference_gateway.scope import Asker, OutOfScopeError
from inference_gateway.settlement import WrongAnswerError
from inference_gateway.store import IdempotencyMismatchError

WHERE = [
    Predicate(field="age", operator="at-least", number=60),
    Predicate(field="sex", operator="is", text="female"),
]
COUNT = CohortQuery(where=WHERE, release="count", rho_nano=5_000_000)
RISK = CohortQuery(
    where=WHERE, release="count-and-mean-risk", model_id="heart-1", rho_nano=5_000_000
)


@pytest.fixture
def world(sqlite_database: Database) -> World:
    return World(sqlite_database)


@pytest.fixture
def both(database: Database) -> World:
    return World(database)


def asker(world: World, **changes) -> Asker:
    return Asker(**({"account_id": world.account, "key_id": None} | changes))


def body_of(asked: CohortQuery = COUNT, **changes) -> CohortAsk:
    return CohortAsk(
        **({"kind": "cohort", "study_id": "heart", "version": 1, "query": asked} | changes)
    )


def ask(world: World, asked: CohortQuery = COUNT, key: str = "k", **changes) -> str:
    return str(world.gateway.cohorts.ask(asker(world), body_of(asked, **changes), key)["id"])


def claim(world: World, site: str):
    claimed = world.gateway.claim(site)
    assert claimed is not None
    return claimed


def reply(world: World, place: str, claimed=None, **answer) -> None:
    claimed = claimed or claim(world, place)
    document = world.answer_job(claimed, **answer)
    world.gateway.receive(place, claimed.id, claimed.attempt, document=document, code=None)


def refuse(world: World, site: str, code: str = "budget.exhausted") -> None:
    claimed = claim(world, site)
    world.gateway.receive(site, claimed.id, claimed.attempt, document=None, code=code)


def result(world: World, question: str):
    return world.gateway.cohorts.result(world.account, question)


def spent(world: World) -> int:
    return 1000 * NANO - world.balance().posted


def test_every_approved_hospital_gets_one_job_signed_by_the_hub(both: World):
    question = ask(both)
    for site in SITES:
        job = open_document(CohortJob, claim(both, site).payload, issuers={both.hub.did}).subject
        assert (job.site, job.study_sha256, job.query) == (site, both.study_sha256, COUNT)
        assert job.job_id == f"{question}.{site}"
        assert both.gateway.claim(site) is None
    assert both.balance().held == NANO


def test_counts_add_up_and_the_noise_adds_in_quadrature(both: World):
    question = ask(both)
    for site, count in zip(SITES, (40, -3, 12), strict=True):
        with pytest.raises(NotFinishedError):
            result(both, question)
        reply(both, site, count=count)
    found = result(both, question)
    assert (found["count"], found["count_sd_micro"]) == (49, 17_320_508)
    assert found["sites"] == list(SITES)
    assert (found["refused"], "mean_risk_micro" in found) == ([], False)
    assert (spent(both), both.balance().held) == (NANO, 0)
    assert both.balance("revenue:heart").posted == NANO


def test_the_mean_risk_is_the_sums_quotient_and_pays_the_model(world: World):
    question = ask(world, RISK)
    for site in SITES:
        reply(world, site, count=50, risk_sum_micro=20 * MICRO)
    found = result(world, question)
    assert (found["count"], found["mean_risk_micro"]) == (150, 400_000)
    assert 0 < found["mean_risk_sd_micro"] < MICRO
    assert world.balance("revenue:heart-1").posted == NANO


@pytest.mark.parametrize(("total", "mean"), [(-10 * MICRO, 0), (500 * MICRO, MICRO)])
def test_a_mean_is_a_probability_whatever_the_noise(world: World, total, mean):
    question = ask(world, RISK)
    for site in SITES:
        reply(world, site, count=-20, risk_sum_micro=total)
    assert result(world, question)["mean_risk_micro"] == mean


def test_the_receipt_names_every_answer_and_all_of_it_is_logged(both: World):
    question = ask(both, RISK)
    for site in SITES:
        reply(both, site, risk_sum_micro=MICRO)
    found = result(both, question)
    digests = [document_digest(answer) for answer in found["answers"]]
    with both.database.reading() as connection:
        document = both.journal.document(connection, found["receipt_sha256"])
        for kind, digest in zip(both.sites, digests, strict=True):
            logged = both.journal.document(connection, digest)
            open_document(CohortAnswer, logged, issuers={both.sites[kind].did})
        assert len(both.journal.documents_of_kind(connection, "cohort-job")) == len(SITES)
    receipt = open_document(InferenceReceipt, document, issuers={both.hub.did}).subject
    assert (receipt.mode, receipt.answers, receipt.fee_nano) == ("cohort", digests, NANO)
    assert (receipt.model_id, receipt.training_root) == ("heart-1", "5" * 64)
    bare = {
        name: value for name, value in found.items() if name not in {"answers", "receipt_sha256"}
    }
    assert receipt.result_sha256 == result_sha256(bytes.fromhex(found["nonce"]), jcs(bare))


def test_refusing_and_silent_hospitals_are_named_by_code_only(world: World):
    question = ask(world)
    reply(world, "budapest", count=10)
    refuse(world, "cleveland")
    world.clock.at += ANSWER_S
    world.gateway.sweep()
    found = result(world, question)
    assert (found["count"], found["sites"]) == (10, ["budapest"])
    assert found["refused"] == [
        {"site": "cleveland", "code": "budget.exhausted"},
        {"site": "zurich", "code": "site.offline"},
    ]
    assert spent(world) == NANO


def test_if_nobody_answers_the_fee_comes_back_and_the_question_fails(both: World):
    question = ask(both)
    for site in SITES[:2]:
        refuse(both, site)
    both.clock.at += ANSWER_S - 1
    both.gateway.sweep()
    assert both.balance().held == NANO
    both.clock.at += 1
    both.gateway.sweep()
    with pytest.raises(QuestionFailedError):
        result(both, question)
    seen = both.gateway.cohorts.view(both.account, question)
    assert (seen["state"], seen["code"]) == ("failed", "cohort.no-answers")
    assert (spent(both), both.balance().held) == (0, 0)


def test_the_last_two_answers_at_once_settle_the_question_once(both: World):
    question = ask(both)
    held = {site: claim(both, site) for site in SITES}
    barrier = threading.Barrier(len(SITES))

    def together(site: str) -> None:
        barrier.wait()
        reply(both, site, held[site])

    with ThreadPoolExecutor(len(SITES)) as pool:
        list(pool.map(together, SITES))
    assert result(both, question)["count"] == 120
    assert spent(both) == NANO


class CrashError(BaseException):
    """The process is gone."""


def test_a_crash_after_the_last_answer_is_settled_by_the_sweep(world: World, monkeypatch):
    question = ask(world)
    for site in SITES[:2]:
        reply(world, site)

    def die(*_args) -> None:
        raise CrashError

    monkeypatch.setattr(world.gateway.settlement, "settle", die)
    with pytest.raises(CrashError):
        reply(world, "zurich")
    with pytest.raises(NotFinishedError):
        result(world, question)
    world.restart().sweep()
    assert result(world, question)["count"] == 120
    world.gateway.sweep()
    assert spent(world) == NANO


def test_a_sweep_that_comes_after_the_hold_has_expired_answers_nothing_unpaid(world: World):
    question = ask(world)
    held = [claim(world, site) for site in SITES]
    world.clock.at += ANSWER_S + SETTLE_S
    for site, claimed in zip(SITES, held, strict=True):
        reply(world, site, claimed)
    with pytest.raises(QuestionFailedError):
        result(world, question)
    assert (spent(world), world.balance().held) == (0, 0)


def test_a_retried_attempt_may_answer_and_a_late_one_may_not(world: World):
    question = ask(world)
    late = claim(world, "zurich")
    world.clock.at += CLAIM_S + 1
    newest = claim(world, "zurich")
    assert (newest.id, newest.attempt) == (late.id, 2)
    with pytest.raises(LateAttemptError):
        reply(world, "zurich", late)
    document = world.answer_job(newest)
    for _ in range(2):
        world.gateway.receive("zurich", newest.id, 2, document=document, code=None)
    for site in SITES[:2]:
        reply(world, site)
    assert result(world, question)["count"] == 120


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signed_by": "budapest"}, InvalidInputError),
        ({"job_id": "another"}, WrongAnswerError),
        ({"job_sha256": "9" * 64}, WrongAnswerError),
        ({"site": "budapest", "signed_by": "zurich"}, WrongAnswerError),
        ({"rho_nano": 1}, WrongAnswerError),
        ({"risk_sum_micro": 5}, WrongAnswerError),
        ({"sigma_count_micro": 1}, WrongAnswerError),
        ({"sigma_risk_micro": 10_000_000}, WrongAnswerError),
        ({"count": 2**53 - 1}, WrongAnswerError),
        ({"count": -(2**53 - 1)}, WrongAnswerError),
    ],
)
def test_an_answer_that_is_not_the_hospitals_own_to_this_job_is_refused(world, changes, error):
    ask(world)
    claimed = claim(world, "zurich")
    with pytest.raises(error):
        reply(world, "zurich", claimed, **changes)
    reply(world, "zurich", claimed)


def test_the_noise_demanded_of_a_hospital_is_the_noise_it_draws():
    for rho in (2, 3, 1_000, 2_500_001, 5_000_000):
        counted = COUNT.model_copy(update={"rho_nano": rho})
        risked = RISK.model_copy(update={"rho_nano": rho})
        assert pricing.sigma_micro(counted) == sigma_micro_for(rho)
        assert pricing.sigma_micro(risked) == sigma_micro_for(rho // 2)


def test_one_question_that_cannot_be_settled_holds_no_other(world: World, monkeypatch):
    broken, fine = ask(world, key="a"), ask(world, key="b")
    settle = world.gateway.settlement.settle

    def one_fails(question: str) -> None:
        if question == broken:
            raise InvariantError("a bug")
        settle(question)

    monkeypatch.setattr(world.gateway.settlement, "settle", one_fails)
    world.clock.at += ANSWER_S
    world.gateway.sweep()
    states = {
        key: world.gateway.cohorts.view(world.account, key)["state"] for key in (broken, fine)
    }
    assert states == {broken: "running", fine: "failed"}


def test_a_hospital_cannot_answer_for_another(world: World):
    ask(world)
    claimed = claim(world, "zurich")
    with pytest.raises(NotFoundError):
        reply(world, "budapest", claimed)


def test_the_same_key_is_the_same_question_and_another_body_a_mismatch(both: World):
    question = ask(both)
    assert ask(both) == question
    with pytest.raises(IdempotencyMismatchError):
        ask(both, RISK)
    assert ask(both, key="k2") != question
    assert both.balance().held == 2 * NANO


def test_equal_questions_at_once_are_one(both: World):
    barrier = threading.Barrier(3)

    def together(_worker: int) -> str:
        barrier.wait()
        return ask(both)

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(together, range(3)))) == 1
    assert both.balance().held == NANO


def test_no_credits_no_question(sqlite_database: Database):
    world = World(sqlite_database, study=study_of(fee_cohort_nano=1001 * NANO))
    with pytest.raises(ledger.InsufficientCreditsError) as caught:
        ask(world)
    assert caught.value.facts["missing_nano"] == NANO
    assert world.gateway.claim("zurich") is None
    assert world.gateway.cohorts.listed(world.account) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"where": [Predicate(field="severity", operator="below", number=1)]},
            QueryNotAllowedError,
        ),
        ({"where": [Predicate(field="age", operator="is", text="x")]}, QueryNotAllowedError),
        ({"where": [Predicate(field="sex", operator="below", number=1)]}, QueryNotAllowedError),
        ({"where": [Predicate(field="age", operator="below")]}, QueryNotAllowedError),
        ({"where": [Predicate(field="age", operator="below", text="x")]}, QueryNotAllowedError),
        ({"where": [Predicate(field="sex", operator="is", number=1)]}, QueryNotAllowedError),
        ({"model_id": "heart-1"}, QueryNotAllowedError),
        ({"release": "count-and-mean-risk"}, QueryNotAllowedError),
        (RISK.model_dump() | {"model_id": "\0", "where": WHERE}, QueryNotAllowedError),
        (RISK.model_dump() | {"rho_nano": 1, "where": WHERE}, QueryNotAllowedError),
        ({"rho_nano": 20_000_001}, BeyondBudgetError),
    ],
)
def test_a_question_outside_the_studys_grammar_is_refused_before_it_costs(world, changes, error):
    with pytest.raises(error):
        ask(world, COUNT.model_copy(update=changes))
    assert world.balance().held == 0


def test_only_the_proposer_asks_and_only_a_live_study_is_asked(world: World):
    stranger = asker(world, account_id=world.account + 1)
    with pytest.raises(OutOfScopeError):
        world.gateway.cohorts.ask(stranger, body_of(), "k")
    with pytest.raises(OutOfScopeError):
        world.gateway.cohorts.ask(asker(world, study_id="other"), body_of(), "k")
    with pytest.raises(NotFoundError):
        ask(world, version=2)
    world.retire()
    with pytest.raises(Exception, match="retired"):
        ask(world, RISK)


def test_a_study_whose_hospitals_left_has_nobody_to_ask(world: World):
    with world.database.unit_of_work() as connection:
        connection.execute(members.site_table.update().values(state="left"))
    with pytest.raises(NobodyToAskError):
        ask(world)


def test_an_estimate_is_free_and_says_what_the_noise_will_be(world: World):
    said = world.gateway.cohorts.estimate(asker(world), body_of())
    assert (said["fee_nano"], said["sites"]) == (NANO, list(SITES))
    # sigma = 1/sqrt(2 * 0.005) = 10 at each of three hospitals
    assert said["count_sd_micro"] == pytest.approx(17_320_508, abs=2)
    assert said["epsilon_upper_micro"] > 430_000  # the tight figure of references/gateway.md §6
    assert world.balance().held == 0
    assert world.gateway.claim("zurich") is None


def test_the_price_list_rounds_up_and_a_mean_halves_the_rho():
    assert pricing.sd_count_micro(RISK, 1) == pytest.approx(14_142_136, abs=2)
    assert pricing.fee_point(study_of(), 3) == 3 * study_of().fee_point_nano


def test_budgets_count_a_replayed_answer_once(world: World):
    for key, sequence in (("a", 7), ("b", 7), ("c", 8)):
        ask(world, key=key)
        for site in SITES[:2]:
            reply(world, site, debit_sequence=sequence)
        refuse(world, "zurich")
    (line,) = world.gateway.budgets(asker(world), "heart")
    assert line["cohort_rho_nano"] == 20_000_000
    assert [(site["site"], site["spent_rho_nano"]) for site in line["sites"]] == [
        ("budapest", 10_000_000),
        ("cleveland", 10_000_000),
        ("zurich", 0),
    ]
    with pytest.raises(NotFoundError):
        world.gateway.budgets(asker(world, account_id=99), "heart")


def test_a_question_is_only_its_askers(world: World):
    question = ask(world)
    with pytest.raises(NotFoundError):
        world.gateway.cohorts.view(world.account + 1, question)
    with pytest.raises(NotFoundError):
        world.gateway.cohorts.result(world.account + 1, question)


def test_done_questions_stand_in_the_usage(world: World):
    ask(world)
    for site in SITES:
        reply(world, site)
    (line,) = world.gateway.usage(world.account)
    assert (line["mode"], line["model"], line["fee_nano"]) == ("cohort", "heart", NANO)


def signed(client, key: SigningKey, method: str, path: str, body: object, now: int):
    import orjson

    content = orjson.dumps(body)
    headers = sign(key, method=method, path=path, body=content, now=now)
    headers["Content-Type"] = "application/json"
    return client.request(method, path, content=content, headers=headers | {"Authorization": ""})


def test_the_whole_question_over_http(world: World):
    body = {"kind": "cohort", "study_id": "heart", "version": 1, "query": COUNT.model_dump()}
    with world.client() as client:
        assert client.post("/v1/jobs:estimate", json=body).json()["fee_nano"] == NANO
        refused = client.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (400, "gateway.idempotency-key")
        beyond = freshness.token(world.journal.origin, 10**6)
        demanding = {"Idempotency-Key": "k", "Coop-At-Least-As-Fresh": beyond}
        behind = client.post("/v1/jobs", json=body, headers=demanding)
        assert (behind.status_code, behind.json()["code"]) == (503, "consent.behind")
        assert world.balance().held == 0
        accepted = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
        mismatched = client.post("/v1/jobs", json=body, headers=demanding)
        assert mismatched.json()["code"] == "gateway.idempotency-mismatch"
        assert accepted.status_code == 202
        job = accepted.headers["Location"]
        assert client.get(f"{job}/result").status_code == 409
        for site, key in world.sites.items():
            path = f"/v1/sites/{site}/jobs:claim"
            stranger = signed(client, world.hub, "POST", path, {"wait": 0}, NOON)
            assert stranger.status_code == 403
            other = f"/v1/sites/{SITES[SITES.index(site) - 1]}/jobs:claim"
            assert signed(client, key, "POST", other, {"wait": 0}, NOON).status_code == 404
            claimed = signed(client, key, "POST", path, {"wait": 0}, NOON).json()
            assert claimed["kind"] == "cohort"
            assert signed(client, key, "POST", path, {"wait": 0}, NOON).status_code == 204
            document = world.answer_job(_Claimed(claimed))
            put = f"/v1/sites/{site}/jobs/{claimed['id']}/attempts/{claimed['attempt']}/result"
            for _ in range(2):
                said = signed(client, key, "PUT", put, {"document": document}, NOON)
                assert (said.status_code, said.json()) == (200, {"stored": True})
            both_said = {"document": document, "refused": "x"}
            assert signed(client, key, "PUT", put, both_said, NOON).status_code == 400
        assert client.get(job, params={"wait": 5}).json()["state"] == "done"
        assert client.get(f"{job}/result").json()["count"] == 120
        assert [line["id"] for line in client.get("/v1/jobs").json()["jobs"]] == [job[9:]]
        assert client.get("/v1/usage").json()["usage"][0]["answers"] == 1
        assert client.get("/v1/budgets", params={"study": "heart"}).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [{"version": 2**70}, {"version": 0}, {"study_id": "\0"}, {"study_id": "none"}, {"query": {}}],
)
def test_what_no_database_takes_is_refused_at_the_door(both: World, changes):
    body = {"kind": "cohort", "study_id": "heart", "version": 1, "query": COUNT.model_dump()}
    with both.client() as client:
        reply = client.post("/v1/jobs:estimate", json=body | changes)
        assert reply.status_code in {404, 422}
        for path in ("/v1/jobs/%00", "/v2/models/%00", "/v1/jobs/%00/result"):
            assert client.get(path).status_code == 422
        for name, path in (("pid", "/v1/me/uses"), ("study", "/v1/budgets")):
            assert client.get(path, params={name: "\0"}).status_code in {403, 422}


class _Claimed:
    def __init__(self, said: dict) -> None:
        self.payload = said["payload"]


def test_a_waiting_claim_is_woken_by_the_question(world: World):
    with world.client() as client, ThreadPoolExecutor(1) as pool:
        path = "/v1/sites/zurich/jobs:claim"
        waiting = pool.submit(
            signed, client, world.sites["zurich"], "POST", path, {"wait": 20}, NOON
        )
        while world.gateway._seen.get("zurich") is None:
            threading.Event().wait(0.01)
        question = ask(world)
        assert waiting.result(timeout=3).json()["id"] == f"{question}.zurich"


def test_combining_is_a_sum_whatever_the_order():
    def one(site: str, count: int, total: int) -> CohortAnswer:
        return CohortAnswer(
            job_id="j", job_sha256="0" * 64, site=site, lease_sha256="0" * 64,
            count_noised=count, risk_sum_noised_micro=total, sigma_count_micro=3 * MICRO,
            sigma_risk_micro=4 * MICRO, rho_nano=1, debit_sequence=1, data_version=1,
            cohort_commitment="0" * 64,
        )  # fmt: skip

    answers = [one("a", 10, 5 * MICRO), one("b", 30, 5 * MICRO)]
    assert query.combine(answers, RISK) == query.combine(answers[::-1], RISK)
    assert query.combine(answers, RISK).mean_risk_micro == 250_000
    alone = query.combine(answers[:1], RISK)
    assert (alone.count_sd_micro, alone.mean_risk_micro) == (3 * MICRO, 500_000)
    assert alone.mean_risk_sd_micro == pytest.approx((16 + 2.25) ** 0.5 / 10 * MICRO, abs=2)


def test_sealed_documents_of_another_kind_are_no_answers(world: World):
    ask(world)
    claimed = claim(world, "zurich")
    job = CohortJob.model_validate(claimed.payload["credentialSubject"])
    wrong = issue(job, world.sites["zurich"], NOON)
    with pytest.raises(InvalidInputError):
        world.gateway.receive("zurich", claimed.id, 1, document=wrong, code=None)


def test_declared_purpose_is_the_studys_own(world: World):
    narrow = asker(world, purpose="DUO:0000042")
    with pytest.raises(OutOfScopeError):
        world.gateway.cohorts.ask(narrow, body_of(), "k")
    world.gateway.cohorts.ask(asker(world, purpose=DS), body_of(), "k")
