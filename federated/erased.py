"""Records that were erased here: denied for ever after, known only by a digest under our secret.

The privacy ledger keeps what an erased record had spent, but nothing may be drawn on it again: so a
budget is never forgotten, whoever brings the record back.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable
from typing import Final

import sqlalchemy as sa

from consent.decide import Standing
from coop.db import insert_ignore, metadata
from coop.documents.envelope import open_document
from coop.documents.erasure import Erasure
from coop.errors import ConflictError, CoopError, Kind
from federated.envelopes import Envelope, Fold
from federated.mirror_store import mirror_document
from federated.quarantine import mirror_quarantine
from federated.site import (
    Site,
    code,
    custodial_key,
    desk_document,
    enrolled,
    get_state,
    patient,
    patient_row,
    put_state,
)

_TAG: Final = b"coop/erased/v1"
_BY_THE_LOG: Final = {
    "reason": "known from the log alone",
    "registrar": "first person, by the log",
    "second": "second person, by the log",
}
_OF_THE_PATIENT: Final = (code, enrolled, desk_document, custodial_key, patient_row, patient)
"""In an order that no row is left without the one it hangs on."""

erasure = sa.Table(
    "erasure",
    metadata,
    sa.Column("record", sa.String(64), primary_key=True),
    sa.Column("pid", sa.String(26)),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("registrar", sa.String(200), nullable=False),
    sa.Column("second", sa.String(200), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("log_index", sa.BigInteger),
)
"""Acts of erasure. `pid` stands only until the hub has erased, too; `log_index` from then on."""

mirror_erased = sa.Table(
    "mirror_erased",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
)
"""Entries of the log whose documents were erased: shown again, they are refused."""


class ErasedRecordError(ConflictError):
    """The record was erased; nobody can be enrolled for it again."""

    code = "erasure.erased"


class ErasedShownError(CoopError):
    """The hub shows a document that was erased: it has not forgotten what it must forget."""

    code = "erasure.shown"
    kind = Kind.FORBIDDEN


def record_digest(site: Site, pid: str) -> str:
    """What stands for an erased record: this hospital can tell which it was, nobody else."""
    message = b"\0".join((_TAG, site.name.encode(), pid.encode()))
    return hmac.digest(site.pid_key, message, hashlib.sha256).hex()


def erased_among(connection: sa.Connection, site: Site, pids: Iterable[str]) -> set[str]:
    """Those of `pids` whose records were erased here."""
    known = set(connection.execute(sa.select(erasure.c.record)).scalars())
    return {pid for pid in pids if record_digest(site, pid) in known} if known else set()


def refuse_if_erased(connection: sa.Connection, site: Site, pid: str) -> None:
    """Return if the record was not erased.

    Raises:
        ErasedRecordError: It was.
    """
    if erased_among(connection, site, [pid]):
        raise ErasedRecordError(
            "record: it was erased at the patient's wish and stays closed for good"
        )


def waiting(site: Site) -> set[str]:
    """Pids that are denied already and that the hub has not erased yet."""
    with site.database.reading() as connection:
        query = sa.select(erasure.c.pid).where(erasure.c.pid.is_not(None))
        return set(connection.execute(query).scalars())


def remaining(fold: Fold, gone: Collection[str]) -> dict[str, Standing]:
    """How the chains stand, without erased records and those that `gone` names."""
    out = fold.denied.union(gone)
    return {p: s for p, s in fold.standings.items() if p not in out} if out else {**fold.standings}


def refuse_shown(site: Site, entries: Collection[int]) -> None:
    """Return if none of these entries of the log was erased.

    Raises:
        ErasedShownError: One was, and the hub still shows it.
    """
    with site.database.reading() as connection:
        gone = set(connection.execute(sa.select(mirror_erased.c.log_index)).scalars())
    shown = gone.intersection(entries)
    if shown:
        raise ErasedShownError(f"entry {min(shown)}: the hub shows a document that was erased")


def purge(connection: sa.Connection, site: Site, envelopes: Iterable[Envelope]) -> None:
    """Delete what this hospital holds of the records that these verified erasures name.

    The privacy ledger and the documentation of emergencies stay (docs/consent.md). Called with the
    erasures that came with a lease, in the unit of work that keeps it; twice is as good as once.
    """
    for envelope in envelopes:
        if envelope.kind != Erasure.kind:
            continue
        opened = open_document(Erasure, envelope.document, issuers={site.key.did})
        said = opened.subject
        for pid in _pids(connection, site, said):
            for table in (*_OF_THE_PATIENT, mirror_document):
                connection.execute(table.delete().where(table.c.pid == pid))
        for table in (mirror_document, mirror_quarantine):
            connection.execute(table.delete().where(table.c.log_index.in_(said.entries)))
        if said.entries:
            rows: list[dict[str, object]] = [{"log_index": index} for index in said.entries]
            insert_ignore(connection, mirror_erased, rows)
        # After a restore the act is known from the log alone; its words were in no backup.
        row: dict[str, object] = {"record": said.record, "at": opened.at, **_BY_THE_LOG}
        insert_ignore(connection, erasure, row)
        done = {"pid": None, "log_index": envelope.index}
        connection.execute(erasure.update().where(erasure.c.record == said.record).values(done))
        version = int(get_state(connection, "data_version") or 0)
        put_state(connection, "data_version", str(version + 1))


def _pids(connection: sa.Connection, site: Site, said: Erasure) -> set[str]:
    """The pid an erasure is about, however much of it is still here."""
    known = sa.select(erasure.c.pid).where(erasure.c.record == said.record)
    pid = connection.execute(known).scalar()
    if pid is not None:
        return {pid}
    # Only after a restore, or on another's order: every patient is tried.
    everybody = connection.execute(sa.select(patient.c.pid)).scalars()
    return {one for one in everybody if record_digest(site, one) == said.record}
