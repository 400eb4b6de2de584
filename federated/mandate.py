"""Step (1) of a round: may this hospital do what it is asked? Judged by its own approval alone.

Core: pure, no I/O. Every figure of the order is recomputed here from the study that was approved;
nothing is believed because the hub says it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from consent.duo import Reading, asserted
from consent.purposes import USES
from consent.questions import Action
from coop.canonical import Json, jcs, sha256
from coop.documents.envelope import Opened, open_document
from coop.documents.study import MICRO, Study
from coop.documents.training import Order, RoundRequest
from coop.errors import CoopError, Kind
from coop.families import family_of, size
from coop.features import columns
from federated.approval import Approved, NotApprovedError
from federated.integer_noise import fits
from federated.masked_sum import threshold_allowed
from federated.models import Weights, check, weights_digest

_ACTIONS: Final[Mapping[str, Action]] = {"train": "train-federated", "evaluate": "evaluate"}


class OrderMismatchError(CoopError):
    """The order is not the one this hospital's approval stands for."""

    code = "round.order-mismatch"
    kind = Kind.FORBIDDEN


class PlanMismatchError(CoopError):
    """The order's noise, clipping, rounds, delta or quorum differ from the approved plan."""

    code = "round.plan-mismatch"
    kind = Kind.FORBIDDEN


class SoftwareMismatchError(CoopError):
    """The order names other software than this hospital approved."""

    code = "round.software-mismatch"
    kind = Kind.FORBIDDEN


class OutOfTimeError(CoopError):
    """The order is not valid yet, or no longer."""

    code = "round.out-of-time"
    kind = Kind.CONFLICT


class RequestMismatchError(CoopError):
    """The request is not one of the order's rounds, or came with other weights."""

    code = "round.request-mismatch"
    kind = Kind.FORBIDDEN


class PurposeNotUnderstoodError(CoopError):
    """The study's purpose or use is unknown here, so nothing is permitted for it."""

    code = "round.unknown-purpose"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Mandate:
    """A round this hospital has found to be within its own approval."""

    approved: Approved
    order: Opened[Order]
    request: Opened[RoundRequest]
    weights: Weights
    input_sha256: str
    """Of order, phase, round and weights: what makes two requests the same draw."""

    @property
    def study(self) -> Study:
        """The approved study."""
        return self.approved.study

    @property
    def action(self) -> Action:
        """The use that a patient's policy must permit."""
        return _ACTIONS[self.request.subject.phase]

    @property
    def key(self) -> str:
        """Names the round in the ledger; `:attempt` follows."""
        asked = self.request.subject
        return f"round:{self.order.digest}:{asked.phase}:{asked.round}"

    @property
    def masked(self) -> bool:
        """Whether the answer leaves under masks: a training round in mode B."""
        return self.order.subject.mode == "B" and self.request.subject.phase == "train"

    @property
    def rho_nano(self) -> int:
        """What a patient of the cohort pays for the draw."""
        plan = self.approved.plan
        train = self.request.subject.phase == "train"
        return plan.rho_round_nano if train else plan.rho_evaluation_nano

    @property
    def sigma_micro(self) -> int:
        """The draw's noise multiplier."""
        plan = self.approved.plan
        train = self.request.subject.phase == "train"
        return plan.training_sigma_micro if train else plan.evaluation_sigma_micro

    @property
    def sampling_micro(self) -> int:
        """The chance of each of the cohort to be in the draw: below 1 in sampled training only."""
        plan = self.approved.plan
        return plan.sampling_micro if self.request.subject.phase == "train" else MICRO


def open_order(order: Mapping[str, Json], hub_did: str) -> Opened[Order]:
    """The order, if the pinned hub signed it."""
    return open_document(Order, order, issuers={hub_did})


def verify(  # noqa: PLR0913  (the chain's documents and the two keys that judge them)
    approved: Approved,
    order: Opened[Order],
    request: Mapping[str, Json],
    weights: Weights,
    *,
    did: str,
    hub_did: str,
    hospitals: Mapping[str, str],
    now: int,
) -> Mandate:
    """The mandate for this round, after holding every link against this hospital's approval.

    The steps: (a) approval and study are in force, purpose and use are understood; (b) the order is
    for this study, this hospital's key and this approval; (c) noise, clipping, rounds, delta and
    quorum equal the plan recomputed from the study; (d) software and app digest are the approved;
    (e) it is the order's time; (f) the request is signed by the hub, names this order and one of
    its rounds, and its weights are these.

    Args:
        approved: This hospital's approval of the order's study.
        order: Already opened under the pinned hub's key.
        request: The round request.
        weights: As received.
        did: This hospital's key.
        hub_did: The pinned hub.
        hospitals: The others that count here (`federated.witnesses`): with a roster of its own
            inventions a hub could read one hospital's masked answer, whose noise is only a share.
        now: UTC seconds.

    Raises:
        NotApprovedError, PurposeNotUnderstoodError: (a) fails.
        OrderMismatchError, PlanMismatchError, SoftwareMismatchError, OutOfTimeError: (b) to (e).
        RequestMismatchError, WrongWeightsError, WrongDocumentError: (f) fails.
    """
    study = approved.study
    # (a)
    approved.check_in_force(now)
    read = asserted(study.purpose, study.disease, tuple(study.further_purposes))
    if read.reading is not Reading.CLEAR:
        raise PurposeNotUnderstoodError("purpose: not understood here, so nothing is permitted")
    # (b)
    _check_names(order.subject, approved, did, hospitals)
    # (c)
    _check_plan(order.subject, approved)
    # (d)
    named = (order.subject.software, order.subject.fab_sha256)
    if named != (approved.approval.software, approved.approval.fab_sha256):
        raise SoftwareMismatchError("order: names other software than this hospital approved")
    # (e)
    if not order.subject.not_before <= now < order.subject.not_after:
        raise OutOfTimeError("order: not valid at this time")
    # (f)
    opened = open_document(RoundRequest, request, issuers={hub_did})
    checked = _check_request(opened, order, weights, study)
    mandate = Mandate(
        approved=approved,
        order=order,
        request=opened,
        weights=checked,
        input_sha256=_input_digest(order.digest, opened.subject),
    )
    if mandate.action not in study.uses or mandate.action not in USES:
        raise PurposeNotUnderstoodError(f"uses: the study does not ask for {mandate.action}")
    if mandate.rho_nano == 0:
        raise RequestMismatchError("request: the study's plan has no budget for this phase")
    return mandate


def _check_names(order: Order, approved: Approved, did: str, hospitals: Mapping[str, str]) -> None:
    study, approval = approved.study, approved.approval
    named = (order.study_sha256, order.study_id, order.version)
    if named != (approved.study_sha256, study.study_id, study.version):
        raise NotApprovedError("order: for another study than this hospital approved")
    own = [entry for entry in order.roster if entry.site == approval.site or entry.did == did]
    if len(own) != 1 or own[0].site != approval.site or own[0].did != did:
        raise OrderMismatchError("order.roster: must name this hospital once, with its own key")
    if own[0].approval_sha256 != approved.approval_sha256:
        raise OrderMismatchError("order.roster: names another approval than this hospital's newest")
    for entry in order.roster:
        if entry.site != approval.site and hospitals.get(entry.site) != entry.did:
            raise OrderMismatchError(
                f"order.roster: {entry.site} does not count here with this key; compare it with "
                "them, then coop hospital accept"
            )
    if len({entry.site for entry in order.roster}) != len(order.roster):
        raise OrderMismatchError("order.roster: names a hospital twice")


def _check_plan(order: Order, approved: Approved) -> None:
    study, plan = approved.study, approved.plan
    asked = {
        "training_sigma_micro": (order.training_sigma_micro, plan.training_sigma_micro),
        "sampling_micro": (order.sampling_micro, plan.sampling_micro),
        "clip_micro": (order.clip_micro, study.recipe.clip_micro),
        "rounds": (order.rounds, plan.rounds),
        "delta_pico": (order.delta_pico, study.budget.delta_pico),
        "honest": (order.honest, study.recipe.honest),
    }
    if plan.rho_evaluation_nano:
        asked["evaluation_sigma_micro"] = (
            order.evaluation_sigma_micro,
            plan.evaluation_sigma_micro,
        )
    for name, (ordered, planned) in asked.items():
        if ordered != planned:
            raise PlanMismatchError(f"order.{name}: must be {planned}, the approved plan's")
    if order.mode != study.recipe.mode:
        raise PlanMismatchError(f"order.mode: must be {study.recipe.mode}, the approved study's")
    if not max(study.hospitals_quorum, order.honest) <= order.quorum <= len(order.roster):
        raise PlanMismatchError("order.quorum: below the study's or its h, or above the roster")
    if order.mode == "B" and not threshold_allowed(order.honest, len(order.roster)):
        raise PlanMismatchError("order.honest: not more than two thirds of the roster")
    if order.mode == "B" and not fits(
        clip_micro=order.clip_micro,
        length=size(family_of(study), len(columns(study.schema_))),
        sigma_micro=order.training_sigma_micro,
        population=study.recipe.population,
        parties=len(order.roster),
    ):
        raise PlanMismatchError("order: its sums could leave the range of the integers")


def _check_request(
    opened: Opened[RoundRequest], order: Opened[Order], weights: Weights, study: Study
) -> Weights:
    asked, rounds = opened.subject, order.subject.rounds
    if asked.order_sha256 != order.digest:
        raise RequestMismatchError("request.order_sha256: names another order")
    expected = range(1, rounds + 1) if asked.phase == "train" else range(rounds + 1, rounds + 2)
    if asked.round not in expected:
        raise RequestMismatchError("request.round: not a round of this order")
    checked = check(weights, len(columns(study.schema_)), family_of(study))
    if weights_digest(checked) != asked.weights_sha256:
        raise RequestMismatchError("request.weights_sha256: not the weights that came with it")
    return checked


def _input_digest(order_sha256: str, asked: RoundRequest) -> str:
    return sha256(
        jcs(
            {
                "order_sha256": order_sha256,
                "phase": asked.phase,
                "round": asked.round,
                "weights_sha256": asked.weights_sha256,
            }
        )
    ).hex()
