"""Consent events on their way into the registry: opened, folded onto chains, logged, stored."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import sqlalchemy as sa

from consent import freshness
from consent.chain import WIDENING, after_event, apply, gives
from consent.decide import Standing, State
from consent.lease import EFFECTIVE_S
from consent.notice_store import check_shown, published
from consent.speakers import Desks, Speaker, speaker_of
from consent.store import (
    Enrolled,
    consent_event,
    enrolled,
    events_by_digest,
    save_standings,
    site_document,
    standings,
)
from coop import members
from coop.canonical import Json
from coop.documents.consent import Consent, ConsentReceipt
from coop.documents.envelope import Opened, WrongDocumentError, issue, open_document
from coop.errors import CoopError, InvalidInputError, Kind, NotFoundError
from coop.journal.commitments import Logged
from coop.journal.store import Journal
from coop.keys import SigningKey, iso
from coop.passkeys import RelyingParty
from coop.problems import problem_of

CLOCK_SKEW_S: Final = 300  # a patient's device may be ahead by so much

Folded = tuple[Opened[Consent], Standing]
"""An event and the standing after it, its log indices not yet known."""

Restriction = Literal["revoke", "suspend", "reject", "object"]
_AFTER: Final[Mapping[str, State]] = {
    "revoke": State.REVOKED,
    "suspend": State.SUSPENDED,
    "reject": State.REJECTED,
}
OnRevoked = Callable[[sa.Connection, list[str]], None]
"""What else a withdrawal ends for these pids (their shares in dividend pools)."""


class NotEnrolledError(NotFoundError):
    """No hospital has enrolled a key for this record."""

    code = "consent.not-enrolled"


class WaitsError(CoopError):
    """What this key or representative would give does not count yet."""

    code = "consent.waits"
    kind = Kind.CONFLICT


class RepresentationOverError(CoopError):
    """The representation under which this is said is over; she and her hospital can speak."""

    code = "consent.representation-over"
    kind = Kind.CONFLICT


def enrolled_or_refused(connection: sa.Connection, pid: str, *, lock: bool = False) -> Enrolled:
    """Who speaks for a record.

    Raises:
        NotEnrolledError: Nobody does.
    """
    found = enrolled(connection, [pid], lock=lock).get(pid)
    if found is None:
        raise NotEnrolledError("pid: no hospital has enrolled a key for this record")
    return found


class Events:
    """Writes consent events, in units of work that the caller opens.

    Args:
        journal: Every event and its receipt go into this log.
        hub_key: Signs receipts, and restrictions on a patient's behalf.
        now: UTC seconds.
        on_revoked: Told of withdrawn pids in the same unit of work (they stop earning).
        passkeys: The portal whose passkeys sign here.
    """

    def __init__(
        self,
        journal: Journal,
        hub_key: SigningKey,
        now: Callable[[], int],
        on_revoked: OnRevoked | None = None,
        passkeys: RelyingParty | None = None,
    ) -> None:
        self.passkeys = passkeys
        self._journal = journal
        self._key = hub_key
        self._now = now
        self._on_revoked = on_revoked

    def open(self, document: Mapping[str, Json]) -> Opened[Consent] | CoopError:
        """The event in a document whose signature and shape are right; else the refusal."""
        try:
            opened = open_document(Consent, document, issuers=None, passkeys=self.passkeys)
            if opened.at > self._now() + CLOCK_SKEW_S:
                raise InvalidInputError("validFrom: lies in the future; check the device's clock")
        except CoopError as error:
            return error
        return opened

    def restriction(
        self, key: Enrolled, standing: Standing | None, event: str, actor: str
    ) -> dict[str, Json]:
        """The next event of this chain, signed by the hub for whoever was entitled.

        Raises:
            ConsentChainError: There is nothing to restrict.
        """
        after_event(standing, event)
        subject = Consent(
            pid=key.pid,
            site=key.site,
            domain="research",
            sequence=standing.sequence + 1 if standing else 1,
            previous=standing.head_digest if standing else None,
            event=event,  # type: ignore[arg-type]  # Consent checks it
            actor=actor,  # type: ignore[arg-type]  # Consent checks it
        )
        return issue(subject, self._key, self._now())

    def restrict(
        self,
        connection: sa.Connection,
        pids: Sequence[str],
        event: Restriction,
        actor: Literal["session", "registrar"],
    ) -> list[str | CoopError]:
        """Restrict these records, all or none; for each the digest of the event that does it.

        What is already so restricted stays so.

        Raises:
            NotEnrolledError: Unknown pid.
            ConsentChainError: There is nothing to restrict.
        """
        if event == "object":
            members.lock_accounts(connection, members.accounts_of(connection, pids))
        keys = enrolled(connection, pids, lock=True)
        for pid in pids:
            if pid not in keys:
                raise NotEnrolledError("pid: no hospital has enrolled a key for this record")
        known = standings(connection, pids)
        done = {pid for pid in pids if pid in known and _already(known[pid], event)}
        documents = [
            self.open(self.restriction(keys[pid], known.get(pid), event, actor))
            for pid in pids
            if pid not in done
        ]
        made = iter(self.append(connection, documents) if documents else ())
        outcome = [known[pid].head_digest if pid in done else next(made) for pid in pids]
        for one in outcome:
            if isinstance(one, CoopError):
                raise one
        return outcome

    def object_too(self, connection: sa.Connection, linked: Collection[tuple[int, str]]) -> None:
        """Whoever objects to all research with every record of hers objects with a new one, too.

        She can lift it for this record alone; nothing sets it again.

        Args:
            connection: Of the unit of work that links them, which holds their accounts.
            linked: (account, pid) of what has just become hers.
        """
        own = {account: members.pids_of(connection, account) for account, _ in linked}
        known = standings(connection, {pid for pids in own.values() for pid, _ in pids})
        fresh = set(linked)
        objecting = {
            account
            for account, pids in own.items()
            for before in [[pid for pid, _ in pids if (account, pid) not in fresh]]
            if before and all(pid in known and known[pid].objected for pid in before)
        }
        also = sorted({pid for account, pid in linked if account in objecting})
        self.restrict(connection, also, "object", "session")

    def append(
        self, connection: sa.Connection, items: Sequence[Opened[Consent] | CoopError]
    ) -> list[str | CoopError]:
        """Fold and store events: for each the digest of what is stored, or why it is not.

        Steps: (1) the records' enrolments are locked, so no other writer continues these chains;
        (2) each event must continue its chain, and what gives something must name the published
        wording she was shown, or the paper she signed; one bad one stops no other; (3) events and
        receipts go into the log and the tables.
        """
        fine = [item for item in items if not isinstance(item, CoopError)]
        # (1)
        objecting = {item.subject.pid for item in fine if item.subject.event == "object"}
        members.lock_accounts(connection, members.accounts_of(connection, objecting))
        keys = enrolled(connection, {item.subject.pid for item in fine}, lock=True)
        before = standings(connection, keys)
        known = set(events_by_digest(connection, {item.digest for item in fine}))
        sites = members.site_dids(connection)
        named = {item.subject.notice.sha256 for item in fine if item.subject.notice is not None}
        shown = published(connection, named)
        newest = dict(before)
        fresh: list[Folded] = []
        outcome: list[str | CoopError] = []
        # (2)
        for item in items:
            if isinstance(item, CoopError):
                outcome.append(item)
                continue
            try:
                if item.digest not in known:
                    pid = item.subject.pid
                    if item.subject.policy is not None and item.subject.capture is None:
                        check_shown(item.subject.notice, shown)
                    newest[pid] = self._applied(item, keys.get(pid), newest.get(pid), sites)
                    known.add(item.digest)
                    fresh.append((item, newest[pid]))
                outcome.append(item.digest)
            except CoopError as error:
                outcome.append(error)
        # (3)
        if fresh:
            self._store(connection, fresh, before, keys)
        return outcome

    def answers(
        self, connection: sa.Connection, outcome: Sequence[str | CoopError]
    ) -> list[dict[str, Any]]:
        """What is answered for each: {"receipt", "effective_by", "fresh", "problem"}."""
        sites = members.site_dids(connection)
        stored = {item for item in outcome if isinstance(item, str)}
        answers: dict[str, dict[str, Any]] = {
            digest: {
                "receipt": self._journal.receipt(connection, row.receipt_digest, sites=sites),
                "effective_by": row.at + EFFECTIVE_S,
                "fresh": freshness.token(self._journal.origin, row.log_index + 1),
                "problem": None,
            }
            for digest, row in events_by_digest(connection, stored).items()
        }
        return [answers[item] if isinstance(item, str) else _refused(item) for item in outcome]

    def _applied(
        self,
        opened: Opened[Consent],
        key: Enrolled | None,
        standing: Standing | None,
        sites: Mapping[str, str],
    ) -> Standing:
        if key is None:
            raise NotEnrolledError("pid: no hospital has enrolled a key for this record")
        if opened.subject.site != key.site:
            raise WrongDocumentError("consent.site: must be the hospital that enrolled this record")
        desks = Desks(registry=self._key.did, hospital=sites.get(key.site))
        speaker = speaker_of(key.speakers, opened.issuer, desks, opened.subject.representation)
        after = apply(standing, opened, speaker=speaker)
        now = self._now()
        if speaker is not None and now >= speaker.ends_at:
            raise RepresentationOverError("representation: it is over")
        if opened.subject.event in WIDENING:
            _check_time(speaker, now)
        return after

    def _store(
        self,
        connection: sa.Connection,
        fresh: Sequence[Folded],
        before: Mapping[str, Standing],
        keys: Mapping[str, Enrolled],
    ) -> None:
        revoked = sorted({o.subject.pid for o, after in fresh if _ends(o.subject.event, after)})
        # Before the log: every writer locks its own rows first and the log's head last.
        if revoked and self._on_revoked is not None:
            self._on_revoked(connection, revoked)
        places = self._journal.record_many(
            connection, "consent", [opened.document for opened, _ in fresh]
        )
        # Read under the log's lock: only the commit separates this second from the acknowledgement.
        now = self._now()
        receipts = self._journal.record_many(
            connection,
            ConsentReceipt.kind,
            [
                self._receipt(opened, place, now)
                for (opened, _), place in zip(fresh, places, strict=True)
            ],
        )
        changed: dict[str, tuple[str, Standing]] = {}
        rows, listed = [], []
        for (opened, after), place, receipt in zip(fresh, places, receipts, strict=True):
            event = opened.subject
            earlier = changed[event.pid][1] if event.pid in changed else before.get(event.pid)
            changed[event.pid] = (event.site, _placed(event.event, earlier, after, place.index))
            rows.append(
                {
                    "pid": event.pid,
                    "sequence": event.sequence,
                    "digest": opened.digest,
                    "event": event.event,
                    "actor": event.actor,
                    "log_index": place.index,
                    "at": now,
                    "receipt_digest": receipt.digest,
                    "enrolment_digest": keys[event.pid].digest,
                    "starts_at": after.starts_at,
                    "ends_at": after.ends_at,
                    "under": after.under,
                }
            )
            listed.append(
                {
                    "log_index": place.index,
                    "site": event.site,
                    "pid": event.pid,
                    "digest": opened.digest,
                }
            )
        connection.execute(consent_event.insert(), rows)
        connection.execute(site_document.insert(), listed)
        save_standings(connection, changed, before)

    def _receipt(self, opened: Opened[Consent], place: Logged, now: int) -> dict[str, Json]:
        subject = ConsentReceipt(
            pid=opened.subject.pid,
            site=opened.subject.site,
            consent_sha256=opened.digest,
            event=opened.subject.event,
            index=place.index,
            salt=place.salt,
            effective_by=now + EFFECTIVE_S,
        )
        return issue(subject, self._key, now)


def _ends(event: str, after: Standing) -> bool:
    """Whether her record stops earning with this event; a pause keeps its share."""
    return event in {"revoke", "void", "object"} or (
        event == "deceased" and after.state is State.REVOKED
    )


def _check_time(speaker: Speaker | None, now: int) -> None:
    """Refuse what would not count now: a person is told at once, rather than left waiting."""
    if speaker is None or speaker.gives(now):
        return
    raise WaitsError(
        f"event: this key may allow from {iso(speaker.starts_at)} on; stopping is possible now",
        starts_at=speaker.starts_at,
    )


def _placed(event: str, earlier: Standing | None, after: Standing, index: int) -> Standing:
    before = earlier.widened_index if earlier else -1
    widened = index if gives(event, earlier, after) else before
    return replace(after, log_index=index, widened_index=widened)


def _refused(error: CoopError) -> dict[str, Any]:
    return {"receipt": None, "effective_by": None, "fresh": None, "problem": problem_of(error)[1]}


def _already(standing: Standing, event: str) -> bool:
    """Whether the record is restricted so already."""
    if event == "object":
        return standing.objected
    return standing.state is _AFTER[event] or (
        event == "suspend" and standing.state is State.REVOKED
    )
