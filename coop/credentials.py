"""What people and researchers show at the door: sessions, API keys, and nonces already seen.

Every secret has 256 random bits, is shown once and stored as a digest.
"""

import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from coop.canonical import b64u, sha256
from coop.db import insert_ignore, metadata
from coop.errors import ConflictError, CoopError, Kind, NotFoundError
from coop.keys import random_bytes

SESSION_PREFIX: Final = "coop_st_"
API_KEY_PREFIX: Final = "coop_sk_"
SESSION_S: Final = 8 * 3600  # a working day
API_KEY_S: Final = 90 * 86_400
API_KEYS_MAX: Final = 50  # live keys of one account
_SECRET_BYTES: Final = 32
_ROLE: Final = re.compile(r"patient|researcher|member|staff:[a-z][a-z0-9_-]{0,63}")


class SeveralHospitalsError(CoopError):
    """The sign-in names several hospitals; a session is for one."""

    code = "members.several-hospitals"
    kind = Kind.FORBIDDEN


session_table = sa.Table(
    "session",
    metadata,
    sa.Column("token_sha256", sa.Text, primary_key=True),
    sa.Column("account_id", sa.BigInteger, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("site", sa.Text),
    sa.Column("expires", sa.BigInteger, nullable=False, index=True),
)
api_key_table = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret_sha256", sa.Text, nullable=False),
    sa.Column("account_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("study_id", sa.Text),
    sa.Column("purposes", sa.Text, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
)
seen_nonce_table = sa.Table(
    "seen_nonce",
    metadata,
    sa.Column("did", sa.Text, primary_key=True),
    sa.Column("nonce", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A signed-in person."""

    account_id: int
    roles: frozenset[str]
    site: str | None
    expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a new API key may be used for, and how long."""

    study_id: str | None = None
    purposes: tuple[str, ...] = ()
    seconds: int = API_KEY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A researcher's key without its secret."""

    id: str
    account_id: int
    label: str
    study_id: str | None
    """The only study it may ask under; None means any of the account's."""
    purposes: tuple[str, ...]
    """The only DUO purposes it may state; empty means any the study has."""
    expires: int
    revoked_at: int | None


def token_digest(token: str) -> str:
    """How a secret is stored: its 256 random bits cannot be searched, so no slow hash is needed."""
    return sha256(token.encode()).hex()


def open_session(
    connection: sa.Connection, account_id: int, *, roles: Collection[str], now: int
) -> tuple[str, Session]:
    """Sign a verified person's account in: a fresh token and what it stands for.

    Unknown roles are dropped. Whoever has none is a patient: that opens her own records only.

    Raises:
        SeveralHospitalsError: The roles name several hospitals.
    """
    kept = frozenset(role for role in roles if _ROLE.fullmatch(role)) or frozenset({"patient"})
    places = sorted(role.removeprefix("staff:") for role in kept if role.startswith("staff:"))
    if len(places) > 1:
        raise SeveralHospitalsError("roles: staff of several hospitals; sign in for one")
    session = Session(
        account_id=account_id,
        roles=kept,
        site=places[0] if places else None,
        expires=now + SESSION_S,
    )
    token = SESSION_PREFIX + b64u(random_bytes(_SECRET_BYTES))
    connection.execute(session_table.delete().where(session_table.c.expires <= now))
    connection.execute(
        session_table.insert().values(
            token_sha256=token_digest(token),
            account_id=session.account_id,
            roles=" ".join(sorted(kept)),
            site=session.site,
            expires=session.expires,
        )
    )
    return token, session


def find_session(connection: sa.Connection, token: str, now: int) -> Session | None:
    """The live session of `token`."""
    query = sa.select(session_table).where(
        session_table.c.token_sha256 == token_digest(token), session_table.c.expires > now
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Session(
        account_id=row.account_id,
        roles=frozenset(row.roles.split()),
        site=row.site,
        expires=row.expires,
    )


def close_session(connection: sa.Connection, token: str) -> None:
    """Sign out: the token is worthless from here on."""
    connection.execute(
        session_table.delete().where(session_table.c.token_sha256 == token_digest(token))
    )


# -- researchers' keys -----------------------------------------------------------------------------


def create_api_key(
    connection: sa.Connection,
    account_id: int,
    *,
    label: str,
    scope: Scope,
    now: int,
) -> tuple[str, ApiKey]:
    """A fresh API key: the text, shown once, and what is kept of it.

    Raises:
        ConflictError: The account has as many live keys as one may have.
    """
    live = [key for key in api_keys(connection, account_id) if key.revoked_at is None]
    if sum(key.expires > now for key in live) >= API_KEYS_MAX:
        raise ConflictError(f"API keys: {API_KEYS_MAX} are live; revoke one first")
    key = ApiKey(
        id=random_bytes(6).hex(),
        account_id=account_id,
        label=label,
        study_id=scope.study_id,
        purposes=tuple(sorted(scope.purposes)),
        expires=now + min(scope.seconds, API_KEY_S),
        revoked_at=None,
    )
    secret = b64u(random_bytes(_SECRET_BYTES))
    connection.execute(
        api_key_table.insert().values(
            id=key.id,
            secret_sha256=token_digest(secret),
            account_id=account_id,
            label=label,
            study_id=scope.study_id,
            purposes=" ".join(key.purposes),
            expires=key.expires,
        )
    )
    return f"{API_KEY_PREFIX}{key.id}_{secret}", key


def find_api_key(connection: sa.Connection, text: str, now: int) -> ApiKey | None:
    """The live key that `text` is."""
    key_id, _, secret = text.removeprefix(API_KEY_PREFIX).partition("_")
    row = connection.execute(
        sa.select(api_key_table).where(api_key_table.c.id == key_id)
    ).one_or_none()
    # Compare even where the id is unknown: id and secret fail alike.
    stored = row.secret_sha256 if row else token_digest("")
    good = hmac.compare_digest(stored, token_digest(secret))
    if row is None or not good or row.revoked_at is not None or row.expires <= now:
        return None
    return _api_key(row)


def api_key(connection: sa.Connection, key_id: str) -> ApiKey:
    """The key with this id, live or not.

    Raises:
        NotFoundError: There is none.
    """
    query = sa.select(api_key_table).where(api_key_table.c.id == key_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("API key: not found")
    return _api_key(row)


def api_keys(connection: sa.Connection, account_id: int) -> list[ApiKey]:
    """The account's keys, revoked ones too."""
    query = (
        sa.select(api_key_table)
        .where(api_key_table.c.account_id == account_id)
        .order_by(api_key_table.c.id)
    )
    return [_api_key(row) for row in connection.execute(query)]


def revoke_api_key(connection: sa.Connection, account_id: int, key_id: str, *, now: int) -> None:
    """Make the key worthless from here on; idempotent.

    Raises:
        NotFoundError: Somebody else's, or unknown.
    """
    mine = (api_key_table.c.id == key_id) & (api_key_table.c.account_id == account_id)
    found = connection.execute(
        api_key_table.update()
        .where(mine)
        .values(revoked_at=sa.func.coalesce(api_key_table.c.revoked_at, now))
    ).rowcount
    if not found:
        raise NotFoundError("API key: not found")


# -- replays ---------------------------------------------------------------------------------------


def remember_nonce(
    connection: sa.Connection, did: str, nonce: str, *, at: int, keep_from: int
) -> bool:
    """Whether this nonce is new; forgets the ones that are too old to be replayed."""
    connection.execute(seen_nonce_table.delete().where(seen_nonce_table.c.at < keep_from))
    return bool(insert_ignore(connection, seen_nonce_table, {"did": did, "nonce": nonce, "at": at}))


def _api_key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        account_id=row.account_id,
        label=row.label,
        study_id=row.study_id,
        purposes=tuple(row.purposes.split()),
        expires=row.expires,
        revoked_at=row.revoked_at,
    )
