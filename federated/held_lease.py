"""A lease as this hospital holds it: what it may believe about consent, and until when."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consent.decide import Standing
from coop.canonical import Json, from_b64u
from coop.client import Client
from coop.documents.envelope import Opened, open_document
from coop.documents.training import Lease
from coop.errors import CoopError, Kind
from coop.keys import random_bytes
from federated.envelopes import Envelope

DRIFT: Final = 0.01  # a clock may run 1 % slow: the lease counts as that much shorter
PAGES_MAX: Final = 2000  # of 5000 entries each: more than a mirror will ever be behind
_PAGE_MAX: Final = 5000


class LeaseRefusedError(CoopError):
    """The hub's answer is no lease for this question."""

    code = "mirror.lease-refused"
    kind = Kind.FORBIDDEN


class LeaseExpiredError(CoopError):
    """The lease is over: what it said about consent no longer counts."""

    code = "mirror.lease-expired"
    kind = Kind.CONFLICT


class LogRollbackError(CoopError):
    """The hub shows a log smaller than one it showed before."""

    code = "mirror.rollback"
    kind = Kind.FORBIDDEN


class WitnessForkError(CoopError):
    """The log does not extend what it showed before; the signed evidence is kept."""

    code = "mirror.fork"
    kind = Kind.FORBIDDEN


class HeadsMismatchError(CoopError):
    """The lease vouches for other consents than the envelopes that came with it."""

    code = "mirror.heads-mismatch"
    kind = Kind.FORBIDDEN


def boottime() -> float:
    """Seconds since boot, suspend included: a sleeping machine's lease runs out, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """What this hospital may believe about consent, and until when."""

    document: dict[str, Json]
    digest: str
    log_size: int
    cosigned_size: int
    """The log size that enough other hospitals have seen."""
    expires_boottime: float
    standings: Mapping[str, Standing]
    usable: frozenset[str]
    """Pids whose chain is active by an event below `cosigned_size`."""

    def check(self, at: float | None = None) -> None:
        """Return while the lease is in force.

        Args:
            at: CLOCK_BOOTTIME; now by default.

        Raises:
            LeaseExpiredError: It is over.
        """
        if (boottime() if at is None else at) >= self.expires_boottime:
            raise LeaseExpiredError("lease: over; ask for a fresh one")


class _Item(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    index: int = Field(ge=0)
    salt: str = Field(pattern=r"^[0-9a-f]{64}$")
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    pid: str = Field(default="", max_length=26)
    document: dict[str, Any]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    lease: dict[str, Any]
    latest: str
    entries: list[str] = Field(max_length=_PAGE_MAX)
    documents: list[_Item] = Field(max_length=_PAGE_MAX)
    documents_to: int = Field(ge=0)


@dataclass(slots=True, kw_only=True)
class Asked:
    """A whole answer, its pages put together; only the lease's signature is checked so far."""

    lease: Opened[Lease]
    started: float
    latest: str = ""
    leaves: list[bytes] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)


def ask(
    client: Client,
    *,
    site: str,
    hub_did: str,
    have: int,
    documents_from: int,
    clock: Callable[[], float],
) -> Asked:
    """A whole lease, its pages put together, signed by the hub for this site and a fresh nonce.

    The clock is read before each question: whatever the hub acknowledged before the last question
    is in the answer, so the lease counts from that question.

    Raises:
        LeaseRefusedError: It answers another question, or withholds entries.
        LogRollbackError: The log is smaller than `have`.
        WrongDocumentError, BadSignatureError: The pinned hub did not sign it.
    """
    leaves: list[bytes] = []
    envelopes: list[Envelope] = []
    upto = documents_from
    for _ in range(PAGES_MAX):
        asked_from = have + len(leaves)
        nonce = random_bytes(16).hex()
        started = clock()
        answer = _parsed(client.get("/v1/lease", nonce=nonce, have=asked_from, documents=upto))
        lease = open_document(Lease, answer.lease, issuers={hub_did})
        if lease.subject.nonce != nonce or lease.subject.site != site:
            raise LeaseRefusedError("lease: answers another question than this one")
        size = lease.subject.log_size
        if size < asked_from:
            raise LogRollbackError(f"lease: the log had {asked_from} entries and now has {size}")
        page = [from_b64u(text) for text in answer.entries][: size - asked_from]
        leaves += page
        envelopes += [
            Envelope(
                index=item.index,
                salt=item.salt,
                document=item.document,
                named=item.digest,
                named_pid=item.pid,
            )
            for item in answer.documents
        ]
        moved = bool(page) or answer.documents_to > upto
        upto = max(upto, answer.documents_to)
        if have + len(leaves) == size and upto >= size:
            return Asked(
                lease=lease,
                started=started,
                latest=answer.latest,
                leaves=leaves,
                envelopes=envelopes,
            )
        if not moved:
            break
    raise LeaseRefusedError("lease: the hub does not send the entries below its log size")


def _parsed(answer: object) -> _Answer:
    try:
        return _Answer.model_validate(answer)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise LeaseRefusedError(f"lease: the hub's answer is malformed at {where}") from error
