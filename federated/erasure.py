"""Erasing a record: the desk's act, the hub's erasure, and then this node's own.

Steps, each durable before the next: (1) the act; from here on the record is denied here; (2) the
signed erasure goes to the hub, which deletes envelopes and salts and logs the act; (3) the act
comes back in the log with the next lease, and this node deletes what it holds. A crash anywhere
leaves a record that is denied, and the running node goes on. A node restored from an older backup
gets the act once more with its first lease, and (3) happens again.
"""

import hashlib
import hmac
from typing import Any, Final

import sqlalchemy as sa

from coop.client import Client, RemoteError
from coop.documents.envelope import issue
from coop.documents.erasure import Erasure
from coop.errors import InvalidInputError
from federated.custody import registrar_digest
from federated.desk import UnknownRecordError
from federated.erased import erasure, record_digest
from federated.mirror import Mirror
from federated.mirror_store import mirror_document
from federated.quarantine import asides
from federated.site import Site, code, patient

_REASON_TAG: Final = b"coop/erasure-reason/v1"
_REASON_MIN, _REASON_MAX = 3, 500
_BEHIND: Final = "erasure.behind"
_TRIES: Final = 3  # she may decide something at this very moment


def begin(
    site: Site, record: str, reason: str, who: tuple[str, str], *, now: int
) -> dict[str, Any]:
    """The desk's act: from here on the record is denied at this hospital, for good.

    Args:
        site: This hospital.
        record: The patient's record number, or her pid.
        reason: Why, in the words of the staff; stays here.
        who: The registrar's name and that of the second who has seen it.
        now: UTC seconds.

    Returns:
        {"pid", "record"}.

    Raises:
        UnknownRecordError: No such record; an erased one is none any more.
        InvalidInputError: The two are one person, or the reason says nothing.
    """
    if len({registrar_digest(site, name.casefold()) for name in who}) == 1:
        raise InvalidInputError("--second: must be another person than --registrar")
    words = " ".join(reason.split())
    if not _REASON_MIN <= len(words) <= _REASON_MAX:
        raise InvalidInputError(f"--reason: needs {_REASON_MIN} to {_REASON_MAX} characters")
    with site.database.unit_of_work() as connection:
        pid = _pid(connection, record)
        digest = record_digest(site, pid)
        begun = connection.execute(sa.select(erasure.c.at).where(erasure.c.record == digest))
        if begun.first() is None:
            row = {"record": digest, "pid": pid, "reason": words, "at": now}
            row |= {"registrar": who[0], "second": who[1]}
            connection.execute(erasure.insert().values(row))
        # No code of hers opens anything from here on.
        connection.execute(code.delete().where(code.c.pid == pid))
    return {"pid": pid, "record": digest}


def send(site: Site, client: Client, mirror: Mirror, *, now: int) -> list[str]:
    """Let the hub erase what waits, and then delete here; returns the records that are gone.

    Each erasure names all that the log holds of the record, so it is signed only now. A record of
    which the hub holds something new (an enrolment that was under way) is erased once more.
    """
    done = []
    for pid in mirror.shown_again():
        with site.database.unit_of_work() as connection:
            same = erasure.c.record == record_digest(site, pid)
            connection.execute(erasure.update().where(same).values(pid=pid))
    with site.database.reading() as connection:
        rows = connection.execute(sa.select(erasure).where(erasure.c.pid.is_not(None))).all()
    for row in rows:
        for attempt in range(1, _TRIES + 1):
            mirror.sync()
            if not _waits(site, row.record):  # an earlier answer was lost: it came with this lease
                break
            body = {"document": _signed(site, row, now), "pid": row.pid}
            try:
                client.post(f"/v1/sites/{site.name}/erasures", body)
            except RemoteError as error:
                if error.code != _BEHIND or attempt == _TRIES:
                    raise
        if _waits(site, row.record):
            mirror.sync()
        done.append(row.record)
    return done


def _pid(connection: sa.Connection, record: str) -> str:
    for column in (patient.c.record_key, patient.c.pid):
        pid = connection.execute(sa.select(patient.c.pid).where(column == record)).scalar()
        if pid is not None:
            return str(pid)
    raise UnknownRecordError("record: this hospital holds no such patient")


def _waits(site: Site, record: str) -> bool:
    with site.database.reading() as connection:
        query = sa.select(erasure.c.pid).where(erasure.c.record == record)
        return connection.execute(query).scalar() is not None


def _signed(site: Site, row: sa.Row[tuple[object, ...]], now: int) -> dict[str, Any]:
    mine = sa.select(mirror_document.c.log_index).where(mirror_document.c.pid == row.pid)
    with site.database.reading() as connection:
        entries = set(connection.execute(mine).scalars())
    entries |= {index for index, one in asides(site).items() if one.said.pid == row.pid}
    message = b"\0".join((_REASON_TAG, site.name.encode(), str(row.reason).encode()))
    subject = Erasure(
        site=site.name,
        record=row.record,
        entries=sorted(entries),
        reason=hmac.digest(site.pid_key, message, hashlib.sha256).hex(),
        registrar=registrar_digest(site, row.registrar),
        second=registrar_digest(site, row.second),
    )
    return issue(subject, site.key, now)
