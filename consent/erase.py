"""Erasing a record from the registry: envelopes and salts go, the log and everybody's proofs stay.

What remains of each document is its place and kind, which the public leaf says anyway. The act is a
signed document of the hospital: it stands in the log itself and goes back to the hospital with the
next lease, so a node that was restored from an older backup erases again. It names no pid; the
request does, and what it named is forgotten with the rest.
"""

from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy as sa

from consent.store import (
    consent_draft,
    consent_event,
    consent_head,
    enrolled,
    enrolment,
    former_key,
    redemption,
    representation,
    site_document,
)
from coop import members
from coop.canonical import Json
from coop.documents.emergency import BreakGlass
from coop.documents.envelope import Opened, WrongDocumentError, open_document
from coop.documents.erasure import Erasure
from coop.errors import ConflictError, NotFoundError
from coop.journal.commitments import Logged
from coop.journal.rows import signed_document
from coop.journal.store import Journal, NotLoggedError

_OF_THE_RECORD: Final = (
    *(consent_draft, consent_event, consent_head, enrolment, former_key),
    *(redemption, representation, site_document),
)


class ErasureBehindError(ConflictError):
    """The registry holds other documents of this record than the hospital names: sync, sign again.

    Nothing was erased.
    """

    code = "erasure.behind"


def erase(
    connection: sa.Connection,
    journal: Journal,
    site: str,
    request: tuple[Mapping[str, Json], str],
    on_erased: Callable[[sa.Connection, list[str]], None],
) -> Logged:
    """Erase one record; the same document again is answered as before.

    Steps: (1) `site` signed it, for itself; (2) the record is its own and locked, so that no writer
    continues its chain; (3) the hospital names exactly what is here; (4) every row of the record
    and every envelope and salt go; (5) the act goes into the log, and to the hospital's mirror.

    Args:
        connection: Of a unit of work.
        journal: The log.
        site: The hospital that asks.
        request: Its signed erasure, and the pid it is about.
        on_erased: Told of the pid first (it stops earning).

    Raises:
        WrongDocumentError: (1) fails.
        NotFoundError: (2) fails; the same for a record of another hospital.
        ErasureBehindError: (3) fails.
    """
    document, pid = request
    # (1)
    did = members.site_dids(connection).get(site, "")
    opened: Opened[Erasure] = open_document(Erasure, document, issuers={did})
    if opened.subject.site != site:
        raise WrongDocumentError("erasure.site: must be the hospital that signs")
    try:
        return journal.logged(connection, opened.digest)
    except NotLoggedError:
        pass
    # (2)
    key = enrolled(connection, [pid], lock=True).get(pid)
    held = connection.execute(sa.select(site_document).where(site_document.c.pid == pid)).all()
    # Nothing held and nobody enrolled: whose it would be is unknown, so it is not this hospital's.
    if {row.site for row in held} - {site} or (key.site != site if key else not held):
        raise NotFoundError("pid: not found")
    # (3)
    if sorted(row.log_index for row in held) != opened.subject.entries:
        raise ErasureBehindError("entries: not all that is here of this record; sync and sign anew")
    # (4)
    on_erased(connection, [pid])
    events = sa.select(consent_event.c.digest, consent_event.c.receipt_digest)
    digests = {row.digest for row in held} | {row.receipt_digest for row in held}
    for row in connection.execute(events.where(consent_event.c.pid == pid)):
        digests |= {row.digest, row.receipt_digest}
    digests |= _emergencies(connection, pid, site)
    members.forget_pid(connection, pid)
    for table in _OF_THE_RECORD:
        connection.execute(table.delete().where(table.c.pid == pid))
    journal.erase(connection, digests - {None})
    # (5)
    place = journal.record(connection, Erasure.kind, opened.document)
    for_node = {"log_index": place.index, "site": site, "pid": "", "digest": place.digest}
    connection.execute(site_document.insert().values(for_node))
    return place


def _emergencies(connection: sa.Connection, pid: str, site: str) -> set[str]:
    """This hospital's acts of break-glass on the record; it keeps its own documentation."""
    query = sa.select(signed_document.c.digest).where(
        signed_document.c.kind == BreakGlass.kind,
        signed_document.c.body.contains(f'"pid":"{pid}"', autoescape=True),
        signed_document.c.body.contains(f'"site":"{site}"', autoescape=True),
    )
    return set(connection.execute(query).scalars())
