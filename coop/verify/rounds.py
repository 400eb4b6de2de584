"""Verifying a training round: the whole chain from the study to the hub's record of the round.

Every document names its predecessor by SHA-256, is signed by whom it must be, and stands in the log
after its predecessor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coop.canonical import Json
from coop.documents.envelope import Opened
from coop.documents.study import MICRO, PICO, Approval, Budget, Study
from coop.documents.training import Order, RoundReceipt, RoundRecord, RoundRequest
from coop.journal.trust import Trust
from coop.privacy_loss import Releases, epsilon_of_releases
from coop.verify.bundles import Report, VerificationError, Work, list_of, object_of, open_as

_ROUNDING: Final = 1e-6  # of two ways to compute one curve in floating point
_MEMBERS: Final = {"v", "order", "study", "approvals", "request", "receipts", "record"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    study: Opened[Study]
    approvals: list[Opened[Approval]]
    order: Opened[Order]
    request: Opened[RoundRequest]
    receipts: list[Opened[RoundReceipt]]
    record: Opened[RoundRecord]


def verify_round(chain: Mapping[str, Json], trust: Trust) -> Report:
    """Verify one round of training or evaluation from the study to the record.

    Steps:
      (1) every document is logged, signed by whoever may say this, and stands after its
          predecessors;
      (2) each approval is one hospital's, of exactly this study, and its cap covers the plan;
      (3) the order is of this study, names exactly these approvals, repeats the plan and draws
          noise enough for the study's epsilon and delta;
      (4) the request is of this order, within its rounds and its time;
      (5) each receipt is a rostered hospital's answer to this request with the order's noise;
      (6) the record accepts exactly these receipts, at least a quorum of them.

    Raises:
        VerificationError: The documents do not fit together.
    """
    if set(chain) != _MEMBERS or chain["v"] != 1:
        raise VerificationError(f"round: needs v=1 and exactly {sorted(_MEMBERS)}")
    work = Work(trust=trust)
    # (1)
    read = _read(work, chain)
    # (2)
    _check_approvals(read)
    work.step("approvals: of exactly this study, and their caps cover its plan")
    # (3)
    _check_order(read)
    _check_noise(read)
    work.step("order: names these approvals only, repeats the study's plan, keeps its epsilon")
    # (4)
    _check_request(read)
    work.step(f"request: round {read.request.subject.round} of this order, in its time")
    # (5)
    _distinct("receipts", [receipt.subject.site for receipt in read.receipts])
    for receipt in read.receipts:
        _check_receipt(read, receipt.subject)
    work.step("receipts: rostered hospitals answered this request with the order's noise")
    # (6)
    _check_record(read)
    work.step("record: accepts exactly these receipts, and they are a quorum")
    return work.report("round", _facts(read))


def _read(work: Work, chain: Mapping[str, Json]) -> _Chain:
    study = work.logged(Study, chain["study"])
    approvals = [
        work.logged(Approval, approval) for approval in list_of(chain["approvals"], "approvals")
    ]
    order = work.logged(Order, chain["order"])
    asked = object_of(chain["request"], "request")
    if "document" in asked:
        request = work.logged(RoundRequest, asked)
    else:
        request = open_as(RoundRequest, asked, work.trust)
        work.step("round-request: signed by the hub, named by every receipt")
    receipts = [
        work.logged(RoundReceipt, receipt) for receipt in list_of(chain["receipts"], "receipts")
    ]
    record = work.logged(RoundRecord, chain["record"])
    _check_places(work)
    return _Chain(
        study=study,
        approvals=approvals,
        order=order,
        request=request,
        receipts=receipts,
        record=record,
    )


def _check_places(work: Work) -> None:
    """Kinds may not be logged before the kinds they name."""
    ranks = [
        kind.kind for kind in (Study, Approval, Order, RoundRequest, RoundReceipt, RoundRecord)
    ]
    places = [(ranks.index(one.kind), one.index) for one in work.seen]
    for rank, index in places:
        if any(later <= index for other, later in places if other > rank):
            raise VerificationError("log: a document stands before one that it names")
    work.step("log: every document stands after those it names")


def _check_approvals(read: _Chain) -> None:
    study = read.study
    plan = (study.digest, study.subject.study_id, study.subject.version)
    for approval in read.approvals:
        said = approval.subject
        if (said.study_sha256, said.study_id, said.version) != plan:
            raise VerificationError(f"approval of {said.site}: of another study")
        if said.epsilon_cap_micro < study.subject.budget.epsilon_micro:
            raise VerificationError(f"approval of {said.site}: its cap is below the study's plan")
        if not read.order.at < min(said.expires, study.subject.expires):
            raise VerificationError(f"approval of {said.site}: expired before the order")
    _distinct("approvals", [approval.subject.site for approval in read.approvals])


def _check_order(read: _Chain) -> None:
    order, study = read.order.subject, read.study.subject
    named = {(ref.site, ref.did, ref.approval_sha256) for ref in order.roster}
    given = {(one.subject.site, one.issuer, one.digest) for one in read.approvals}
    if order.study_sha256 != read.study.digest or named != given:
        raise VerificationError("order: does not name exactly this study and these approvals")
    _distinct("order.roster", [ref.site for ref in order.roster])
    recipe = study.recipe
    plan = (recipe.rounds, recipe.clip_micro, recipe.mode, study.budget.delta_pico)
    if (order.rounds, order.clip_micro, order.mode, order.delta_pico) != plan:
        raise VerificationError("order: its rounds, clip, mode or delta is not the study's")
    relies = order.honest == recipe.honest and order.quorum >= order.honest
    if not relies or (order.mode == "B" and 3 * order.honest <= 2 * len(order.roster)):
        raise VerificationError("order: relies on other hospitals' noise than its study allows")
    if (order.study_id, order.version) != (study.study_id, study.version):
        raise VerificationError("order: of another study or version")
    software = {(one.subject.software, one.subject.fab_sha256) for one in read.approvals}
    if software != {(order.software, order.fab_sha256)}:
        raise VerificationError("order: runs other software than the hospitals approved")


def _check_noise(read: _Chain) -> None:
    """All rounds and the evaluation together must stay within the study's epsilon and delta.

    The exact curve of composed Gaussian releases (Balle & Wang 2018, theorem 8), as the hospitals
    compute it in `federated.accounting`; here without anything but the standard library. Of
    samples: by their privacy loss distributions.
    """
    order, budget = read.order.subject, read.study.subject.budget
    sigmas = order.training_sigma_micro, order.evaluation_sigma_micro
    if order.sampling_micro != read.study.subject.recipe.sampling_micro:
        raise VerificationError("order: samples otherwise than its study says")
    if not keeps_budget(budget, order.rounds, *sigmas, sampling_micro=order.sampling_micro):
        raise VerificationError("order: less noise than the study's epsilon and delta ask for")


def keeps_budget(
    budget: Budget,
    rounds: int,
    training_micro: int,
    evaluation_micro: int,
    *,
    sampling_micro: int = MICRO,
) -> bool:
    """Whether so many rounds and an evaluation with these sigmas stay within (epsilon, delta)."""
    if sampling_micro < MICRO:
        releases = [Releases(training_micro / MICRO, rounds, sampling_micro / MICRO)]
        if budget.evaluation_percent:
            releases.append(Releases(evaluation_micro / MICRO))
        spent = epsilon_of_releases(releases, budget.delta_pico / PICO)
        return spent <= budget.epsilon_micro / MICRO
    squared = rounds * (MICRO / training_micro) ** 2
    if budget.evaluation_percent:
        squared += (MICRO / evaluation_micro) ** 2
    epsilon, mu = budget.epsilon_micro / MICRO, math.sqrt(squared)
    delta = _tail(epsilon / mu - mu / 2) - math.exp(epsilon) * _tail(epsilon / mu + mu / 2)
    return delta <= budget.delta_pico / PICO * (1 + _ROUNDING)


def _tail(x: float) -> float:
    """The probability that a standard normal number is above `x`."""
    return math.erfc(x / math.sqrt(2)) / 2


def _check_request(read: _Chain) -> None:
    order, request = read.order.subject, read.request.subject
    if request.order_sha256 != read.order.digest:
        raise VerificationError("request: of another order")
    trains = request.phase == "train" and request.round <= order.rounds
    evaluates = request.phase == "evaluate" and request.round == order.rounds + 1
    if not (trains or evaluates) or not order.not_before <= read.request.at < order.not_after:
        raise VerificationError("request: outside the order's rounds or its time")


def _check_receipt(read: _Chain, receipt: RoundReceipt) -> None:
    order, request = read.order.subject, read.request.subject
    asked = (read.order.digest, read.request.digest, request.phase, request.round)
    answered = (receipt.order_sha256, receipt.request_sha256, receipt.phase, receipt.round)
    if answered != asked:
        raise VerificationError(f"receipt of {receipt.site}: answers another request")
    if receipt.site not in {ref.site for ref in order.roster}:
        raise VerificationError(f"receipt of {receipt.site}: this hospital is not on the roster")
    training = request.phase == "train"
    sigma = order.training_sigma_micro if training else order.evaluation_sigma_micro
    if receipt.sigma_micro < sigma or (training and receipt.clip_micro != order.clip_micro):
        raise VerificationError(f"receipt of {receipt.site}: less noise than the order says")


def _check_record(read: _Chain) -> None:
    order, request, record = read.order.subject, read.request.subject, read.record.subject
    asked = (read.order.digest, read.request.digest, request.phase, request.round)
    if (record.order_sha256, record.request_sha256, record.phase, record.round) != asked:
        raise VerificationError("record: of another round")
    if (record.previous_sha256 is None) != (record.round == 1):
        raise VerificationError("record: only the first round has no record before it")
    accepted = {(one.site, one.receipt_sha256) for one in record.accepted}
    given = {(one.subject.site, one.digest) for one in read.receipts}
    if accepted != given:
        raise VerificationError("record: does not accept exactly these receipts")
    refused = [one.site for one in record.refused]
    _distinct("record", [one.site for one in record.accepted] + refused)
    if not set(refused) <= {ref.site for ref in order.roster}:
        raise VerificationError("record: refuses a hospital that is not on the roster")
    if len(accepted) < order.quorum:
        raise VerificationError("record: accepts fewer answers than the order's quorum")


def _distinct(where: str, sites: Sequence[str]) -> None:
    if len(set(sites)) != len(sites):
        raise VerificationError(f"{where}: a hospital stands twice")


def _facts(read: _Chain) -> dict[str, Json]:
    record = read.record.subject
    accepted: list[Json] = [one.site for one in record.accepted]
    refused: list[Json] = [{"site": one.site, "code": one.code} for one in record.refused]
    return {
        "study_id": read.study.subject.study_id,
        "version": read.study.subject.version,
        "proposed_by": read.study.issuer,
        "order_sha256": read.order.digest,
        "phase": record.phase,
        "round": record.round,
        "accepted": accepted,
        "refused": refused,
        "record_sha256": read.record.digest,
        "previous_sha256": record.previous_sha256,
        "aggregate_sha256": record.aggregate_sha256,
    }
