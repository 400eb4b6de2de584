"""What used my record: asked at the patient's own hospital, handed over, and not kept.

Only the hospital knows, and it answers only to a request that the record's own key signed; the hub
relays both over the hospital's outbound channel and erases them with the reply. If the reply is
lost she asks again.
"""

from collections.abc import Callable, Mapping
from typing import Final

import sqlalchemy as sa

from consent.store import enrolment
from coop import members
from coop.canonical import Json, from_b64u, parse_object
from coop.db import Database
from coop.documents.consent import UseRequest, UseStatement
from coop.documents.envelope import open_document
from coop.doors import Caller
from coop.errors import CoopError, InvalidInputError, Kind, NotFoundError
from coop.keys import iso
from coop.passkeys import RelyingParty
from inference_gateway import jobs
from inference_gateway.jobs import JobState
from inference_gateway.store import OFFLINE_S, SiteOfflineError, last_seen

KIND: Final = "uses"
WAIT_S: Final = 20  # a statement takes a hospital milliseconds; proxies cut after 30 s
REQUEST_CHARS_MAX: Final = 4000  # a request has about 1100; servers take headers of 8000 and more
_ORPHAN_S: Final = 60  # a statement whose asker is gone is erased after this


class SiteRefusedError(CoopError):
    """The hospital refused; its code is in the message."""

    code = "site.refused"
    kind = Kind.CONFLICT


class UseRequestError(InvalidInputError):
    """The Coop-Use-Request header is missing, or holds no signed request for this record."""

    code = "uses.request"


class WrongStatementError(CoopError):
    """The hospital's document is not a statement about the record that was asked for."""

    code = "uses.wrong-statement"
    kind = Kind.UNPROCESSABLE


class Uses:
    """Relays use statements. Thread-safe.

    Args:
        database: The hub's.
        now: UTC seconds.
        passkeys: The portal whose passkeys sign here.
    """

    def __init__(
        self, database: Database, now: Callable[[], int], passkeys: RelyingParty | None = None
    ) -> None:
        self._database = database
        self._now = now
        self._passkeys = passkeys

    def start(self, caller: Caller, pid: str, signed: str | None) -> str:
        """Ask the hospital of `pid`, the caller's own; returns the job to wait for.

        Args:
            caller: Whose session or key asks.
            pid: Of one of her records.
            signed: Her signed UseRequest in base64url; the hospital judges who signed it.

        Raises:
            NotFoundError: Somebody else's record, or unknown.
            UseRequestError: Not a request for this record.
            SiteOfflineError: Its hospital has not called for a minute.
        """
        now = self._now()
        with self._database.unit_of_work() as connection:
            row = connection.execute(
                sa.select(enrolment.c.site, enrolment.c.did).where(enrolment.c.pid == pid)
            ).one_or_none()
            if row is None:
                raise NotFoundError("pid: not found")
            members.owns(connection, caller, pid, row.did)
            request = _read(signed, UseRequest(site=row.site, pid=pid), self._passkeys)
            seen = last_seen(connection, row.site)
            if now - seen > OFFLINE_S:
                raise _offline(row.site, seen)
            job_id = f"u{jobs.new_id(now)}"
            asked = jobs.NewJob(
                id=job_id,
                site=row.site,
                kind=KIND,
                payload={"pid": pid, "request": request},
                at=now,
                not_after=now + _ORPHAN_S,
            )
            jobs.add(connection, asked)
        return job_id

    def found(self, job_id: str) -> dict[str, Json] | None:
        """The statement, if it has come.

        Raises:
            SiteRefusedError: The hospital refused.
        """
        with self._database.reading() as connection:
            outcome = jobs.outcome(connection, job_id)
        if outcome is None or outcome.state in jobs.OPEN:
            return None
        if outcome.state is not JobState.DONE or outcome.result is None:
            raise SiteRefusedError(f"{outcome.site}: refused with {outcome.code}")
        return outcome.result

    def missing(self, job_id: str) -> SiteOfflineError:
        """Why no statement came in time."""
        with self._database.reading() as connection:
            outcome = jobs.outcome(connection, job_id)
            site = outcome.site if outcome is not None else ""
            return _offline(site, last_seen(connection, site))

    def forget(self, job_id: str) -> None:
        """Erase the job and its statement."""
        with self._database.unit_of_work() as connection:
            connection.execution_options(coop_quiet=True)
            jobs.forget(connection, job_id)

    def sweep(self) -> None:
        """Erase statements whose askers are gone."""
        with self._database.reading() as connection:
            left = jobs.any_older(connection, KIND, self._now() - _ORPHAN_S)
        if left:
            with self._database.unit_of_work() as connection:
                jobs.forget_older(connection, KIND, self._now() - _ORPHAN_S)

    def receive(
        self,
        site: str,
        job_id: str,
        attempt: int,
        *,
        document: Mapping[str, Json] | None,
        code: str | None,
    ) -> None:
        """Take a hospital's statement, or its refusal.

        Raises:
            WrongDocumentError, BadSignatureError: Not signed by this hospital.
            WrongStatementError: About another record.
            LateAttemptError: Nobody waits for this attempt any more.
        """
        with self._database.unit_of_work() as connection:
            if document is not None:
                _, payload = jobs.payload_of(connection, site, job_id)
                dids = members.site_dids(connection)
                said = open_document(UseStatement, document, issuers={dids.get(site, "")}).subject
                if (said.site, said.pid) != (site, payload["pid"]):
                    raise WrongStatementError("statement: is about another record")
            jobs.finish(connection, site, job_id, attempt, result=document, code=code)


def _read(
    signed: str | None, expected: UseRequest, passkeys: RelyingParty | None
) -> dict[str, Json]:
    why = "missing" if signed is None else "too long"
    if signed is not None and len(signed) <= REQUEST_CHARS_MAX:
        try:
            request = parse_object(from_b64u(signed))
            opened = open_document(UseRequest, request, issuers=None, passkeys=passkeys)
            if opened.subject == expected:
                return request
            why = "for another record"
        except InvalidInputError as error:
            why = error.message
    raise UseRequestError(
        f"Coop-Use-Request: {why}; send the base64url of a use-request for this pid and its "
        "hospital that the record's key signed just now (`coop patient statement` does)"
    )


def _offline(site: str, seen: int) -> SiteOfflineError:
    since = f"since {iso(seen)}" if seen else "and has never called"
    return SiteOfflineError(
        f"{site}: the hospital's node does not answer {since}; try again later",
        site=site,
        last_seen=seen,
    )
