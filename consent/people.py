"""What is said about who may speak for a record, on its way into the registry.

Every such document carries its own signature; the registry folds it exactly as the hospital will
(`consent.succession.take`), logs it, and acknowledges it with a receipt.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from consent import freshness
from consent.chain import bounded
from consent.events import CLOCK_SKEW_S, NotEnrolledError, enrolled_or_refused
from consent.lease import EFFECTIVE_S
from consent.people_view import who_speaks
from consent.speakers import Desks, Speakers
from consent.store import (
    Enrolled,
    enrolled,
    enrolment,
    former_key,
    representation,
    save_standings,
    site_document,
    snapshot,
    standings,
)
from consent.succession import Said, SpeakerRefusedError, take
from coop import members
from coop.canonical import Json
from coop.db import Database
from coop.documents.consent import ConsentReceipt, Enrolment
from coop.documents.envelope import Opened, WrongDocumentError, issue, open_document, type_of
from coop.documents.people import PEOPLE, KeyEvent, Representation, RepresentationEnd
from coop.errors import CoopError, InvalidInputError
from coop.journal.commitments import Logged
from coop.journal.rows import signed_document
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.passkeys import RelyingParty, check_did
from coop.problems import problem_of

_KIND_OF: Final = {type_of(kind): kind for kind in PEOPLE.values()}


class People:
    """Who may speak, over one database. Thread-safe.

    Args:
        database: Where enrolments and what followed them are kept.
        journal: Every document and its receipt go into this log, in the same transaction.
        hub_key: Signs receipts, and restrictions on somebody's behalf.
        now: UTC seconds.
        passkeys: The portal whose passkeys sign here.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        hub_key: SigningKey,
        now: Callable[[], int],
        passkeys: RelyingParty | None = None,
    ) -> None:
        self._passkeys = passkeys
        self._database = database
        self._journal = journal
        self._key = hub_key
        self._now = now

    def submit(self, documents: Sequence[Mapping[str, Json]]) -> list[dict[str, Any]]:
        """Accept key events and representations, each for itself; idempotent on the digest.

        Returns:
            For each: {"receipt", "effective_by", "fresh", "problem"}.
        """
        opened = [self._open(document) for document in documents]
        with self._database.unit_of_work() as connection:
            outcome = self._append(connection, opened)
        with snapshot(self._database) as connection:
            return self._answers(connection, outcome)

    def close(self, pid: str) -> dict[str, Any]:
        """`revoke-all` for whoever is entitled, signed by the hub; needs no key.

        Raises:
            NotEnrolledError: Unknown pid.
            KeyChainError: It is closed already.
        """
        with self._database.unit_of_work() as connection:
            key = enrolled_or_refused(connection, pid, lock=True)
            subject = KeyEvent(
                pid=key.pid,
                site=key.site,
                sequence=key.speakers.sequence + 1,
                previous=key.speakers.head,
                event="revoke-all",
            )
            outcome = self._said(connection, subject)
        return self._only(outcome)

    def end(self, pid: str, digest: str) -> dict[str, Any]:
        """End a representation for whoever is entitled, signed by the hub; needs no key.

        Raises:
            NotEnrolledError: Unknown pid.
            SpeakerRefusedError: No such representation, or it is over already.
        """
        with self._database.unit_of_work() as connection:
            key = enrolled_or_refused(connection, pid, lock=True)
            subject = RepresentationEnd(pid=key.pid, site=key.site, representation_sha256=digest)
            outcome = self._said(connection, subject)
        return self._only(outcome)

    def who_speaks(self, pid: str) -> dict[str, Any]:
        """Everybody who may speak for a record (`consent.people_view.who_speaks`)."""
        with snapshot(self._database) as connection:
            return who_speaks(connection, enrolled_or_refused(connection, pid), self._now())

    def replaced_key(self, did: str) -> list[str]:
        """Pids to whose new key this earlier one may still object."""
        with self._database.reading() as connection:
            query = sa.select(former_key.c.pid).where(
                former_key.c.did == did, former_key.c.until > self._now()
            )
            return sorted(connection.execute(query).scalars())

    # -- inside ------------------------------------------------------------------------------------

    def _open(self, document: Mapping[str, Json]) -> Opened[Said] | CoopError:
        """The document, if its signature and shape are right; else the refusal."""
        types = document.get("type")
        kind = _KIND_OF.get(str(types[-1]) if isinstance(types, list) and types else "")
        try:
            if kind is None:
                raise WrongDocumentError("document: not about who may speak for a record")
            opened: Opened[Said] = open_document(
                kind, document, issuers=None, passkeys=self._passkeys
            )
            if opened.at > self._now() + CLOCK_SKEW_S:
                raise InvalidInputError("validFrom: lies in the future; check the device's clock")
        except CoopError as error:
            return error
        return opened

    def _said(self, connection: sa.Connection, subject: Said) -> list[str | CoopError]:
        """What the hub itself says for somebody."""
        document = issue(subject, self._key, self._now())
        return self._append(connection, [self._open(document)])

    def _only(self, outcome: Sequence[str | CoopError]) -> dict[str, Any]:
        if isinstance(outcome[0], CoopError):
            raise outcome[0]
        with snapshot(self._database) as connection:
            return self._answers(connection, outcome)[0]

    def _append(
        self, connection: sa.Connection, items: Sequence[Opened[Said] | CoopError]
    ) -> list[str | CoopError]:
        """Fold and store documents: for each the digest of what is stored, or why it is not.

        Steps: (1) the records' enrolments are locked, as every writer of theirs does; (2) each
        document must be one that counts, one bad one stops no other; (3) it goes into the log with
        its receipt.
        """
        fine = [item for item in items if not isinstance(item, CoopError)]
        # (1)
        keys = enrolled(connection, {item.subject.pid for item in fine}, lock=True)
        outcome: list[str | CoopError] = []
        for item in items:
            if isinstance(item, CoopError):
                outcome.append(item)
                continue
            try:
                if not _stored(connection, item):
                    pid = item.subject.pid
                    keys[pid] = self._added(connection, item, keys.get(pid))
                outcome.append(item.digest)
            except CoopError as error:
                outcome.append(error)
        return outcome

    def _answers(
        self, connection: sa.Connection, outcome: Sequence[str | CoopError]
    ) -> list[dict[str, Any]]:
        """What is answered for each: {"receipt", "effective_by", "fresh", "problem"}."""
        sites = members.site_dids(connection)
        answers: list[dict[str, Any]] = []
        for item in outcome:
            if isinstance(item, CoopError):
                problem = problem_of(item)[1]
                answers.append(
                    {"receipt": None, "effective_by": None, "fresh": None, "problem": problem}
                )
                continue
            query = sa.select(site_document.c.receipt_digest)
            row = connection.execute(query.where(site_document.c.digest == item)).one()
            receipt = self._journal.receipt(connection, row.receipt_digest, sites=sites)
            document = self._journal.document(connection, row.receipt_digest)
            said = ConsentReceipt.model_validate(document["credentialSubject"])
            fresh = freshness.token(self._journal.origin, said.index + 1)
            answers.append(
                {
                    "receipt": receipt,
                    "effective_by": said.effective_by,
                    "fresh": fresh,
                    "problem": None,
                }
            )
        return answers

    def _added(
        self, connection: sa.Connection, opened: Opened[Said], key: Enrolled | None
    ) -> Enrolled:
        # (2)
        said, now = opened.subject, self._now()
        if key is None:
            raise NotEnrolledError("pid: no hospital has enrolled a key for this record")
        if said.site != key.site:
            raise WrongDocumentError(f"{said.kind}.site: must be the hospital that enrolled this")
        desks = desks_of(connection, self._key.did, key.site)
        if opened.issuer in key.speakers.former and now >= key.speakers.waits_until:
            raise SpeakerRefusedError("revoke-all: an earlier key could object while the new waits")
        if _ran_out(key.speakers, opened.issuer, now):
            raise SpeakerRefusedError("representation: it has run out")
        if isinstance(said, KeyEvent) and said.key is not None:
            check_unused(connection, check_did(said.key), said.pid)
        if isinstance(said, Representation):
            check_did(said.did)
        if take(key.speakers, opened, now, desks) is key.speakers:
            raise SpeakerRefusedError(f"{said.kind}: says nothing new")
        # (3)
        place = self._journal.record(connection, said.kind, opened.document)
        # Read under the log's lock: only the commit separates it from the acknowledgement.
        now = self._now()
        receipt = self._journal.record(
            connection, ConsentReceipt.kind, self._receipt(opened, place, now)
        )
        return store(connection, opened, place, key, (now, desks, receipt.digest))

    def _receipt(self, opened: Opened[Said], place: Logged, now: int) -> dict[str, Json]:
        said = opened.subject
        subject = ConsentReceipt(
            pid=said.pid,
            site=said.site,
            consent_sha256=opened.digest,
            event=said.event if isinstance(said, KeyEvent) else said.kind,
            index=place.index,
            salt=place.salt,
            effective_by=now + EFFECTIVE_S,
        )
        return issue(subject, self._key, now)


def _ran_out(speakers: Speakers, did: str, now: int) -> bool:
    """Whether this did spoke for the record as a representative only, and does no more.

    Judged by the hub when it takes a document, never in the fold: houses that read the log at other
    moments must come to the same state.
    """
    own = {speakers.key, *speakers.former, *speakers.guardians}
    mine = [one for one in speakers.representatives if one.did == did]
    return did not in own and bool(mine) and all(one.ended or now >= one.until for one in mine)


def desks_of(connection: sa.Connection, registry: str, site: str) -> Desks:
    """Who may restrict on behalf of this hospital's patients."""
    return Desks(registry=registry, hospital=members.site_dids(connection).get(site))


def people_before(connection: sa.Connection, pid: str, log_index: int) -> list[str]:
    """Digests of what says who may speak for a record below this log index, in order."""
    query = (
        sa.select(site_document.c.digest)
        .join(signed_document, signed_document.c.digest == site_document.c.digest)
        .where(
            site_document.c.pid == pid,
            site_document.c.log_index < log_index,
            signed_document.c.kind.in_([Enrolment.kind, *PEOPLE]),
        )
        .order_by(site_document.c.log_index)
    )
    return list(connection.execute(query).scalars())


def check_unused(connection: sa.Connection, did: str, pid: str) -> None:
    """Return if this key speaks for no other record.

    Raises:
        SpeakerRefusedError: It does.
    """
    query = sa.select(enrolment.c.pid).where(enrolment.c.did == did, enrolment.c.pid != pid)
    if connection.execute(query).first() is not None:
        raise SpeakerRefusedError("key: it speaks for another record; make a new one")


def store(
    connection: sa.Connection,
    opened: Opened[Said],
    place: Logged,
    key: Enrolled | None,
    context: tuple[int, Desks, str | None],
) -> Enrolled:
    """Fold a logged document into who may speak, and write what follows from it.

    Args:
        connection: Of a unit of work that holds the record's enrolment.
        opened: The document; it counts, as the caller has checked.
        place: Where it stands in the log.
        key: Who spoke for the record before; None at its first enrolment.
        context: The time, who may restrict, and the digest of the receipt if there is one.
    """
    now, desks, receipt = context
    said = opened.subject
    speakers = take(key.speakers if key else None, opened, now, desks)
    enrols = isinstance(said, Enrolment)
    after = Enrolled(
        pid=said.pid,
        site=said.site,
        did=speakers.key,
        custody=speakers.custody,
        digest=opened.digest if enrols or key is None else key.digest,
        log_index=place.index if enrols or key is None else key.log_index,
        speakers=speakers,
    )
    values = {
        "site": after.site,
        "did": after.did,
        "custody": after.custody,
        "digest": after.digest,
        "log_index": after.log_index,
        "speakers": speakers.to_text(),
        "newest": speakers.newest,
    }
    if key is None:
        connection.execute(enrolment.insert().values({**values, "pid": said.pid}))
    else:
        connection.execute(enrolment.update().where(enrolment.c.pid == said.pid).values(values))
        _bound(connection, key, after, now)
        if speakers.waits_until != key.speakers.waits_until:
            mine = (former_key.c.did == key.did) & (former_key.c.pid == said.pid)
            connection.execute(former_key.delete().where(mine))
            row = {"did": key.did, "pid": said.pid, "until": speakers.waits_until}
            connection.execute(former_key.insert().values(row))
    connection.execute(
        site_document.insert().values(
            log_index=place.index,
            site=said.site,
            pid=said.pid,
            digest=opened.digest,
            receipt_digest=receipt,
        )
    )
    if isinstance(said, Representation):
        row = {"digest": opened.digest, "pid": said.pid, "site": said.site, "did": said.did}
        connection.execute(representation.insert().values(row))
    over = _ended(speakers) - (_ended(key.speakers) if key else set())
    if over:
        same = representation.c.digest.in_(over)
        values = {"ended_at": now, "ended_index": place.index}
        connection.execute(representation.update().where(same).values(values))
    return after


def _ended(speakers: Speakers) -> set[str]:
    return {one.digest for one in speakers.representatives if one.ended}


def _bound(connection: sa.Connection, before: Enrolled, after: Enrolled, now: int) -> None:
    standing = standings(connection, [after.pid]).get(after.pid)
    if standing is None:
        return
    changed = bounded(standing, before.speakers, after.speakers, now)
    if changed != standing:
        save_standings(connection, {after.pid: (after.site, changed)}, {after.pid})


def _stored(connection: sa.Connection, opened: Opened[Said]) -> bool:
    query = sa.select(site_document.c.log_index).where(site_document.c.digest == opened.digest)
    return connection.execute(query).first() is not None
