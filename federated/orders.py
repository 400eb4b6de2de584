"""Making an order out of what hospitals signed: roster, plan and times; never more than they said.

Core: pure, no I/O.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from coop.documents.training import ApprovalRef, Order
from coop.errors import ConflictError
from coop.studies import ApprovalRow, StudyRow
from federated.fab import fab_hash

_ORDER_S: Final = 14 * 86_400  # a run of 1000 rounds with nightly outages fits twice


class NoMaskedSumError(ConflictError):
    """Mode B's proof does not cover so many approving hospitals with the study's h."""

    code = "training.no-masked-sum"


class OrderRefusedError(ConflictError):
    """Too few hospitals have a live approval of this study, this software and this bundle."""

    code = "training.below-quorum"


def make_order(
    row: StudyRow, approvals: Sequence[ApprovalRow], dids: Mapping[str, str], *, now: int
) -> Order:
    """The order for a study: every member with a live, matching approval is on the roster.

    Steps: (1) approvals that expired, or name other software or another bundle, are left out: those
    hospitals would refuse; (2) quorum, and in mode B enough of them to rely on h; (3) noise from
    the study's own plan; (4) the order ends before the first approval does.

    Raises:
        OrderRefusedError: (2) fails.
        NoMaskedSumError: (2) fails for mode B.
    """
    from federated.accounting import plan  # noqa: PLC0415  (scipy; only an order needs it)
    from federated.approval import software_version  # noqa: PLC0415  (the node's module)
    from federated.masked_sum import threshold_allowed  # noqa: PLC0415  (only an order needs it)

    study, software = row.study, software_version()
    # (1)
    live = [
        approved
        for approved in approvals
        if approved.site in dids
        and approved.approval.expires > now
        and approved.approval.software == software
        and approved.approval.fab_sha256 == fab_hash()
    ]
    # (2)
    if len(live) < study.hospitals_quorum or not live:
        raise OrderRefusedError(
            f"study: {len(live)} of {study.hospitals_quorum} needed approvals are live and name "
            f"{software}",
            live=len(live),
            needed=study.hospitals_quorum,
        )
    recipe = study.recipe
    if recipe.mode == "B" and not threshold_allowed(recipe.honest, len(live)):
        raise NoMaskedSumError(
            f"recipe.honest: {recipe.honest} must be more than two thirds of the {len(live)} "
            "hospitals that approve, and at most all of them; propose a version with another h",
            honest=recipe.honest,
            live=len(live),
        )
    # (3)
    split = plan(study.budget, study.recipe.schedule)
    return Order(
        study_sha256=row.digest,
        study_id=study.study_id,
        version=study.version,
        roster=[
            ApprovalRef(site=a.site, did=dids[a.site], approval_sha256=a.digest)
            for a in sorted(live, key=lambda approved: approved.site)
        ],
        quorum=max(study.hospitals_quorum, recipe.honest),
        rounds=study.recipe.rounds,
        sampling_micro=recipe.sampling_micro,
        training_sigma_micro=split.training_sigma_micro,
        # Without an evaluation the figure is never used; the document type wants one.
        evaluation_sigma_micro=max(split.evaluation_sigma_micro, 1),
        clip_micro=study.recipe.clip_micro,
        delta_pico=study.budget.delta_pico,
        mode=recipe.mode,
        honest=recipe.honest,
        fab_sha256=fab_hash(),
        software=software,
        not_before=now,
        # (4)
        not_after=min(now + _ORDER_S, study.expires, *(a.approval.expires for a in live)),
    )


def stands(known: Order, fresh: Order, now: int) -> bool:
    """Whether `known` may be resumed: it is in time, and a new order would say the same."""
    ignored = {"not_before", "not_after"}
    return now < known.not_after and known.model_dump(exclude=ignored) == fresh.model_dump(
        exclude=ignored
    )
