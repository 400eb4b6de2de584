"""After a restore: what was spent since the backup is unknown, so everybody is charged for all.

The promise: whoever has a record here, now or after a later import, is charged at least what she
truly spent, and one study version never costs her more than it may. A version's draws together
never pass the ends of its lines, whoever took part. So counting every line of every version that
may have drawn since the backup as spent to its end covers each draw, released or not, whatever the
hub shows of them. Which versions those are, the backup knows, but for approvals signed after it:
these the hub holds, and until it was asked, no approval counts here.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError

from coop.client import Client
from coop.documents.envelope import open_document
from coop.documents.study import MICRO, NANO, Approval, Study
from coop.errors import CoopError, Kind
from federated import budget
from federated.accounting import plan, rho_nano_of
from federated.site import Site, get_state, put_state

RUNBOOK: Final = "docs/runbook.md, “After a restore”"
_UNSETTLED: Final = "restore_unsettled"


class RestoreUnsettledError(CoopError):
    """Restored, and the hub was not asked yet what was approved here after the backup."""

    code = "approval.restore-unsettled"
    kind = Kind.UNAVAILABLE


def lines_of(study: Study) -> budget.Lines:
    """Where each budget line of the study ends; recomputed from the study."""
    split = plan(study.budget, study.recipe.schedule)
    return budget.Lines(
        study_id=study.study_id,
        version=study.version,
        training_nano=split.rounds * split.rho_round_nano,
        evaluation_nano=split.rho_evaluation_nano,
        reserve_nano=split.rho_reserve_nano,
        cohort_nano=study.budget.cohort_rho_nano,
    )


def distrust(connection: sa.Connection, studies: Iterable[Study], *, now: int) -> int:
    """Charge everybody for `studies`, which may have drawn since the backup.

    From here on no approval counts until the hub was asked for others (`settle`). Returns what was
    charged, rho in 10⁻⁹.
    """
    put_state(connection, _UNSETTLED, "yes")
    budget.lock(connection)
    return sum(
        budget.charge_everybody(connection, _at_most(lines_of(each), each), now=now)
        for each in studies
    )


def _at_most(lines: budget.Lines, study: Study) -> budget.Lines:
    """The lines with every sampled round at the cost of a whole batch: no sample of it costs more.

    Nobody knows any more whose draws they were, or how many.
    """
    split = plan(study.budget, study.recipe.schedule)
    if split.sampling_micro == MICRO:
        return lines
    rounds = split.rounds + split.rho_reserve_nano // split.rho_round_nano
    return replace(lines, training_nano=rounds * rho_nano_of(split.training_sigma_micro))


def unsettled(connection: sa.Connection) -> bool:
    """Whether the hub still has to be asked."""
    return get_state(connection, _UNSETTLED) == "yes"


def facts(site: Site) -> dict[str, Any]:
    """What everybody was charged so far, and whether the hub was asked; for the staff."""
    with site.database.reading() as connection:
        charged = budget.everybodys_charge(connection)
        return {"charged_rho": f"{charged / NANO:.6f}", "settled": not unsettled(connection)}


def refuse_if_unsettled(connection: sa.Connection) -> None:
    """Return if no approval has to wait for the hub's answer.

    Raises:
        RestoreUnsettledError: This hospital was restored, and the hub was not asked yet.
    """
    if unsettled(connection):
        raise RestoreUnsettledError(
            "restore: no approval counts here until the cooperative was asked what this hospital "
            f"approved after the backup; see {RUNBOOK}"
        )


def settle(site: Site, client: Client, known: Collection[str], *, now: int) -> int:
    """Ask the hub for this hospital's approvals of after the backup, and charge everybody for them.

    A hub that hides one hides its draws; it cannot invent one, for only what carries this site's
    own signature counts. Returns what was charged, rho in 10⁻⁹; 0 if nothing was to be asked.

    Args:
        site: This hospital.
        client: To the hub.
        known: Digests of the approvals in this database: those were charged for at the restore.
        now: UTC seconds.

    Raises:
        RestoreUnsettledError: The hub does not answer, or shows what cannot be; nothing changed.
    """
    with site.database.reading() as connection:
        if not unsettled(connection):
            return 0
    try:
        answer = _Answer.model_validate(client.get("/v1/studies"))
        studies = [study for entry in answer.studies for study in _newer(site, entry, known)]
    except (CoopError, ValidationError) as error:
        raise RestoreUnsettledError(
            "restore: the cooperative could not be asked what this hospital approved after the "
            f"backup ({error}); nothing can be approved before that, see {RUNBOOK}"
        ) from error
    with site.database.unit_of_work() as connection:
        charged = distrust(connection, studies, now=now)
        put_state(connection, _UNSETTLED, "no")
    return charged


class _Given(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    site: str
    document: dict[str, Any]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    document: dict[str, Any]
    approvals: list[_Given]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    studies: list[_Entry]


def _newer(site: Site, entry: _Entry, known: Collection[str]) -> list[Study]:
    """The study, if this hospital signed an approval of it that the backup does not hold."""
    for given in entry.approvals:
        if given.site != site.name:
            continue
        approval = open_document(Approval, given.document, issuers={site.key.did})
        if approval.digest in known:
            continue
        study = open_document(Study, entry.document, issuers=None)
        if study.digest != approval.subject.study_sha256:
            raise RestoreUnsettledError("study: the hub shows another than this hospital approved")
        return [study.subject]
    return []
