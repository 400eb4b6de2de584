"""Who permitted a request at an earlier size of the log: recomputable by anyone who holds the log.

Credits go to every record whose policy permitted the study at its first round (DESIGN §7). That is
a fact about the log at one size, so it does not matter when it is asked.
"""

import sqlalchemy as sa

from consent.chain import after_event
from consent.decide import Request, Standing, decide
from consent.store import consent_event, enrolment, representation
from coop.documents.consent import Consent
from coop.documents.provision import TIME_MAX
from coop.journal.store import Journal


def permitted_at(
    connection: sa.Connection, journal: Journal, request: Request, log_size: int
) -> dict[str, list[str]]:
    """Pids by site whose consent permitted `request` in the first `log_size` entries of the log."""
    rows = connection.execute(
        sa.select(
            consent_event, enrolment.c.site, representation.c.ended_at, representation.c.ended_index
        )
        .join(enrolment, enrolment.c.pid == consent_event.c.pid)
        .outerjoin(representation, representation.c.digest == consent_event.c.under)
        .where(consent_event.c.log_index < log_size)
        .order_by(consent_event.c.pid, consent_event.c.sequence)
    ).all()
    standings: dict[str, Standing] = {}
    sites: dict[str, str] = {}
    for row in rows:
        before = standings.get(row.pid)
        policy = before.policy if before else None
        on_death = before.on_death if before else "stop"
        if row.event in {"grant", "amend"}:
            document = journal.document(connection, row.digest)
            # Its signature was verified when it was stored; here only what it said is read.
            said = Consent.model_validate(document["credentialSubject"])
            policy, on_death = said.policy, said.on_death or "stop"
        state, objected = after_event(before, row.event)
        standings[row.pid] = Standing(
            state=state,
            objected=objected,
            on_death=on_death,
            policy=policy,
            head_digest=row.digest,
            sequence=row.sequence,
            log_index=row.log_index,
            starts_at=row.starts_at,
            ends_at=min(row.ends_at, row.ended_at if _over(row, log_size) else TIME_MAX),
            under=row.under,
        )
        sites[row.pid] = row.site
    found: dict[str, list[str]] = {}
    for pid, standing in standings.items():
        if decide(standing, request).permits:
            found.setdefault(sites[pid], []).append(pid)
    return found


def _over(row: sa.Row[tuple[object, ...]], log_size: int) -> bool:
    """Whether the log of this size says that the representation behind the event has ended."""
    return row.ended_index is not None and row.ended_index < log_size
