"""Who is known here: hospitals by their keys, people by their sign-in.

What links a person to her pseudonyms stands in `account_pid`, which only the functions of
this module read.
"""

import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from coop.canonical import b64u, encode, from_b64u, sha256
from coop.credentials import token_digest
from coop.db import RowId, insert_ignore, metadata
from coop.errors import ConflictError, CoopError, InvalidInputError, Kind, NotFoundError
from coop.keys import BadSignatureError, SigningKey, public_of, random_bytes, verify

if TYPE_CHECKING:
    from coop.doors import Caller  # the doors stand on this module

JOIN_PREFIX: Final = "coop_join_"
INVITE_S: Final = 24 * 3600  # references/security-reliability.md §2
_SECRET_BYTES: Final = 32
_JOIN_TAG: Final = b"coop/join/v1"
_SUBJECT_TAG: Final = b"coop/account/v1"
SITE_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
RESERVED_NAMES: Final = frozenset({"coop", "hub", "log", "public"})
"""`staff:coop` is the cooperative's own staff, so no hospital may be called that."""


class InviteRefusedError(CoopError):
    """The join token is unknown, used, expired or for another name."""

    code = "members.invite-refused"
    kind = Kind.FORBIDDEN


site_table = sa.Table(
    "site",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("did", sa.Text, nullable=False, unique=True),
    sa.Column("supernode_key", sa.Text, nullable=False),
    sa.Column("joined_at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
)
invite_table = sa.Table(
    "invite",
    metadata,
    sa.Column("token_sha256", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger),
)
account_table = sa.Table(
    "account",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("subject_sha256", sa.Text, nullable=False),
    sa.UniqueConstraint("issuer", "subject_sha256"),
)
account_pid_table = sa.Table(
    "account_pid",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True),
    sa.Column("pid", sa.Text, primary_key=True),
    sa.Column("site", sa.Text, nullable=False),
)
account_former_pid_table = sa.Table(
    "account_former_pid",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True),
    sa.Column("pid", sa.Text, primary_key=True),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)
"""Accounts that a new enrolment parted from a record: until then they may object to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """A member hospital."""

    name: str
    did: str
    supernode_key: str
    joined_at: int
    state: str
    """`active`, or `left`."""


# -- hospitals -------------------------------------------------------------------------------------


def sites(connection: sa.Connection) -> dict[str, SiteRow]:
    """Every active hospital by name, in name order."""
    query = sa.select(site_table).where(site_table.c.state == "active").order_by(site_table.c.name)
    return {row.name: _site(row) for row in connection.execute(query)}


def site_dids(connection: sa.Connection) -> dict[str, str]:
    """Every active hospital's did by name."""
    return {name: row.did for name, row in sites(connection).items()}


def site_of(connection: sa.Connection, did: str) -> SiteRow | None:
    """The active hospital that signs with `did`."""
    query = sa.select(site_table).where(site_table.c.did == did, site_table.c.state == "active")
    row = connection.execute(query).one_or_none()
    return _site(row) if row else None


def create_invite(
    connection: sa.Connection, name: str, *, now: int, seconds: int = INVITE_S
) -> str:
    """A join token for the hospital `name`: single use, shown once, stored as a digest.

    Raises:
        InvalidInputError: The name cannot be a hospital's.
        ConflictError: A hospital of that name has joined.
    """
    if not SITE_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise InvalidInputError("name: a-z first, then a-z, 0-9, '_' or '-'; not a reserved word")
    if name in sites(connection):
        raise ConflictError(f"name: {name} has joined already")
    token = JOIN_PREFIX + b64u(random_bytes(_SECRET_BYTES))
    connection.execute(
        invite_table.insert().values(
            token_sha256=token_digest(token), name=name, expires=now + min(seconds, INVITE_S)
        )
    )
    return token


def join_request(token: str, name: str, key: SigningKey, supernode_key: str) -> dict[str, str]:
    """What a hospital posts to join: its keys, with proof that it holds the site key."""
    message = _join_message(token, name, key.did, supernode_key)
    return {
        "token": token,
        "name": name,
        "did": key.did,
        "supernode_key": supernode_key,
        "proof": b64u(key.sign(message)),
    }


def redeem_invite(connection: sa.Connection, request: Mapping[str, str], *, now: int) -> SiteRow:
    """Make the sender a member.

    Steps: (1) the proof shows that the sender holds the key; (2) the token is spent, by exactly one
    of any number of senders; (3) the hospital is written. A repeat by the same keys (its answer was
    lost) gets the same answer; anybody else is refused.

    Raises:
        InviteRefusedError: The token is not good for this name.
        BadSignatureError: The sender does not hold the key it names.
    """
    token, name, did = request["token"], request["name"], request["did"]
    # (1)
    message = _join_message(token, name, did, request["supernode_key"])
    try:
        verify(public_of(did), message, from_b64u(request["proof"]))
    except InvalidInputError as error:
        raise BadSignatureError("proof: must be made by the key that did names") from error
    # (2)
    good = (invite_table.c.token_sha256 == token_digest(token)) & (invite_table.c.name == name)
    spent = connection.execute(
        invite_table.update()
        .where(good, invite_table.c.used_at.is_(None), invite_table.c.expires > now)
        .values(used_at=now)
    ).rowcount
    if not spent:
        return _joined_before(connection, request, good)
    # (3)
    values = {"name": name, "did": did, "supernode_key": request["supernode_key"]}
    row = SiteRow(**values, joined_at=now, state="active")
    added = insert_ignore(connection, site_table, {**values, "joined_at": now, "state": "active"})
    if not added:
        raise ConflictError("name: a hospital with this name or key has joined already")
    return row


def _joined_before(
    connection: sa.Connection, request: Mapping[str, str], good: sa.ColumnElement[bool]
) -> SiteRow:
    known = connection.execute(sa.select(invite_table.c.name).where(good)).one_or_none()
    row = sites(connection).get(request["name"]) if known else None
    same = row is not None and (row.did, row.supernode_key) == (
        request["did"],
        request["supernode_key"],
    )
    if row is None or not same:
        raise InviteRefusedError("token: unknown, used, expired or for another name; ask for one")
    return row


def _join_message(token: str, name: str, did: str, supernode_key: str) -> bytes:
    bound = {
        "token_sha256": token_digest(token),
        "name": name,
        "did": did,
        "supernode_key": supernode_key,
    }
    return encode(_JOIN_TAG, bound)


# -- people ----------------------------------------------------------------------------------------


def account_of(connection: sa.Connection, issuer: str, subject: str) -> int:
    """The account of this person at this issuer, made when first seen; her name is not kept."""
    hashed = sha256(encode(_SUBJECT_TAG, {"issuer": issuer, "subject": subject})).hex()
    insert_ignore(connection, account_table, {"issuer": issuer, "subject_sha256": hashed})
    query = sa.select(account_table.c.id).where(
        account_table.c.issuer == issuer, account_table.c.subject_sha256 == hashed
    )
    return int(connection.execute(query).scalar_one())


def check_account(connection: sa.Connection, account_id: int) -> None:
    """Return if somebody has signed in with this account.

    Raises:
        NotFoundError: Nobody has.
    """
    query = sa.select(account_table.c.id).where(account_table.c.id == account_id)
    if connection.scalar(query) is None:
        raise NotFoundError("account: nobody has signed in with it; it is the whoami `subject`")


def pids_of(connection: sa.Connection, account_id: int) -> list[tuple[str, str]]:
    """The account's pseudonyms with their sites, in order."""
    query = (
        sa.select(account_pid_table.c.pid, account_pid_table.c.site)
        .where(account_pid_table.c.account_id == account_id)
        .order_by(account_pid_table.c.pid)
    )
    return [(row.pid, row.site) for row in connection.execute(query)]


def lock_accounts(connection: sa.Connection, account_ids: Collection[int]) -> None:
    """Hold these accounts until the commit: what she says of all her records knows every record.

    Whoever links a record to an account, or restricts all of one, takes redemptions first, then
    accounts, then enrolments, then the head of the log.
    """
    query = (
        sa.select(account_table.c.id)
        .where(account_table.c.id.in_(sorted(account_ids)))
        .order_by(account_table.c.id)
    )
    connection.execute(query.with_for_update(key_share=True)).all()


def accounts_of(connection: sa.Connection, pids: Collection[str]) -> set[int]:
    """The accounts that these records are linked to."""
    query = sa.select(account_pid_table.c.account_id).where(account_pid_table.c.pid.in_(list(pids)))
    return set(connection.execute(query).scalars())


def link_pid(connection: sa.Connection, account_id: int, pid: str, site: str) -> bool:
    """Note that this account redeemed the code of `pid`; whether that is new. Idempotent."""
    row: dict[str, object] = {"account_id": account_id, "pid": pid, "site": site}
    return insert_ignore(connection, account_pid_table, row) > 0


def unlink_pid(
    connection: sa.Connection, pid: str, *, keep: int | None, may_object_until: int
) -> None:
    """Part `pid` from every account but `keep`; those parted may object to it until then."""
    others = account_pid_table.c.pid == pid
    if keep is not None:
        others &= account_pid_table.c.account_id != keep
    parted = connection.execute(sa.select(account_pid_table).where(others)).all()
    for row in parted:
        mine = (account_former_pid_table.c.account_id == row.account_id) & (
            account_former_pid_table.c.pid == pid
        )
        connection.execute(account_former_pid_table.delete().where(mine))
        connection.execute(
            account_former_pid_table.insert().values(
                account_id=row.account_id, pid=pid, site=row.site, until=may_object_until
            )
        )
    connection.execute(account_pid_table.delete().where(others))


def forget_pid(connection: sa.Connection, pid: str) -> None:
    """Forget whose `pid` it is, and whose it was."""
    for table in (account_pid_table, account_former_pid_table):
        connection.execute(table.delete().where(table.c.pid == pid))


def former_pids_of(connection: sa.Connection, account_id: int, now: int) -> list[tuple[str, str]]:
    """Pseudonyms that a new enrolment took from this account and to which it may still object."""
    table = account_former_pid_table
    query = (
        sa.select(table.c.pid, table.c.site)
        .where(table.c.account_id == account_id, table.c.until > now)
        .order_by(table.c.pid)
    )
    return [(row.pid, row.site) for row in connection.execute(query)]


def owns(connection: sa.Connection, caller: "Caller", pid: str, pid_did: str) -> None:
    """Return if `pid` is the caller's own: linked to her account, or enrolled with her key.

    Raises:
        NotFoundError: Somebody else's, or unknown; the two look alike.
    """
    if caller.did is not None and hmac.compare_digest(caller.did.encode(), pid_did.encode()):
        return
    account_id = caller.account_or_none
    mine = pids_of(connection, account_id) if account_id is not None else []
    if any(own == pid for own, _site in mine):
        return
    raise NotFoundError("pid: not found")


def _site(row: sa.Row[tuple[object, ...]]) -> SiteRow:
    return SiteRow(
        name=row.name,
        did=row.did,
        supernode_key=row.supernode_key,
        joined_at=row.joined_at,
        state=row.state,
    )
