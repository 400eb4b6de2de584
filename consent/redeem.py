"""Redemptions on their way through the hub: from the patient's device to her hospital and back.

The hub only relays: it checks that the sender holds the key, the hospital checks that she held the
code and signs the enrolment. The code id is public, so a stranger may redeem it first; the hospital
refuses that one, and the code is free again.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from consent.people import desks_of, store
from consent.speakers import Desks
from consent.store import enrolled, enrolment, redemption, site_document
from consent.succession import take
from coop import members
from coop.canonical import Json, jcs, parse_object
from coop.documents.consent import Enrolment
from coop.documents.envelope import Opened, WrongDocumentError, open_document
from coop.enrolment import CODE_ID, check_proof
from coop.errors import CoopError, Kind, NotFoundError
from coop.journal.store import Journal
from coop.passkeys import RelyingParty
from coop.problems import problem_of

WAITING_MAX: Final = 1000  # one answer to a hospital's poll


class RedemptionRefusedError(CoopError):
    """The code is in use with another key, or the key already speaks for another record."""

    code = "enrolment.refused"
    kind = Kind.CONFLICT


class UnknownSiteError(NotFoundError):
    """No member hospital gives out such codes."""

    code = "enrolment.unknown-site"


Linked = set[tuple[int, str]]
"""(account, pid) of the records that have just become an account's."""


def redeem(
    connection: sa.Connection,
    bodies: Sequence[Mapping[str, Json]],
    account: int | None,
    context: tuple[int, RelyingParty | None],
    linked: Linked,
) -> list[dict[str, Any]]:
    """Keep redemptions for their hospitals; a repeat by the same key reports how it stands.

    Args:
        connection: Of a unit of work.
        bodies: What devices sent.
        account: Of whoever is signed in.
        context: The time, and the portal whose passkeys may redeem.
        linked: Gets what is linked.

    Returns:
        For each: {"code_id", "state", "site", "pid", "problem"}.
    """
    sites = members.site_dids(connection)
    results: list[dict[str, Any]] = []
    lock_redemptions(connection, {_named(body) or "" for body in bodies}, account)
    for body in bodies:
        try:
            results.append(_redeem_one(connection, body, account, (*context, sites), linked))
        except CoopError as error:
            results.append(
                {
                    "code_id": _named(body),
                    "state": "refused",
                    "site": None,
                    "pid": None,
                    "problem": problem_of(error)[1],
                }
            )
    return results


def _redeem_one(
    connection: sa.Connection,
    body: Mapping[str, Json],
    account: int | None,
    context: tuple[int, RelyingParty | None, Mapping[str, str]],
    linked: Linked,
) -> dict[str, Any]:
    now, passkeys, sites = context
    code_id, did = check_proof(body, passkeys)
    site = code_id.partition(".")[0]
    if site not in sites:
        raise UnknownSiteError("code_id: no member hospital gives out such codes")
    query = sa.select(redemption).where(redemption.c.code_id == code_id)
    row = connection.execute(query).one_or_none()
    if row is not None and row.did == did and row.state != "refused":
        return _again(connection, row, account, linked)
    if row is not None and row.state != "refused":
        raise RedemptionRefusedError("code_id: this code is in use with another key")
    if _pids_of_key(connection, did):
        raise RedemptionRefusedError("did: this key speaks for another record; make a new one")
    values = {
        "code_id": code_id,
        "site": site,
        "did": did,
        "body": jcs(dict(body)).decode(),
        "account_id": account,
        "state": "pending",
        "reason": None,
        "pid": None,
        "at": now,
    }
    if row is not None:
        connection.execute(redemption.delete().where(redemption.c.code_id == code_id))
    connection.execute(redemption.insert().values(values))
    return {"code_id": code_id, "state": "pending", "site": site, "pid": None, "problem": None}


def lock_redemptions(
    connection: sa.Connection, code_ids: Collection[str], account: int | None = None
) -> None:
    """Hold these redemptions, then every account they are or will be linked to."""
    query = (
        sa.select(redemption.c.account_id)
        .where(redemption.c.code_id.in_(sorted(code_ids)))
        .order_by(redemption.c.code_id)
    )
    found = set(connection.execute(query.with_for_update()).scalars()) | {account}
    members.lock_accounts(connection, {each for each in found if each is not None})


def code_ids(documents: Sequence[Mapping[str, Json]]) -> set[str]:
    """The codes that these enrolments answer."""
    subjects = [document.get("credentialSubject") for document in documents]
    return {str(subject.get("code_id")) for subject in subjects if isinstance(subject, dict)}


def _named(body: Mapping[str, Json]) -> str | None:
    code_id = body.get("code_id")
    return code_id if isinstance(code_id, str) and CODE_ID.fullmatch(code_id) else None


def _again(
    connection: sa.Connection,
    row: sa.Row[tuple[object, ...]],
    account: int | None,
    linked: Linked,
) -> dict[str, Any]:
    if account is not None and row.account_id is None and _speaks(connection, row):
        # She proved that she holds the key, so the account she is signed in with is hers.
        same = redemption.c.code_id == row.code_id
        connection.execute(redemption.update().where(same).values(account_id=account))
        if row.pid is not None and members.link_pid(connection, account, row.pid, row.site):
            linked.add((account, row.pid))
    return {
        "code_id": row.code_id,
        "state": row.state,
        "site": row.site,
        "pid": row.pid,
        "problem": None,
    }


def _speaks(connection: sa.Connection, row: sa.Row[tuple[object, ...]]) -> bool:
    """Whether the redemption's key is the record's own still, or not enrolled yet."""
    newest = enrolled(connection, [row.pid]).get(row.pid) if row.pid is not None else None
    return newest is None or newest.did == row.did


def state_of(connection: sa.Connection, code_id: str) -> dict[str, str | None]:
    """How a code's redemption stands, and nothing else.

    Raises:
        NotFoundError: Nobody redeemed it.
    """
    query = sa.select(redemption.c.state, redemption.c.reason).where(
        redemption.c.code_id == code_id
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("code_id: not found")
    return {"state": row.state, "reason": row.reason}


def waiting(connection: sa.Connection, site: str) -> list[dict[str, Json]]:
    """Redemptions this hospital has not answered, oldest first."""
    query = (
        sa.select(redemption.c.body)
        .where(redemption.c.site == site, redemption.c.state == "pending")
        .order_by(redemption.c.at, redemption.c.code_id)
        .limit(WAITING_MAX)
    )
    return [parse_object(body) for body in connection.execute(query).scalars()]


def refuse(connection: sa.Connection, site: str, refused: Sequence[Mapping[str, str]]) -> None:
    """The hospital's word that these codes do not belong to these keys; they are free again."""
    for item in refused:
        connection.execute(
            redemption.update()
            .where(
                redemption.c.code_id == item["code_id"],
                redemption.c.site == site,
                redemption.c.state == "pending",
            )
            .values(state="refused", reason=item["code"][:64])
        )


def add_enrolments(
    connection: sa.Connection,
    journal: Journal,
    site: str,
    documents: Sequence[Mapping[str, Json]],
    context: tuple[str, int],
    linked: Linked,
) -> list[dict[str, Any]]:
    """Store enrolments that `site` signed, in the log and beside it; one bad one stops no other.

    Args:
        connection: Of a unit of work.
        journal: Where they are logged.
        site: The hospital that is asking.
        documents: What it signed.
        context: The registry's did, and the time.
        linked: Gets what is linked.

    Returns:
        For each: {"code_id", "state", "problem"}. The same document twice is stored once.
    """
    registry, now = context
    desks = desks_of(connection, registry, site)
    results: list[dict[str, Any]] = []
    fresh: dict[str, Opened[Enrolment]] = {}
    for document in documents:
        try:
            opened = _checked(connection, site, (desks, now), document)
            if any(
                opened.subject.key == o.subject.key for d, o in fresh.items() if d != opened.digest
            ):
                raise RedemptionRefusedError("key: it stands twice in this batch")
            if not _stored(connection, opened):
                fresh[opened.digest] = opened
            results.append(
                {"code_id": opened.subject.code_id, "state": "enrolled", "problem": None}
            )
        except CoopError as error:
            results.append({"code_id": None, "state": "refused", "problem": problem_of(error)[1]})
            _close(connection, site, document, error.code)
    # Before the log: every writer locks its own rows first and the log's head last. A key change
    # in the other order would deadlock with the same patient's withdrawal.
    keys = enrolled(connection, {o.subject.pid for o in fresh.values()}, lock=True)
    logged = journal.record_many(connection, "enrolment", [o.document for o in fresh.values()])
    for place, opened in zip(logged, fresh.values(), strict=True):
        pid = opened.subject.pid
        keys[pid] = store(connection, opened, place, keys.get(pid), (now, desks, None))
        _link(connection, opened.subject, keys[pid].speakers.waits_until, linked)
    return results


def _close(connection: sa.Connection, site: str, document: Mapping[str, Json], reason: str) -> None:
    """End the redemption that a refused enrolment answers; else its hospital is asked for ever."""
    subject = document.get("credentialSubject")
    code_id = subject.get("code_id") if isinstance(subject, dict) else None
    if isinstance(code_id, str):
        refuse(connection, site, [{"code_id": code_id, "code": reason}])


def _checked(
    connection: sa.Connection, site: str, context: tuple[Desks, int], document: Mapping[str, Json]
) -> Opened[Enrolment]:
    """An enrolment that may be stored.

    Steps: (1) signed by this site; (2) for itself; (3) for a key that redeemed this code; (4) for a
    record that is not another hospital's, with a key that speaks for no other record; (5) newer
    than what the record has.
    """
    desks, now = context
    # (1)
    opened = open_document(Enrolment, document, issuers={str(desks.hospital)})
    subject = opened.subject
    # (2)
    if subject.site != site:
        raise WrongDocumentError("enrolment.site: must be the hospital that signs")
    # (3)
    if not CODE_ID.fullmatch(subject.code_id):
        raise WrongDocumentError("enrolment.code_id: is no code's id")
    query = sa.select(redemption).where(redemption.c.code_id == subject.code_id)
    row = connection.execute(query).one_or_none()
    if row is None or row.did != subject.key or row.site != site:
        raise RedemptionRefusedError("enrolment.key: this key did not redeem this code")
    # (4)
    before = enrolled(connection, [subject.pid]).get(subject.pid)
    if before is not None and before.site != site:
        raise RedemptionRefusedError("enrolment.pid: enrolled by another hospital")
    if _pids_of_key(connection, subject.key) - {subject.pid}:
        raise RedemptionRefusedError("enrolment.key: it speaks for another record")
    # (5)
    state = before.speakers if before else None
    if take(state, opened, now, desks) is state and not _stored(connection, opened):
        raise RedemptionRefusedError("enrolment: older than the one the record has")
    return opened


def _stored(connection: sa.Connection, opened: Opened[Enrolment]) -> bool:
    query = sa.select(site_document.c.log_index).where(site_document.c.digest == opened.digest)
    return connection.execute(query).first() is not None


def _link(connection: sa.Connection, subject: Enrolment, waits_until: int, linked: Linked) -> None:
    same = redemption.c.code_id == subject.code_id
    account = connection.execute(sa.select(redemption.c.account_id).where(same)).scalar()
    done = {"state": "enrolled", "reason": None, "pid": subject.pid}
    connection.execute(redemption.update().where(same).values(done))
    # The hospital checked anew who she is: whoever redeemed an earlier code is not her any more,
    # but can still say, while the new key waits, that the hospital was deceived.
    members.unlink_pid(connection, subject.pid, keep=account, may_object_until=waits_until)
    if account is not None and members.link_pid(connection, account, subject.pid, subject.site):
        linked.add((account, subject.pid))


def _pids_of_key(connection: sa.Connection, did: str) -> set[str]:
    query = sa.select(enrolment.c.pid).where(enrolment.c.did == did)
    return set(connection.execute(query).scalars())
