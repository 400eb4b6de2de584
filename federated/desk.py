"""The hospital's enrolment desk: codes for patients whose identity was checked, keys for pids.

A code is single use and lives at most seven days. Its secret goes from the desk to the patient's
own device and never to the hub or the portal's server: the device proves knowledge of it with an
HMAC over the public key it made, and only this node can check that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import sqlalchemy as sa

from consent.speakers import Speakers
from coop.canonical import Json, document_digest, jcs, parse_object
from coop.documents.consent import Enrolment
from coop.documents.envelope import issue
from coop.enrolment import check_mac, in_two, new_code, wishes_of
from coop.errors import ConflictError, CoopError, InvalidInputError, Kind, NotFoundError
from federated.erased import refuse_if_erased
from federated.mirror_store import mirror_document
from federated.site import COSIGNING_PAUSED as PAUSED
from federated.site import Site, code, enrolled, get_state, patient

CODE_SECONDS: Final = 7 * 24 * 3600  # DESIGN §6: a code lives at most seven days
BATCH_MAX: Final = 1000
Method = Literal["desk", "post", "demo"]
"""How a code reaches the patient; for whoever can hold no key see `federated.custody`."""
_CUSTODY: Final = {"desk": "self", "post": "self", "custodial": "custodial", "demo": "demo"}


class UnknownRecordError(NotFoundError):
    """The hospital has no patient with this record number."""

    code = "desk.unknown-record"


class CodeRefusedError(CoopError):
    """The code is unknown, used, expired, or the HMAC does not belong to it."""

    code = "desk.code-refused"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the node says of a batch of redemptions: documents for some, refusals for others."""

    documents: list[dict[str, object]]
    refused: list[dict[str, str]]


def enrol(site: Site, record_keys: Sequence[str], *, method: Method, now: int) -> dict[str, str]:
    """A fresh single-use code for each record, by record number.

    The registrar has checked the person's identity by the hospital's rule. A new code for the same
    record replaces an unused older one: a lost letter must not stay valid.

    Raises:
        UnknownRecordError: A record number the hospital does not hold; no code is made at all.
    """
    if len(record_keys) > BATCH_MAX:
        raise InvalidInputError(f"records: at most {BATCH_MAX} at a time")
    codes: dict[str, str] = {}
    with site.database.unit_of_work() as connection:
        known = {
            row.record_key: row.pid
            for row in connection.execute(
                sa.select(patient.c.record_key, patient.c.pid).where(
                    patient.c.record_key.in_(list(record_keys))
                )
            )
        }
        for record_key in record_keys:
            if record_key not in known:
                raise UnknownRecordError(f"record: this hospital holds no patient {record_key!r}")
            codes[record_key] = fresh_code(connection, site, known[record_key], method, now)
    return codes


def hand_over(site: Site, codes: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """How the codes of `enrol` reach their patients: what is handed over, and what goes by letter.

    A record that has a key already gets its new one only with both parts, of which the second goes
    to the address the hospital has: who deceives the desk about her identity lacks it.

    Returns:
        By record number: the first parts (whole codes where nothing goes by letter), the letters.
    """
    with site.database.reading() as connection:
        query = sa.select(patient.c.record_key, patient.c.pid).where(
            patient.c.record_key.in_(list(codes))
        )
        known = {row.record_key: row.pid for row in connection.execute(query)}
        had = had_a_key(connection, set(known.values()))
    again = {record for record, pid in known.items() if pid in had}
    two = {record: in_two(code) for record, code in codes.items() if record in again}
    handed = {record: two[record][0] if record in two else code for record, code in codes.items()}
    return handed, {record: letter for record, (_, letter) in two.items()}


def had_a_key(connection: sa.Connection, pids: Collection[str]) -> set[str]:
    """Those of these records that a key spoke for before, as far as can be known here.

    A house that was restored has forgotten the newest, so until another hospital has shown it the
    log everybody counts; after that it has read them from there.
    """
    if get_state(connection, PAUSED):
        return set(pids)
    found: set[str] = set()
    for table in (enrolled, mirror_document):
        query = sa.select(table.c.pid).where(table.c.pid.in_(list(pids)))
        found |= set(connection.execute(query).scalars())
    return found


def recoveries(site: Site, speakers: Mapping[str, Speakers], now: int) -> list[dict[str, object]]:
    """Patients whose new key waits: the hospital writes to them, since nobody else has an address.

    A key that somebody obtained by deceiving guardians or this desk can allow nothing until then,
    and the patient, who still has her old key, her account or this desk, can close the record.

    Args:
        site: This hospital.
        speakers: Who may speak, as far as this hospital has seen (`Mirror.speakers`).
        now: UTC seconds.

    Returns:
        [{"record", "since", "waits_until"}…], whose time is up first comes first.
    """
    waiting = {pid: state for pid, state in speakers.items() if state.waits_until > now}
    with site.database.reading() as connection:
        query = sa.select(patient.c.pid, patient.c.record_key).where(patient.c.pid.in_(waiting))
        records = {row.pid: row.record_key for row in connection.execute(query)}
    return [
        {"record": records[pid], "since": state.since, "waits_until": state.waits_until}
        for pid, state in sorted(waiting.items(), key=lambda item: item[1].waits_until)
        if pid in records
    ]


def fresh_code(
    connection: sa.Connection, site: Site, pid: str, method: Method | Literal["custodial"], now: int
) -> str:
    """A new code for a record; an unused older one ends with it.

    Raises:
        ErasedRecordError: The record was erased.
    """
    refuse_if_erased(connection, site, pid)
    connection.execute(sa.delete(code).where(code.c.pid == pid, code.c.used_at.is_(None)))
    code_id, secret, text = new_code(site.name)
    connection.execute(
        sa.insert(code).values(
            code_id=code_id,
            pid=pid,
            secret=secret,
            method=method,
            expires=now + CODE_SECONDS,
            used_at=None,
        )
    )
    return text


def pid_of_record(connection: sa.Connection, record_key: str) -> str:
    """The pid of a record number.

    Raises:
        UnknownRecordError: This hospital holds no such patient.
    """
    query = sa.select(patient.c.pid).where(patient.c.record_key == record_key)
    pid = connection.execute(query).scalar()
    if pid is None:
        raise UnknownRecordError(f"record: this hospital holds no patient {record_key!r}")
    return str(pid)


def answer(site: Site, redemptions: Sequence[Mapping[str, Json]], *, now: int) -> Answer:
    """Sign an enrolment for every redemption whose HMAC proves knowledge of the code's secret.

    One bad redemption is refused by its code and never stops the rest. Repeating a redemption that
    was answered returns the same document, so a crash before the hub stored it loses nothing.
    """
    documents: list[dict[str, object]] = []
    refused: list[dict[str, str]] = []
    with site.database.unit_of_work() as connection:
        for redemption in redemptions:
            try:
                documents.append(_answer_one(connection, site, redemption, now))
            except CoopError as error:
                refused.append({"code_id": str(redemption.get("code_id", "")), "code": error.code})
    # The enrolments are durable here and not yet at the hub: a crash now makes the hub ask again.
    return Answer(documents=documents, refused=refused)


def _answer_one(
    connection: sa.Connection, site: Site, redemption: Mapping[str, Json], now: int
) -> dict[str, object]:
    code_id, did = str(redemption["code_id"]), str(redemption["did"])
    row = connection.execute(sa.select(code).where(code.c.code_id == code_id)).one_or_none()
    if row is None:
        raise CodeRefusedError("code: unknown")
    check_mac(redemption, row.secret, site.trust.passkeys)
    if row.used_at is not None:
        return _repeat(connection, row.pid, code_id, did)
    if row.expires <= now:
        raise CodeRefusedError("code: older than seven days; ask the desk for a new one")
    document = issue(
        Enrolment.model_validate(
            {
                "site": site.name,
                "pid": row.pid,
                "key": did,
                "method": row.method,
                "custody": _CUSTODY[row.method],
                "code_id": code_id,
                **wishes_of(redemption),
            }
        ),
        site.key,
        now,
    )
    connection.execute(sa.update(code).where(code.c.code_id == code_id).values(used_at=now))
    # Earlier enrolments stay: what an older key signed was hers. The newest key signs from now on.
    connection.execute(
        sa.insert(enrolled).values(
            digest=document_digest(document),
            pid=row.pid,
            did=did,
            document=jcs(document).decode(),
            at=now,
        )
    )
    return document


def _repeat(connection: sa.Connection, pid: str, code_id: str, did: str) -> dict[str, object]:
    rows = connection.execute(
        sa.select(enrolled.c.document).where(enrolled.c.pid == pid, enrolled.c.did == did)
    ).scalars()
    for stored in rows:
        document = parse_object(stored)
        subject = document.get("credentialSubject")
        if isinstance(subject, dict) and subject.get("code_id") == code_id:
            return document
    raise ConflictError("code: already used")
