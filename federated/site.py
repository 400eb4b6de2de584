"""A hospital's own place: its folder, key, database, pinned trust and the two secrets behind pids.

The folder holds `site.key` (Ed25519, readable by its owner only), `trust.json` (whom this hospital
believes, pinned when it joined), `ca.pem` (the hub's certificate authority) and, unless another
database is named, `node.sqlite`. A pseudonym can be computed here and nowhere else.
"""

import base64
import fcntl
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import orjson
import sqlalchemy as sa

from coop.canonical import Json, sha256
from coop.db import Database, RowId, metadata
from coop.errors import ConflictError, InvalidInputError, Kind, NotFoundError
from coop.journal.trust import Trust
from coop.keys import SigningKey, random_bytes

site_state = sa.Table(
    "site_state",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
"""Small facts of this hospital: name, secrets (hex), data_version, hub_url."""

COSIGNING_PAUSED: Final = "cosigning_paused_at"
"""Since when a restored house waits for another one's word on the log (`federated.cosigning`)."""

patient = sa.Table(
    "patient",
    metadata,
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("record_key", sa.String(200), nullable=False, unique=True),
)

patient_row = sa.Table(
    "patient_row",
    metadata,
    sa.Column("pid", sa.ForeignKey("patient.pid"), primary_key=True),
    sa.Column("extract", sa.String(64), primary_key=True, server_default=""),
    sa.Column("row", sa.Text, nullable=False),
)
"""All of one patient's data as one JSON object: the privacy unit is the patient. `extract` says
which rows they are: of the imported table (""), or of the extract some studies ask for
(`Study.extract`)."""

quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("id", RowId, primary_key=True),
    sa.Column("file", sa.String(200), nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
"""Lines the importer refused, of the newest import of each file; never the line's content."""

code = sa.Table(
    "code",
    metadata,
    sa.Column("code_id", sa.String(80), primary_key=True),
    sa.Column("pid", sa.ForeignKey("patient.pid"), nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger),
)
"""Enrolment codes handed out at the desk; single use."""

enrolled = sa.Table(
    "enrolled",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("pid", sa.ForeignKey("patient.pid"), nullable=False, index=True),
    sa.Column("did", sa.String(128), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""Enrolments this hospital signed: the only keys whose consents it counts."""

desk_document = sa.Table(
    "desk_document",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("pid", sa.ForeignKey("patient.pid"), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("ends", sa.String(64)),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.BigInteger),
    sa.Column("refused", sa.String(64)),
)
"""What this hospital signed about representatives; `ends` names the representation that a document
ends, `refused` why the hub did not take it."""

custodial_key = sa.Table(
    "custodial_key",
    metadata,
    sa.Column("pid", sa.ForeignKey("patient.pid"), primary_key=True),
    sa.Column("did", sa.String(128), primary_key=True),
    sa.Column("seed", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""Keys this hospital holds for patients who cannot hold one themselves."""

_PID_TAG: Final = b"coop/pid/v1"
_FOLD_TAG: Final = b"coop/fold/v1"
PID_LETTERS: Final = 26  # 130 bits: pids of 10^9 patients do not collide
RECORD_KEY_CHARACTERS_MAX: Final = 200
_PERCENT: Final = 100
_URL_FILE: Final = "database.url"  # present only where the hospital brought its own database


class NotJoinedError(NotFoundError):
    """This hospital has not joined a cooperative yet: it trusts nobody."""

    code = "site.not-joined"
    kind = Kind.CONFLICT


class TrustPinnedError(ConflictError):
    """Other keys are pinned already; a pinned key is never replaced silently."""

    code = "site.trust-pinned"


class Site:
    """One hospital node's state. `close` when done.

    Args:
        folder: Where the key, the pinned trust and (by default) the database live.
        database: Already migrated.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.database = database
        self.key = SigningKey.load(folder / "site.key")
        with database.reading() as connection:
            state = {row.key: row.value for row in connection.execute(sa.select(site_state))}
        if "name" not in state:
            raise NotFoundError(f"{folder}: no hospital here; make one with `coop hospital join`")
        self.name: str = state["name"]
        self.pid_key = bytes.fromhex(state["pid_key"])
        self.fold_key = bytes.fromhex(state["fold_key"])

    @classmethod
    def create(cls, folder: Path, name: str, *, database_url: str = "") -> Self:
        """A new hospital: fresh key, fresh pid and fold secrets, empty database.

        Raises:
            ConflictError: There is a hospital in this folder already.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The key file comes first and is never overwritten: a crash after it leaves a folder
        # without a name, which `open` refuses and `create` refuses too; remove it and start again.
        SigningKey.generate().save(folder / "site.key")
        if database_url:
            _write(folder / _URL_FILE, database_url.encode())
        database = Database(database_url or _default_url(folder))
        database.upgrade()
        with database.unit_of_work() as connection:
            facts = {
                "name": name,
                "pid_key": random_bytes(32).hex(),
                "fold_key": random_bytes(32).hex(),
                "data_version": "0",
            }
            connection.execute(
                sa.insert(site_state), [{"key": key, "value": v} for key, v in facts.items()]
            )
        return cls(folder, database)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The hospital made earlier in `folder`.

        Raises:
            NotFoundError: There is none.
        """
        if not (folder / "site.key").exists():
            raise NotFoundError(f"{folder}: no hospital here; make one with `coop hospital join`")
        url_file = folder / _URL_FILE
        url = url_file.read_text().strip() if url_file.exists() else _default_url(folder)
        database = Database(url)
        database.upgrade()
        return cls(folder, database)

    def close(self) -> None:
        """Give back the database's connections."""
        self.database.close()

    def pin(self, trust: Mapping[str, Json], hub_url: str, ca_pem: str | None) -> None:
        """Pin whom this hospital believes. Pinning again may add hospitals, never change a key.

        Args:
            trust: The content of trust.json (hub, log, origin, sites, k).
            hub_url: Where the hub answers.
            ca_pem: The hub's certificate authority, None for the system's.

        Raises:
            TrustPinnedError: Another hub, log or portal, or another key of a hospital, is pinned.
        """
        path = self.folder / "trust.json"
        asked = Trust.of(trust)
        # One at a time, in any process: of two hospitals accepted at once none may be lost.
        with (self.folder / "trust.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                pinned = Trust.load(path)
                _refuse_other_keys(pinned, asked)
                asked = replace(asked, sites={**pinned.sites, **asked.sites})  # none is left out
            _write(path, orjson.dumps(asked.to_json(), option=orjson.OPT_INDENT_2))
        if ca_pem is not None:
            _write(self.folder / "ca.pem", ca_pem.encode())
        with self.database.unit_of_work() as connection:
            put_state(connection, "hub_url", hub_url)

    @property
    def joined(self) -> bool:
        """Whether a cooperative is pinned."""
        return (self.folder / "trust.json").exists()

    @property
    def trust(self) -> Trust:
        """Whom this hospital believes.

        Raises:
            NotJoinedError: It has not joined.
        """
        path = self.folder / "trust.json"
        if not path.exists():
            raise NotJoinedError("trust.json: missing; join with `coop hospital join TOKEN`")
        return Trust.load(path)

    @property
    def hub_url(self) -> str:
        """Where the hub answers.

        Raises:
            NotJoinedError: It has not joined.
        """
        with self.database.reading() as connection:
            url = get_state(connection, "hub_url")
        if url is None:
            raise NotJoinedError("hub_url: unknown; join with `coop hospital join TOKEN`")
        return url

    @property
    def ca_file(self) -> Path | None:
        """The hub's certificate authority; None means the system's."""
        path = self.folder / "ca.pem"
        return path if path.exists() else None

    def pid_of(self, record_key: str) -> str:
        """The pseudonym of a patient: the same at every import, computable only here.

        DESIGN §6: base32 of HMAC-SHA256 under the site's secret, 26 letters.
        """
        if not record_key or len(record_key) > RECORD_KEY_CHARACTERS_MAX or "\0" in record_key:
            raise InvalidInputError(
                f"record key: must have 1 to {RECORD_KEY_CHARACTERS_MAX} characters"
            )
        message = b"\0".join((_PID_TAG, self.name.encode(), record_key.encode()))
        mac = hmac.digest(self.pid_key, message, hashlib.sha256)
        return base64.b32encode(mac).decode().lower()[:PID_LETTERS]

    def is_evaluation(self, pid: str, percent: int) -> bool:
        """Whether this patient is in the evaluation fold; else she is in the training fold.

        Fixed for a patient at a given `percent`, and secret: the fold key never leaves the site.
        """
        mac = hmac.digest(self.fold_key, _FOLD_TAG + b"\0" + pid.encode(), hashlib.sha256)
        return int.from_bytes(mac[:8]) % _PERCENT < percent

    def data_version(self) -> int:
        """Goes up with every import that changed a row; old answers are not replayed after it."""
        with self.database.reading() as connection:
            return int(get_state(connection, "data_version") or 0)


def get_state(connection: sa.Connection, key: str) -> str | None:
    """A small fact of this hospital."""
    value = connection.scalar(sa.select(site_state.c.value).where(site_state.c.key == key))
    return None if value is None else str(value)


def put_state(connection: sa.Connection, key: str, value: str) -> None:
    """Write a small fact of this hospital, replacing the old one."""
    changed = connection.execute(
        sa.update(site_state).where(site_state.c.key == key).values(value=value)
    ).rowcount
    if not changed:
        connection.execute(sa.insert(site_state).values(key=key, value=value))


def fingerprint(site: Site) -> str:
    """A short name of the site's key to compare over the telephone."""
    return sha256(site.key.public).hex()[:16]


def _refuse_other_keys(pinned: Trust, asked: Trust) -> None:
    if (pinned.hub, pinned.log, pinned.origin) != (asked.hub, asked.log, asked.origin):
        raise TrustPinnedError(
            "trust.json: pins another cooperative; join that one from a new folder"
        )
    if pinned.passkeys is not None and pinned.passkeys != asked.passkeys:
        raise TrustPinnedError("trust.json: pins another portal for passkeys; ask by phone")
    for name, did in pinned.sites.items():
        if asked.sites.get(name, did) != did:
            raise TrustPinnedError(f"trust.json: pins another key of {name}; ask {name} by phone")


def _default_url(folder: Path) -> str:
    return f"sqlite:///{(folder / 'node.sqlite').absolute()}"


def _write(path: Path, content: bytes) -> None:
    # Written beside and renamed: a crash leaves the old file or the new one, never half of one.
    beside = path.with_suffix(path.suffix + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content if content.endswith(b"\n") else content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
