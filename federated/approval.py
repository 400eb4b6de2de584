"""A hospital's own yes to a study: what it signs, under which limits, and how it takes it back.

The approval is what every later order is held against. It lies in the hospital's own database under
the hospital's own signature, so nobody at the hub can make, change or widen one.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.metadata import version as installed_version
from typing import Any, Final

import sqlalchemy as sa

from coop.canonical import document_digest, jcs, parse_object
from coop.client import Client
from coop.documents.envelope import Opened, WrongDocumentError, issue, open_document
from coop.documents.study import MICRO, Approval, Study
from coop.errors import ConflictError, CoopError, InvalidInputError, Kind
from coop.keys import SigningKey
from federated import after_restore, control, cosigning, witnesses
from federated.accounting import Plan, plan
from federated.approval_store import approved
from federated.budget import Lines, debit
from federated.fab import fab_hash
from federated.mirror_store import mirror_note
from federated.site import Site, enrolled, get_state, put_state
from federated.study_limits import EPSILON_MAX_MICRO, price, refusals

EPSILON_DEFAULT: Final = "1"
_RESTORED_AT: Final = "restored_at"


class StudyAlteredError(ConflictError):
    """The hub shows another document than the one it names, or a second one under the same name."""

    code = "approval.study-altered"


class NotApprovedError(CoopError):
    """This hospital has not approved exactly this study, or took its approval back."""

    code = "round.not-approved"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """A study this hospital approved, both signatures checked again at this read."""

    study: Study
    study_sha256: str
    approval: Approval
    approval_sha256: str
    plan: Plan
    """Recomputed here from the study, never read from anyone."""
    revoked_at: int | None

    @property
    def lines(self) -> Lines:
        """Where each budget line of the study ends."""
        return after_restore.lines_of(self.study)

    def check_in_force(self, now: int) -> None:
        """Return while both study and approval hold.

        Raises:
            NotApprovedError: Revoked or expired.
        """
        if self.revoked_at is not None and now >= self.revoked_at:
            raise NotApprovedError("approval: this hospital took it back")
        if now >= min(self.study.expires, self.approval.expires):
            raise NotApprovedError("approval: it has expired; approve a new version")


def software_version() -> str:
    """The software an approval names, and an order must name again."""
    return f"health-data-coop {installed_version('health-data-coop')}"


def review(
    site: Site, client: Client, study_id: str, version: int | None = None, *, now: int | None = None
) -> dict[str, Any]:
    """What would be signed, in words and figures, and every reason why it would be refused.

    Args:
        site: This hospital.
        client: To the hub.
        study_id: Which study.
        version: The newest by default.
        now: UTC seconds; without it the expiry is not judged.
    """
    opened = _fetch(client, study_id, version)
    study = opened.subject
    problems = refusals(study, EPSILON_MAX_MICRO, now)
    return {
        "study_sha256": opened.digest,
        "proposed_by": opened.issuer,
        "study": study.model_dump(mode="json", exclude_none=True),
        "fields": [feature.name for feature in study.schema_.features],
        **({} if problems else price(study)),
        "software": software_version(),
        "witnesses": witnesses.known(site),
        "unknown_witnesses": witnesses.unknown(site, client),
        "problems": [{"code": problem.code, "message": problem.message} for problem in problems],
    }


def approve(  # noqa: PLR0913  (each limit is one thing the hospital decides)
    site: Site,
    client: Client,
    study_id: str,
    *,
    now: int,
    version: int | None = None,
    study_sha256: str | None = None,
    epsilon_cap: str = EPSILON_DEFAULT,
    fab_sha256: str | None = None,
    by: SigningKey | None = None,
) -> dict[str, Any]:
    """Sign this hospital's approval of exactly this study, keep it, and give it to the hub.

    The steps: (1) fetch the study and check that it is the one it is called; (2) hold it against
    this hospital's own limits and approvers; (3) pin the other hospitals' keys as witnesses of the
    log; (4) sign and store; (5) publish. Approving the same study again under the same terms
    publishes again.

    Args:
        site: This hospital.
        client: To the hub, speaking with the site's key.
        study_id: Which study.
        now: UTC seconds.
        version: The newest by default.
        study_sha256: Of the study somebody here has read; any by default.
        epsilon_cap: The most privacy one study may cost here, decimal; 3 at most.
        fab_sha256: Digest of the Flower app that may run; the installed one by default.
        by: The approver who says yes, where two must (`federated.control`).

    Raises:
        UnknownApproverError, SecondApproverError: Two approvers must say yes; nothing was signed.
        StudyAlteredError, StudyExpiredError, UnknownPurposeError, PriceTooHighError,
        WitnessChangedError, WitnessUnknownError: A step refused; nothing was signed.
        RestoreUnsettledError: What was approved after the backup is not charged for yet.
    """
    cap_micro = _cap(epsilon_cap)
    settle_restore(site, client, now=now)
    # (1)
    opened = _fetch(client, study_id, version)
    study = opened.subject
    if study_sha256 not in {None, opened.digest}:
        raise StudyAlteredError("study: the hub sent another document than the one that was read")
    # (2)
    for problem in refusals(study, cap_micro, now):
        raise problem
    control.second_look(site, opened.digest, cap_micro, by, now=now)
    # (3)
    pinned = witnesses.agreed(site, client)
    # (4)
    subject = Approval(
        study_sha256=opened.digest,
        study_id=study.study_id,
        version=study.version,
        site=site.name,
        data_version=site.data_version(),
        epsilon_cap_micro=cap_micro,
        software=software_version(),
        fab_sha256=fab_sha256 or fab_hash(),
        witnesses=pinned,
        expires=study.expires,
    )
    document = _keep(site, opened, subject, now)
    # (5) A crash before this leaves an approval only this hospital knows; approve again.
    client.post(f"/v1/studies/{study.study_id}/approvals", {"document": document})
    return document


def revoke(site: Site, study_sha256: str, *, now: int) -> None:
    """Take the approval back: from `now` on this node refuses every round and question of it.

    Raises:
        NotApprovedError: There is none.
    """
    with site.database.unit_of_work() as connection:
        changed = connection.execute(
            sa.update(approved)
            .where(approved.c.study_sha256 == study_sha256, approved.c.revoked_at.is_(None))
            .values(revoked_at=now)
        ).rowcount
    if not changed:
        raise NotApprovedError("approval: there is none in force for this study")


def distrust_budgets(site: Site, *, now: int) -> int:
    """After a restore: what was spent since the backup is unknown, so nothing approved stands.

    Everybody is charged for all that the approvals of then may have spent (`after_restore`). Every
    approval ends, and a study of before cannot be approved again: only a new version, with budget
    lines of its own, once `settle_restore` has asked the hub. Nothing is cosigned before another
    hospital has shown the log (`cosigning`). Returns how many approvals ended.
    """
    with site.database.unit_of_work() as connection:
        standing = approved.c.revoked_at.is_(None)
        rows = connection.execute(sa.select(approved).where(standing)).all()
        # One that had expired before the newest thing the backup knows has drawn nothing since.
        known = min(_known_until(connection), now)
        were = [_approved(row, None) for row in rows]
        drawing = [a.study for a in were if min(a.study.expires, a.approval.expires) > known]
        after_restore.distrust(connection, drawing, now=now)
        put_state(connection, _RESTORED_AT, str(now))
        cosigning.pause(connection, now)
        return connection.execute(
            sa.update(approved).where(standing).values(revoked_at=now)
        ).rowcount


def settle_restore(site: Site, client: Client, *, now: int) -> int:
    """Charge everybody for what was approved after the backup, if that was not done yet.

    Raises:
        RestoreUnsettledError: The hub cannot be asked; until then no approval counts here.
    """
    with site.database.reading() as connection:
        known = set(connection.execute(sa.select(approved.c.digest)).scalars())
    return after_restore.settle(site, client, known, now=now)


def approved_study(connection: sa.Connection, site: Site, study_sha256: str) -> Approved:
    """This hospital's approval of the study with that digest, both documents verified again.

    Raises:
        NotApprovedError: There is none, or what is stored is not what this site signed.
        RestoreUnsettledError: No approval counts yet after the restore.
    """
    after_restore.refuse_if_unsettled(connection)
    row = connection.execute(
        sa.select(approved).where(approved.c.study_sha256 == study_sha256)
    ).one_or_none()
    if row is None:
        raise NotApprovedError("approval: this hospital has not approved this study")
    return _approved(row, site.key.did)


def approved_studies(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every approval of this hospital for its own staff, newest first, revoked ones too."""
    rows = connection.execute(
        sa.select(approved).order_by(approved.c.at.desc(), approved.c.study_sha256)
    )
    listed = []
    for row in rows:
        entry = _approved(row, None)
        listed.append(
            {
                "study_sha256": row.study_sha256,
                "study_id": row.study_id,
                "version": row.version,
                "title": entry.study.title,
                "study": entry.study,
                "approval_sha256": row.digest,
                "data_version": entry.approval.data_version,
                "epsilon_cap_micro": entry.approval.epsilon_cap_micro,
                "expires": entry.approval.expires,
                "approved_at": row.at,
                "revoked_at": row.revoked_at,
            }
        )
    return listed


def _fetch(client: Client, study_id: str, version: int | None) -> Opened[Study]:
    answer = client.get(f"/v1/studies/{study_id}", version=version)
    opened = open_document(Study, answer["document"], issuers=None)
    study = opened.subject
    if study.study_id != study_id or (version is not None and study.version != version):
        raise StudyAlteredError("study: the hub sent another study than the one asked for")
    return opened


def _keep(site: Site, opened: Opened[Study], subject: Approval, now: int) -> dict[str, Any]:
    study = opened.subject
    with site.database.unit_of_work() as connection:
        if opened.at <= int(get_state(connection, _RESTORED_AT) or -1):
            raise StudyAlteredError(
                "study: what it spent here is unknown since the restore; approve a new version"
            )
        rows = connection.execute(
            sa.select(approved).where(
                approved.c.study_id == study.study_id, approved.c.version == study.version
            )
        ).all()
        for row in rows:
            # One budget, one study: a second text under the same name would share its lines.
            if row.study_sha256 != opened.digest:
                raise StudyAlteredError("study: another text of this version is approved here")
            kept = _approved(row, site.key.did)
            # Newer rows change no term of it, and a running order names this very document.
            same = kept.approval == subject.model_copy(
                update={"data_version": kept.approval.data_version}
            )
            if same and row.revoked_at is None:
                return dict(parse_object(row.approval))
        document = issue(subject, site.key, now)
        connection.execute(sa.delete(approved).where(approved.c.study_sha256 == opened.digest))
        connection.execute(
            sa.insert(approved).values(
                study_sha256=opened.digest,
                study_id=study.study_id,
                version=study.version,
                study=jcs(opened.document).decode(),
                approval=jcs(document).decode(),
                digest=document_digest(document),
                at=now,
            )
        )
    return document


def _approved(row: sa.Row[tuple[object, ...]], did: str | None) -> Approved:
    """Read a row; with `did` its signatures and digests are verified once more."""
    values = row._mapping  # noqa: SLF001  (SQLAlchemy's public name for it)
    issuers = None if did is None else {did}
    try:
        approval = open_document(Approval, parse_object(values["approval"]), issuers=issuers)
        study = open_document(Study, parse_object(values["study"]), issuers=None)
    except (WrongDocumentError, InvalidInputError) as error:
        raise NotApprovedError("approval: the stored one is not what this site signed") from error
    if study.digest != approval.subject.study_sha256 or study.digest != values["study_sha256"]:
        raise NotApprovedError("approval: the stored study is not the one that was approved")
    return Approved(
        study=study.subject,
        study_sha256=study.digest,
        approval=approval.subject,
        approval_sha256=approval.digest,
        plan=plan(study.subject.budget, study.subject.recipe.schedule),
        revoked_at=values["revoked_at"],
    )


def _known_until(connection: sa.Connection) -> int:
    """The newest instant this database knows of; a backup of it was made then or later."""
    columns = (debit.c.at, approved.c.at, enrolled.c.at, mirror_note.c.cosigned_at)
    newest = [connection.execute(sa.select(sa.func.max(column))).scalar() for column in columns]
    return max((int(at) for at in newest if at is not None), default=0)


def _cap(text: str) -> int:
    try:
        micro = Decimal(text) * MICRO
    except InvalidOperation as error:
        raise InvalidInputError("epsilon_cap: must be a decimal number like 1 or 0.5") from error
    if not micro.is_finite() or micro != int(micro) or not 0 < micro <= EPSILON_MAX_MICRO:
        raise InvalidInputError("epsilon_cap: must be above 0 and at most 3")
    return int(micro)
