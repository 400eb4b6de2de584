"""What the desk does for patients who hold no key: keeps one for them, and signs their paper forms.

A custodial key lives in this hospital's database, beside the secrets behind its pids. What is
signed with it says so: the signer is the hospital as custodian, never "the patient", and what it
allows needs the paper on which she said so.
"""

import hashlib
import hmac
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from consent.decide import Standing, State
from consent.speakers import Speakers
from coop.canonical import Json
from coop.client import Client
from coop.documents.consent import Capture, Consent, Correction
from coop.documents.envelope import issue
from coop.documents.provision import Policy
from coop.enrolment import redemption
from coop.errors import ConflictError, CoopError, InvalidInputError, Kind, NotFoundError
from coop.keys import SEED_BYTES, SigningKey, random_bytes
from federated import desk
from federated.site import Site, custodial_key

_REGISTRAR_TAG: Final = b"coop/registrar/v1"
PAPER_BYTES_MAX: Final = 50 * 2**20  # a scan of ten pages is a few megabytes


class NoCustodialKeyError(NotFoundError):
    """This hospital holds no key that speaks for the record."""

    code = "custody.no-key"


class HubRefusedError(CoopError):
    """The hub did not take what the desk signed; its code is in the message."""

    code = "custody.refused"
    kind = Kind.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A paper form as the registrar has it before her."""

    paper_sha256: str
    registrar: str
    """Her name; only a keyed digest of it leaves this house."""
    language: str


def enrol(site: Site, client: Client, record_key: str, *, now: int) -> dict[str, Any]:
    """Make a key for a patient who cannot hold one, keep it here and have it enrolled.

    The key goes the way every key goes: a code, a redemption, an enrolment; all three are made
    here.

    Returns:
        {"pid", "did"}.

    Raises:
        UnknownRecordError: No such record.
        HubRefusedError: The hub refused; nothing speaks for the record by this.
    """
    with site.database.unit_of_work() as connection:
        pid = desk.pid_of_record(connection, record_key)
        code = desk.fresh_code(connection, site, pid, "custodial", now)
        seed = random_bytes(SEED_BYTES)
        key = SigningKey(seed)
        row = {"pid": pid, "did": key.did, "seed": seed, "at": now}
        connection.execute(custodial_key.insert().values(row))
    # Key and code are durable, nothing is enrolled: a crash here leaves a key that speaks for
    # nobody, and the next call makes another.
    sent = redemption(code, key)
    (result,) = client.post("/v1/enrolments:redeem", {"redemptions": [sent]})["results"]
    raise_if_refused(result)
    said = desk.answer(site, [sent], now=now)
    body = {"documents": said.documents, "refused": said.refused}
    (result,) = client.post(f"/v1/sites/{site.name}/enrolments", body)["results"]
    raise_if_refused(result)
    return {"pid": pid, "did": key.did}


def held_key(site: Site, pid: str, did: str) -> SigningKey:
    """The key this hospital holds for a record.

    Raises:
        NoCustodialKeyError: It holds none, or not the one that speaks for the record now.
    """
    with site.database.reading() as connection:
        query = sa.select(custodial_key.c.seed).where(
            custodial_key.c.pid == pid, custodial_key.c.did == did
        )
        seed = connection.execute(query).scalar()
    if seed is None:
        raise NoCustodialKeyError(
            "record: the hospital holds no key for it; the patient signs herself, or enrol her "
            "with --method custodial"
        )
    return SigningKey(bytes(seed))


def capture(
    site: Site,
    pid: str,
    known: tuple[Speakers | None, Standing | None],
    choice: tuple[Policy | None, Form],
    *,
    now: int,
) -> dict[str, Json]:
    """The next event of a patient's chain, signed with her custodial key from a paper form.

    Args:
        site: This hospital.
        pid: Whose record.
        known: Who speaks for it, and how its chain stands, by this hospital's own mirror.
        choice: What the form says (None: to stop), and the form.
        now: UTC seconds.

    Raises:
        NoCustodialKeyError: The hospital holds no key that speaks for the record.
        ConflictError: There is nothing to stop.
    """
    speakers, standing = known
    policy, form = choice
    key = held_key(site, pid, speakers.key if speakers else "")
    event = _event(standing.state if standing else State.NONE, policy)
    subject = Consent(
        pid=pid,
        site=site.name,
        domain="research",
        sequence=standing.sequence + 1 if standing else 1,
        previous=standing.head_digest if standing else None,
        event=event,
        policy=policy,
        actor="custodian",
        capture=Capture(
            paper_sha256=form.paper_sha256,
            registrar=registrar_digest(site, form.registrar),
            language=form.language,
        ),
    )
    return issue(subject, key, now)


def as_hospital(
    site: Site,
    pid: str,
    standing: Standing | None,
    event: Literal["propose", "deceased", "void"],
    parts: Mapping[str, object],
    *,
    now: int,
) -> dict[str, Json]:
    """What only the hospital itself may say of a chain, signed with its own key; it gives nothing.

    Args:
        site: This hospital.
        pid: Whose record.
        standing: How her chain stands, by this hospital's own mirror.
        event: To prepare a policy for her, to report her death, to correct what was recorded.
        parts: `policy` and `notice` of a proposal, `correction` of what was entered in error.
        now: UTC seconds.
    """
    subject = Consent(
        pid=pid,
        site=site.name,
        domain="research",
        sequence=standing.sequence + 1 if standing else 1,
        previous=standing.head_digest if standing else None,
        event=event,
        actor="registrar",
        **parts,  # type: ignore[arg-type]  # Consent checks them
    )
    return issue(subject, site.key, now)


def correction(site: Site, reason: str, registrar: str, second: str) -> Correction:
    """Why a chain was entered in error, seen by two.

    Raises:
        InvalidInputError: They are one person, or nobody.
    """
    first, other = registrar_digest(site, registrar), registrar_digest(site, second)
    if first == other:
        raise InvalidInputError("--second: must be another person than --registrar")
    return Correction(reason=reason, registrar=first, second=other)


def registrar_digest(site: Site, name: str) -> str:
    """What stands for a registrar's name: this hospital can tell whose it is, nobody else."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    if not plain:
        raise InvalidInputError("--registrar: say who saw the form")
    message = b"\0".join((_REGISTRAR_TAG, site.name.encode(), plain.encode()))
    return hmac.digest(site.pid_key, message, hashlib.sha256).hex()


def raise_if_refused(result: Mapping[str, Any]) -> None:
    """Raise what the hub said against a document.

    Raises:
        HubRefusedError: It refused.
    """
    problem = result.get("problem")
    if problem is not None:
        raise HubRefusedError(f"{problem['code']}: {problem['detail']}")


def _event(state: State, policy: Policy | None) -> Literal["grant", "amend", "revoke"]:
    if policy is not None:
        return "amend" if state is State.ACTIVE else "grant"
    if state not in {State.ACTIVE, State.SUSPENDED}:
        raise ConflictError("record: there is no consent to stop")
    return "revoke"
