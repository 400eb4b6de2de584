"""Signing and opening documents: a subject of a known type in a VC-2.0-shaped envelope.

The type's name is its domain: it stands in `@context` and `type`, so it is under the signature and
a document signed as one kind never opens as another.
"""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from coop.canonical import DOCUMENT_BYTES_MAX, Json, NotCanonicalError, from_b64u, jcs, sha256
from coop.errors import InvalidInputError, Kind
from coop.keys import (
    SIGNATURE_BYTES,
    SigningKey,
    is_passkey,
    iso,
    proof_options,
    proof_value_of,
    sign_document,
)
from coop.passkeys import RelyingParty, proof_value_of_assertion, verify_signed

_VC: Final = "https://www.w3.org/ns/credentials/v2"


class WrongDocumentError(InvalidInputError):
    """The document is of another kind, malformed, or signed by someone who may not say this."""

    code = "documents.wrong-document"
    kind = Kind.FORBIDDEN


class Subject(BaseModel):
    """Base of every signed subject: frozen, no unknown members, integers and text only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: ClassVar[str]
    """`approval`: with the version it makes the domain `urn:coop:approval:v1`."""
    bytes_max: ClassVar[int] = DOCUMENT_BYTES_MAX
    """Longest signed document of this kind: what is accepted can be read back by every reader."""


S = TypeVar("S", bound=Subject)
S_co = TypeVar("S_co", bound=Subject, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Generic[S_co]):
    """A document whose signature, kind, shape and issuer were verified."""

    subject: S_co
    issuer: str
    """The did that signed it."""
    at: int
    """UTC seconds the issuer wrote into it."""
    digest: str
    """Hex SHA-256 of the whole signed document: its name in the chain."""
    id: str
    document: dict[str, Json]


def issue(subject: Subject, key: SigningKey, now: int, *, id: str | None = None) -> dict[str, Json]:  # noqa: A002  (the envelope's own word)
    """A signed document holding `subject`.

    Args:
        subject: What is said.
        key: Who says it.
        now: UTC seconds.
        id: `urn:uuid:…`; a fresh one by default.
    """
    document = unsigned(subject, issuer=key.did, now=now, id=id)
    return sign_document(document, key, created=now)


def unsigned(
    subject: Subject,
    *,
    issuer: str,
    now: int,
    id: str | None = None,  # noqa: A002  (the envelope's own word)
) -> dict[str, Json]:
    """The document without its proof, for signers that live elsewhere (a browser)."""
    return {
        "@context": [_VC, _domain(type(subject))],
        "type": ["VerifiableCredential", type_of(type(subject))],
        "id": id or f"urn:uuid:{uuid.uuid4()}",
        "issuer": issuer,
        "validFrom": iso(now),
        "credentialSubject": subject.model_dump(mode="json", exclude_none=True),
    }


def for_signer(
    subject: Subject, *, issuer: str, now: int
) -> tuple[dict[str, Json], dict[str, Json]]:
    """The document and proof options that a signer elsewhere (a browser) signs."""
    document = unsigned(subject, issuer=issuer, now=now)
    return document, proof_options(issuer, now, document["@context"])


def with_signature(
    document: Mapping[str, Json], proof: Mapping[str, Json], did: str, signature: str
) -> dict[str, Json]:
    """The signed document, of `for_signer`'s parts and what the browser sent; not verified yet.

    Raises:
        InvalidInputError: The did is not the issuer, or the signature is no signature.
    """
    if document["issuer"] != did:
        raise InvalidInputError("did: must be the key that the document names")
    # Browsers give base64url or plain base64; both name the same bytes.
    plain = signature.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        data = from_b64u(plain)
    except NotCanonicalError:
        data = b""
    if is_passkey(did):
        return {**document, "proof": {**proof, "proofValue": proof_value_of_assertion(data)}}
    if len(data) != SIGNATURE_BYTES:
        raise InvalidInputError("signature: must be base64url of 64 bytes")
    return {**document, "proof": {**proof, "proofValue": proof_value_of(data)}}


def open_document(
    kind: type[S],
    document: Mapping[str, Json],
    *,
    issuers: Collection[str] | None,
    passkeys: RelyingParty | None = None,
) -> Opened[S]:
    """Verify and read `document`.

    Steps: (1) its members and domain are those of `kind`, and it is no longer than such a document
    may be; (2) its proof verifies; (3) the signer is one of `issuers`; (4) its subject parses.
    `issuers=None` skips (3): then **the caller** must decide from `Opened.issuer`. Without
    `passkeys`, the pinned relying party, no passkey signs anything.

    Raises:
        WrongDocumentError: (1), (3) or (4) fails.
        BadSignatureError: (2) fails.
    """
    # (1)
    members = {"@context", "type", "id", "issuer", "validFrom", "credentialSubject", "proof"}
    if set(document) != members or document["@context"] != [_VC, _domain(kind)]:
        raise WrongDocumentError(f"document: not a {kind.kind} document")
    if document["type"] != ["VerifiableCredential", type_of(kind)]:
        raise WrongDocumentError(f"document: its type is not {type_of(kind)}")
    body = jcs(dict(document))
    if len(body) > kind.bytes_max:
        raise WrongDocumentError(f"{kind.kind}: longer than {kind.bytes_max} bytes")
    # (2)
    issuer = verify_signed(document, passkeys)
    # (3)
    if issuers is not None and issuer not in issuers:
        raise WrongDocumentError(
            f"document: this {kind.kind} is signed by a key that may not issue it"
        )
    # (4)
    try:
        subject = kind.model_validate(document["credentialSubject"])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise WrongDocumentError(f"{kind.kind}.{where}: {error.errors()[0]['msg']}") from error
    return Opened(
        subject=subject,
        issuer=issuer,
        at=_seconds(str(document["validFrom"])),
        digest=sha256(body).hex(),
        id=str(document["id"]),
        document=dict(document),
    )


def _domain(kind: type[Subject]) -> str:
    return f"urn:coop:{kind.kind}:v1"


def type_of(kind: type[Subject]) -> str:
    """The word in `type` of such a document: `CoopKeyEvent`."""
    return "Coop" + "".join(word.capitalize() for word in kind.kind.split("-"))


def _seconds(text: str) -> int:
    try:
        at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError as error:
        raise WrongDocumentError(
            "validFrom: must be a UTC time like 2026-11-24T10:00:00Z"
        ) from error
    if iso(int(at.timestamp())) != text:
        raise WrongDocumentError("validFrom: must be a UTC time like 2026-11-24T10:00:00Z")
    return int(at.timestamp())
