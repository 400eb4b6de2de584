"""One round at a hospital: from a signed order to a noised update, in the seven steps of DESIGN §7.

What leaves is the noised update and a receipt of digests and salted commitments. Nothing exact
does: no count, no error that depends on a record; an empty cohort answers with pure noise.

| a crash                          | afterwards                                                    |
|----------------------------------|---------------------------------------------------------------|
| before the debit of (4)          | nothing happened                                              |
| between (4) and storing in (5)   | debited; the repeat computes again under the same debit       |
| between (5) and (7)              | the repeat sends the stored bytes, after a fresh (6)          |
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import safetensors.numpy
import sqlalchemy as sa
from numpy.typing import NDArray

from consent.proofs.cohort import arrange, count_commitment
from coop.canonical import Json, document_digest, jcs, parse_object, sha256
from coop.documents.envelope import issue, open_document
from coop.documents.study import MICRO
from coop.documents.training import RoundReceipt
from coop.errors import ConflictError, CoopError, Kind
from coop.families import family_of
from federated import budget, witnesses
from federated.answers import (
    State,
    Stored,
    attempts,
    discard,
    release_again,
    store,
    stored,
)
from federated.answers import release as first_release
from federated.approval import approved_study
from federated.evaluation import histogram, noised
from federated.integer_noise import noised_sum
from federated.mandate import Mandate, open_order, verify
from federated.mirror import HeldLease, Mirror
from federated.models import Weights
from federated.overlay import refuse_if_forbidden
from federated.pace import even_pace
from federated.permits import consent_request, permitted, shown_by
from federated.records import all_pids, rows_of
from federated.site import Site
from federated.usable import Examples, examples

Clock = Callable[[], int]

INTEGERS: Final = "integers"
"""Name of mode B's stored vector: it never leaves without masks."""
ATTEMPTS_MAX: Final = 16  # of one round; the reserve of any sane plan ends before


class WithdrawnError(CoopError):
    """A patient who permitted the answer withdrew before it left; it never will. Ask again."""

    code = "round.withdrawn"
    kind = Kind.CONFLICT


class MaskedOnlyError(CoopError):
    """In mode B a training answer leaves only under masks."""

    code = "round.masked-only"
    kind = Kind.FORBIDDEN


class ChangedInputError(ConflictError):
    """This round was answered for other weights; a changed round is another order's."""

    code = "round.changed-input"


class TooManyAttemptsError(CoopError):
    """So many withdrawals during one round that it is not tried again."""

    code = "round.too-many-attempts"
    kind = Kind.TOO_MANY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundInput:
    """What the hub sent for one round."""

    order: Mapping[str, Json]
    request: Mapping[str, Json]
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundAnswer:
    """What leaves: the signed receipt and the noised arrays its `update_sha256` names."""

    receipt: dict[str, Json]
    update: dict[str, NDArray[Any]]
    """The family's tensors, float32; in phase evaluate `{"histogram": int64 [groups, 2, bins]}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An answer that passed (6) under a lease still in force: it may leave within it."""

    mandate: Mandate
    answer: Stored
    fresh: HeldLease
    at: int

    @property
    def body(self) -> bytes:
        """The stored bytes."""
        if self.answer.body is None:
            raise WithdrawnError("round: a consent changed while it was answered; ask again")
        return self.answer.body


def wall_clock() -> int:
    """UTC seconds: the node's edge, where time enters."""
    return int(time.time())


@even_pace()
def answer_round(
    site: Site, mirror: Mirror, asked: RoundInput, *, now: Clock = wall_clock
) -> RoundAnswer:
    """Answer one round, or refuse it with a code that says nothing about any patient.

    Guarantees: only rows whose patients' consent this node verified itself take part; the budget is
    debited before noise is drawn and never refunded; a repeat of the same input returns the same
    bytes for no further debit; nothing leaves once a patient who permitted it has withdrawn, of the
    cohort or not, so that stopping one patient between the leases does not tell her membership.

    Args:
        site: This hospital.
        mirror: Where leases come from.
        asked: Order, request and weights as received.
        now: UTC seconds, read at each step.

    Raises:
        NotApprovedError, OrderMismatchError, PlanMismatchError, …: (1), see `federated.mandate`.
        HouseRuleError: (1) or (6), this hospital's own rules forbid it.
        LeaseExpiredError and the mirror's refusals: (2) or (6) cannot know the consents.
        BudgetExhaustedError: (4) cannot debit.
        WithdrawnError: (6) found a withdrawal, whether or not of the cohort.
        ChangedInputError: The round was answered for another input.
    """
    ready = prepare(site, mirror, asked, masked=False, now=now)
    # (7) Sign and send.
    return release(site, ready, ready.body)


def prepare(
    site: Site, mirror: Mirror, asked: RoundInput, *, masked: bool, now: Clock = wall_clock
) -> Ready:
    """Steps (1) to (6): an answer that may leave now, and has not left yet.

    Raises:
        MaskedOnlyError: Mode B was asked for the bare answer, or mode A for a masked one.
    """
    # (1) The chain against this site's own approval and the pinned keys.
    mandate = mandate_of(site, asked, now())
    if mandate.masked is not masked:
        raise MaskedOnlyError("round: in mode B, and only there, an answer leaves under masks")
    with site.database.reading() as connection:
        answer = _known(connection, mandate)
    if answer is None or answer.state is State.GRANTED:
        # (2) A lease whose envelopes this node verified itself.
        lease = mirror.lease()
        # (3) and (4) The cohort, its debit and the grant.
        answer = _grant(site, mandate, lease, now())
        # Debited, noise not yet drawn: a crash here loses budget, never privacy.
        # (5) Compute and store.
        answer = _compute(site, mandate, answer, lease, now())
    # (6) Nothing leaves without a fresh lease that still covers everyone who permitted it.
    asked_at = now()
    fresh = mirror.lease()
    _refuse_if_withdrawn(site, mandate, answer, fresh, asked_at)
    return Ready(mandate=mandate, answer=answer, fresh=fresh, at=asked_at)


def mandate_of(site: Site, asked: RoundInput, at: int) -> Mandate:
    """(1): what this site's own approval and the pinned keys say to the request."""
    hub_did = site.trust.hub
    order = open_order(asked.order, hub_did)
    with site.database.reading() as connection:
        approved = approved_study(connection, site, order.subject.study_sha256)
    mandate = verify(
        approved,
        order,
        asked.request,
        asked.weights,
        did=site.key.did,
        hub_did=hub_did,
        hospitals=witnesses.known(site),
        now=at,
    )
    refuse_if_forbidden(site, mandate.study, mandate.action, at)
    return mandate


def _known(connection: sa.Connection, mandate: Mandate) -> Stored | None:
    """The round's answer that may still leave; None if there is none or all were discarded."""
    tried = attempts(connection, mandate.key)
    if any(answer.input_sha256 != mandate.input_sha256 for answer in tried):
        raise ChangedInputError("request: this round was asked before with other weights")
    living = [answer for answer in tried if answer.state is not State.DISCARDED]
    return living[-1] if living else None


def _grant(site: Site, mandate: Mandate, lease: HeldLease, at: int) -> Stored:
    """(3) and (4): the cohort and its debit, in one transaction."""
    permits, willing = _willing(site, mandate, lease, at)
    with site.database.unit_of_work() as connection:
        budget.lock(connection)
        answer = _known(connection, mandate)
        if answer is not None:
            return answer
        attempt = len(attempts(connection, mandate.key)) + 1
        if attempt > ATTEMPTS_MAX:
            raise TooManyAttemptsError("round: tried too often")
        # The individual filter: whoever cannot pay leaves before anything is computed.
        cohort = budget.afford(connection, willing, mandate.rho_nano)
        lease.check()
        draw = budget.Draw(
            key=f"{mandate.key}:{attempt}",
            input_sha256=mandate.input_sha256,
            lease_sha256=lease.digest,
            phase=mandate.request.subject.phase,
            attempt=attempt,
            rho_nano=mandate.rho_nano,
            sigma_micro=mandate.sigma_micro,
            honest=mandate.order.subject.honest if mandate.masked else 1,
            sampling_micro=mandate.sampling_micro,
            places=max(len(lease.standings), 1),
            order_sha256=mandate.order.digest,
            round=mandate.request.subject.round,
        )
        lines = mandate.approved.lines
        shown = shown_by(lease, permits)
        return budget.grant(connection, draw, cohort, lines, permits=shown, now=at)


def _willing(site: Site, mandate: Mandate, lease: HeldLease, at: int) -> tuple[set[str], set[str]]:
    """Rows ∩ permits, and of these the fold of this phase ∩ rows the study can use."""
    study = mandate.study
    evaluating = mandate.request.subject.phase == "evaluate"
    request = consent_request(study, mandate.action, at)
    with site.database.reading() as connection:
        permits = permitted(lease, all_pids(connection, study.extract), request)
        fold = {
            pid
            for pid in permits
            if site.is_evaluation(pid, study.evaluation.fold_percent) == evaluating
        }
        rows = rows_of(connection, fold, study.extract)
        return permits, set(examples(rows, study, site.name).pids)


def _compute(site: Site, mandate: Mandate, answer: Stored, lease: HeldLease, at: int) -> Stored:
    """(5): the noised bytes of a granted draw, kept before anything else happens."""
    if answer.state is not State.GRANTED:
        return answer
    with site.database.reading() as connection:
        covered = budget.permitted_by(connection, answer.debit_sequence)
        # Granted by an earlier process: whoever withdrew since then must not even be read.
        if not _all_permit(mandate, lease, covered, at):
            rows = None
        else:
            members = budget.cohort_of(connection, answer.debit_sequence)
            read = rows_of(connection, members, mandate.study.extract)
            rows = examples(read, mandate.study, site.name)
    if rows is None:
        _discard(site, answer)
    lease.check()
    body = safetensors.numpy.save(_update(mandate, rows))
    with site.database.unit_of_work() as connection:
        return store(connection, answer.key, bytes(body))


def _update(mandate: Mandate, rows: Examples) -> dict[str, NDArray[Any]]:
    study, family = mandate.study, family_of(mandate.study)
    if mandate.request.subject.phase == "evaluate":
        exact = histogram(
            family.predict(mandate.weights, rows.x),
            *family.evaluated(rows.y),
            groups_of=rows.groups,
            groups=study.evaluation.groups,
            bins=study.evaluation.bins,
        )
        return {
            "histogram": noised(exact, sigma_micro=mandate.sigma_micro, rho_nano=mandate.rho_nano)
        }
    from federated import private_training as dp  # noqa: PLC0415  (loads torch)

    clip, sigma = study.recipe.clip_micro / MICRO, mandate.sigma_micro / MICRO
    given = (mandate.weights, rows.x, rows.y)
    if not mandate.masked:
        q = mandate.sampling_micro / MICRO
        return dict(dp.private_gradient(*given, clip=clip, sigma=sigma, family=family, sampling=q))
    integers = noised_sum(
        dp.clipped_gradients(*given, clip=clip, family=family),
        sum(value.size for value in mandate.weights.values()),
        clip_micro=study.recipe.clip_micro,
        sigma_micro=mandate.sigma_micro,
        honest=mandate.order.subject.honest,
        rho_nano=mandate.rho_nano,
    )
    return {INTEGERS: integers}


def _refuse_if_withdrawn(
    site: Site, mandate: Mandate, answer: Stored, fresh: HeldLease, at: int
) -> None:
    """(6): discard the answer if the fresh lease no longer covers all who permitted it."""
    with site.database.reading() as connection:
        covered = budget.permitted_by(connection, answer.debit_sequence)
        approved_study(connection, site, mandate.approved.study_sha256).check_in_force(at)
    refuse_if_forbidden(site, mandate.study, mandate.action, at)
    fresh.check()
    if not _all_permit(mandate, fresh, covered, at):
        _discard(site, answer)


def _all_permit(mandate: Mandate, lease: HeldLease, covered: set[str], at: int) -> bool:
    request = consent_request(mandate.study, mandate.action, at)
    return permitted(lease, covered, request) == covered


def _discard(site: Site, answer: Stored) -> NoReturn:
    with site.database.unit_of_work() as connection:
        discard(connection, answer.key)
    raise WithdrawnError("round: a consent changed while it was answered; ask again")


def release(site: Site, ready: Ready, body: bytes) -> RoundAnswer:
    """(7): the receipt over `body`, kept before it leaves; a repeat of the same gets the same one.

    Args:
        site: This hospital.
        ready: What passed (6).
        body: What leaves: the stored bytes, or the same under masks.
    """
    mandate, sent = ready.mandate, sha256(body).hex()
    with site.database.unit_of_work() as connection:
        budget.lock(connection)  # of two repeats at once, one signs and the other reads
        ready.fresh.check()  # the lock may have taken longer than the lease lasts
        kept = stored(connection, ready.answer.key)
        if kept is None or kept.body is None or kept.state is not State.STORED:
            raise WithdrawnError("round: a consent changed while it was answered; ask again")
        again = f"receipt:{mandate.request.digest}:{sent}"
        receipt = _receipt_of(kept, mandate, sent)
        receipt = receipt or _receipt_of(stored(connection, again), mandate, sent)
        if receipt is None:
            members = budget.cohort_of(connection, kept.debit_sequence)
            subject = _receipt(ready, site.name, kept, members, sent)
            receipt = issue(subject, site.key, ready.at)
            text, digest = jcs(receipt).decode(), document_digest(receipt)
            if kept.document is None:
                first_release(connection, kept.key, text, digest, at=ready.at)
            else:
                release_again(connection, kept, again, text, digest, at=ready.at)
    return RoundAnswer(receipt=receipt, update=dict(safetensors.numpy.load(body)))


def _receipt_of(kept: Stored | None, mandate: Mandate, sent: str) -> dict[str, Json] | None:
    """The receipt that left before for this very request; the hub may sign a repeat anew."""
    if kept is None or kept.document is None:
        return None
    receipt = parse_object(kept.document)
    subject = open_document(RoundReceipt, receipt, issuers=None).subject
    named = (subject.request_sha256, subject.update_sha256)
    return receipt if named == (mandate.request.digest, sent) else None


def _receipt(
    ready: Ready, site: str, kept: Stored, members: Mapping[str, int], sent: str
) -> RoundReceipt:
    mandate, seed = ready.mandate, bytes.fromhex(kept.seed)
    asked = mandate.request.subject
    return RoundReceipt(
        site=site,
        order_sha256=mandate.order.digest,
        phase=asked.phase,
        round=asked.round,
        request_sha256=mandate.request.digest,
        lease_sha256=kept.lease_sha256,
        release_lease_sha256=ready.fresh.digest,
        cohort_commitment=arrange(members, kept.places, seed).commitment,
        count_commitment=count_commitment(seed, len(members)),
        debit_sequence=kept.debit_sequence,
        sigma_micro=mandate.sigma_micro,
        clip_micro=mandate.study.recipe.clip_micro,
        update_sha256=sent,
    )
