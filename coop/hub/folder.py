"""The hub's folder: its two keys, its certificate authority, its name and its legal mode.

hub.json     name of the log, legal mode, where clients reach the hub, whose passkeys sign
hub.key      signs documents          log.key      signs the log's checkpoints
tls/         ca.crt ca.key server.crt server.key
coop.sqlite  the database, unless COOP_DATABASE_URL names another
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import sqlalchemy as sa

from consent.chain import cosigners_needed
from coop import members, tls
from coop.canonical import Json, jcs, parse_object
from coop.errors import ConflictError, InvalidInputError, NotFoundError
from coop.journal.trust import Trust
from coop.keys import SigningKey
from coop.passkeys import RelyingParty
from coop.settings import Settings

_ORIGIN: Final = re.compile(r"[a-z0-9][a-z0-9.:/_-]{0,127}")


class HubFolderError(ConflictError):
    """The folder is a hub's already, or is not one."""

    code = "hub.folder"


class LegalMode(StrEnum):
    """Which body of law the cooperative runs under; the strictest rule wins where two apply."""

    HIPAA = "hipaa"
    EHDS = "ehds"
    ALTRUISM = "altruism"
    STRICTEST = "strictest"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFolder:
    """An initialised hub."""

    path: Path
    hub_key: SigningKey
    log_key: SigningKey
    origin: str
    """The log's name, for ever: it stands in every checkpoint."""
    hub_url: str
    legal_mode: LegalMode
    passkeys: RelyingParty | None
    """The portal at which patients may sign with passkeys, for ever."""

    @classmethod
    def init(cls, settings: Settings, *, legal_mode: LegalMode, origin: str, now: int) -> Self:
        """Make the folder: keys, authority, certificate, settings.

        Everything is written before `hub.json`: a crash in between leaves a folder without it,
        which `init` refuses to touch and nothing else opens.

        Raises:
            HubFolderError: The folder holds a hub, or the rest of an interrupted init.
        """
        folder = settings.state
        if any((folder / name).exists() for name in ("hub.json", "hub.key", "log.key", "tls")):
            raise HubFolderError(f"{folder} holds a hub already; move it away to make a new one")
        if not _ORIGIN.fullmatch(origin):
            raise InvalidInputError("origin: lower-case letters, digits and . : / _ - only")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("hub.key", "log.key"):
            SigningKey.generate().save(folder / name)
        (folder / "tls").mkdir(mode=0o700)
        tls.make_authority(folder / "tls", name=f"{origin} authority", now=now)
        tls.make_server_certificate(folder / "tls", names=_names(settings), now=now)
        about: dict[str, Json] = {
            "v": 1,
            "origin": origin,
            "hub_url": settings.hub_url,
            "legal_mode": str(legal_mode),
        }
        portal = settings.portal_url or f"http://localhost:{settings.portal_port}"
        if party := RelyingParty.at(portal):
            about["passkeys"] = party.to_json()
        (folder / "hub.json").write_bytes(jcs(about) + b"\n")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the folder.

        Raises:
            NotFoundError: It is no hub's.
        """
        about_file = folder / "hub.json"
        if not about_file.is_file():
            raise NotFoundError(f"{folder} is no hub's folder; make one with coop hub init")
        about = parse_object(about_file.read_bytes())
        return cls(
            path=folder,
            hub_key=SigningKey.load(folder / "hub.key"),
            log_key=SigningKey.load(folder / "log.key"),
            origin=str(about["origin"]),
            hub_url=str(about["hub_url"]),
            legal_mode=LegalMode(str(about["legal_mode"])),
            passkeys=RelyingParty.of(about["passkeys"]) if "passkeys" in about else None,
        )

    @property
    def ca_file(self) -> Path:
        """What clients pin."""
        return self.path / "tls" / "ca.crt"

    def trust(self, connection: sa.Connection) -> Trust:
        """The keys a new member pins today."""
        sites = members.site_dids(connection)
        return Trust(
            hub=self.hub_key.did,
            log=self.log_key.did,
            origin=self.origin,
            sites=sites,
            k=cosigners_needed(len(sites)),
            passkeys=self.passkeys,
        )


def _names(settings: Settings) -> Collection[str]:
    given = [settings.host, urlsplit(settings.hub_url).hostname or "", *tls.LOCAL_NAMES]
    return list(dict.fromkeys(name for name in given if name and name not in {"0.0.0.0", "::"}))  # noqa: S104  (left out here)
