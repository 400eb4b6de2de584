"""The trust file: the keys a verifier pins.

It comes from the person who verifies, never from the document under test and never from the
network.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

from coop.canonical import Json, jcs, parse_object
from coop.errors import InvalidInputError, NotFoundError
from coop.keys import public_of
from coop.passkeys import RelyingParty

_MEMBERS: Final = {"v", "hub", "log", "origin", "sites", "k"}
_PASSKEYS: Final = "passkeys"  # only where the cooperative has a portal


class TrustFileError(InvalidInputError):
    """The trust file does not hold what a trust file must hold."""

    code: ClassVar[str] = "trust.invalid"


class NoTrustFileError(NotFoundError):
    """No trust file was given, or it does not exist: nothing can be verified."""

    code: ClassVar[str] = "trust.missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose word counts for what."""

    hub: str
    """did of the hub's document key."""
    log: str
    """did of the log's checkpoint key."""
    origin: str
    """The log's name."""
    sites: Mapping[str, str]
    """Hospitals by name, with their dids: they sign for themselves and witness the log."""
    k: int
    """How many other hospitals must cosign before a checkpoint counts as witnessed."""
    passkeys: RelyingParty | None = None
    """The portal at which patients' passkeys sign; None: none of their signatures counts."""

    @classmethod
    def of(cls, value: Mapping[str, Json]) -> Self:
        """Read the members of a trust file.

        Raises:
            TrustFileError: A member is missing, unknown or of a wrong type.
        """
        sites = value.get("sites")
        if set(value) - {_PASSKEYS} != _MEMBERS or value["v"] != 1 or not isinstance(sites, dict):
            raise TrustFileError(f"trust file: needs v=1 and exactly {sorted(_MEMBERS)}")
        hub, log, origin, k = (value[name] for name in ("hub", "log", "origin", "k"))
        if not isinstance(k, int) or isinstance(k, bool) or k < 0 or not isinstance(origin, str):
            raise TrustFileError("trust file: k must be a count and origin a text")
        dids = {"hub": hub, "log": log, **{f"sites.{name}": did for name, did in sites.items()}}
        for name, did in dids.items():
            try:
                public_of(str(did))
            except InvalidInputError as error:
                raise TrustFileError(f"trust file: {name} is not an Ed25519 did:key") from error
        named = {str(name): str(did) for name, did in sites.items()}
        return cls(
            hub=str(hub),
            log=str(log),
            origin=origin,
            sites=named,
            k=k,
            passkeys=_party(value[_PASSKEYS]) if _PASSKEYS in value else None,
        )

    def to_json(self) -> dict[str, Json]:
        """The members of the trust file."""
        sites: dict[str, Json] = dict(self.sites)
        members: dict[str, Json] = {
            "v": 1,
            "hub": self.hub,
            "log": self.log,
            "origin": self.origin,
            "sites": sites,
            "k": self.k,
        }
        return members | ({_PASSKEYS: self.passkeys.to_json()} if self.passkeys else {})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a trust file.

        Raises:
            NoTrustFileError: There is no such file.
            TrustFileError: It is malformed.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise NoTrustFileError(f"trust file {path} cannot be read") from error
        try:
            return cls.of(parse_object(data))
        except TrustFileError:
            raise
        except InvalidInputError as error:
            raise TrustFileError(f"trust file {path}: {error.message}") from error

    def save(self, path: Path) -> None:
        """Write the file whole or not at all; an existing one is replaced."""
        beside = path.with_name(f"{path.name}.new")
        with beside.open("wb") as file:
            file.write(jcs(self.to_json()) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # The new file is durable under another name: a crash here leaves the old one in force.
        beside.replace(path)


def _party(value: Json) -> RelyingParty:
    try:
        return RelyingParty.of(value)
    except InvalidInputError as error:
        raise TrustFileError(f"trust file: {error.message}") from error
