"""The consent registry: events accepted, receipts given, leases issued, questions answered.

What the registry may do to a patient's data is narrow it. It stores what patients sign; hospitals
verify those signatures themselves under keys they enrolled, so nothing the registry adds or forges
makes a record usable.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa

from consent import drafts, redeem
from consent.decide import Decision, Request, Standing, State, decide, state_at
from consent.events import Events, OnRevoked, Restriction, enrolled_or_refused
from consent.lease import Leases
from consent.people import People, people_before
from consent.policy import preset_of, summary
from consent.redeem import Linked
from consent.roster import Roster
from consent.store import (
    Enrolled,
    consent_draft,
    consent_event,
    consent_head,
    enrolled,
    enrolment,
    events_by_digest,
    representation,
    snapshot,
    standings,
)
from coop import members
from coop.canonical import Json
from coop.db import Database
from coop.documents.provision import TIME_MAX
from coop.errors import CoopError, InvalidInputError, NotFoundError
from coop.journal.store import Journal
from coop.keys import SigningKey
from coop.passkeys import RelyingParty

BATCH_MAX: Final = 1000
HISTORY_PAGE: Final = 200  # events in one answer, each with its proofs: about 2 MB


class Registry:
    """The registry over one database. Thread-safe; any number may share the database.

    Args:
        database: Where events and enrolments are kept.
        journal: The log every event goes into, in the same transaction.
        hub_key: Signs receipts, leases, and restrictions on a patient's behalf.
        now: UTC seconds.
        on_revoked: Told of withdrawn pids in the same unit of work (they stop earning).
        passkeys: The portal whose passkeys sign here.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        hub_key: SigningKey,
        now: Callable[[], int],
        *,
        on_revoked: OnRevoked | None = None,
        passkeys: RelyingParty | None = None,
    ) -> None:
        self.database = database
        self.journal = journal
        self.now = now
        self._events = Events(journal, hub_key, now, on_revoked, passkeys)
        self.people = People(database, journal, hub_key, now, passkeys)
        self._did = hub_key.did
        self.passkeys = passkeys
        self._leases = Leases(database, journal, hub_key, now)
        self._roster = Roster()

    # -- enrolment ---------------------------------------------------------------------------------

    def redeem(
        self, redemptions: Sequence[Mapping[str, Json]], account_id: int | None
    ) -> list[dict[str, Any]]:
        """Keep redemptions for their hospitals (`consent.redeem.redeem`)."""
        _check_batch(redemptions)
        linked: Linked = set()
        context = (self.now(), self.passkeys)
        with self.database.unit_of_work() as connection:
            results = redeem.redeem(connection, redemptions, account_id, context, linked)
            self._events.object_too(connection, linked)
        return results

    def pending_redemptions(self, site: str) -> list[dict[str, Json]]:
        """What this hospital has not answered yet."""
        with self.database.reading() as connection:
            return redeem.waiting(connection, site)

    def redemption_state(self, code_id: str) -> dict[str, str | None]:
        """How a code's redemption stands."""
        with self.database.reading() as connection:
            return redeem.state_of(connection, code_id)

    def add_enrolments(
        self,
        site: str,
        documents: Sequence[Mapping[str, Json]],
        refused: Sequence[Mapping[str, str]] = (),
    ) -> list[dict[str, Any]]:
        """Store a hospital's enrolments and refusals (`consent.redeem.add_enrolments`)."""
        _check_batch(documents)
        _check_batch(refused)
        linked: Linked = set()
        answered = {*redeem.code_ids(documents), *(item["code_id"] for item in refused)}
        with self.database.unit_of_work() as connection:
            redeem.lock_redemptions(connection, answered)
            redeem.refuse(connection, site, refused)
            context = (self._did, self.now())
            results = redeem.add_enrolments(
                connection, self.journal, site, documents, context, linked
            )
            self._events.object_too(connection, linked)
        return results

    def enrolled(self, pid: str) -> Enrolled:
        """The key that speaks for a record.

        Raises:
            NotEnrolledError: There is none.
        """
        with self.database.reading() as connection:
            return enrolled_or_refused(connection, pid)

    def pids_of_key(self, did: str) -> list[tuple[str, str]]:
        """(pid, site) of the records this key speaks for: its own first, then as a representative.

        An owner keeps sight of a record that was closed; a representative speaks while she may.
        """
        with self.database.reading() as connection:
            query = sa.select(enrolment.c.pid, enrolment.c.site).where(enrolment.c.did == did)
            own = [(row.pid, row.site) for row in connection.execute(query)]
            named = sa.select(representation.c.pid).where(representation.c.did == did).distinct()
            others = enrolled(connection, connection.execute(named).scalars().all())
        now = self.now()
        return own + [
            (pid, key.site)
            for pid, key in sorted(others.items())
            if key.did != did and key.speakers.speaks(did, now)
        ]

    # -- events ------------------------------------------------------------------------------------

    def submit(self, documents: Sequence[Mapping[str, Json]]) -> list[dict[str, Any]]:
        """Accept consent events, each for itself; idempotent on the document's digest.

        Steps: (1) every signature and shape, before any lock; (2) in one unit of work, each event
        continues its chain under the enrolled key; (3) all go into the log together; (4) receipts,
        after the commit. A crash after the commit loses no event: the same documents get their
        receipts again.

        Returns:
            For each: {"receipt" (bundle of the consent receipt), "effective_by", "fresh" (for
            `at_least_as_fresh`), "problem"}.
        """
        _check_batch(documents)
        # (1)
        opened = [self._events.open(document) for document in documents]
        # (2), (3)
        with self.database.unit_of_work() as connection:
            outcome = self._events.append(connection, opened)
        # (4)
        return self._answers(outcome)

    def accept(self, document: Mapping[str, Json]) -> dict[str, Any]:
        """One consent event, as `submit` takes it.

        Raises:
            CoopError: It is refused.
        """
        opened = self._events.open(document)
        with self.database.unit_of_work() as connection:
            outcome = self._events.append(connection, [opened])
        return self._only(outcome)

    def restrict(
        self, pid: str, event: Restriction, actor: Literal["session", "registrar"]
    ) -> dict[str, Any]:
        """Stop, pause, decline or object for whoever is entitled, signed by the hub; needs no key.

        What is already so restricted stays so, and gets its receipt again.

        Raises:
            NotEnrolledError: Unknown pid.
            ConsentChainError: There is nothing to restrict.
        """
        with self.database.unit_of_work() as connection:
            outcome = self._events.restrict(connection, [pid], event, actor)
        return self._only(outcome)

    def object_everywhere(self, account: int) -> list[dict[str, Any]]:
        """Object with every record of an account, in one transaction; see `restrict`.

        Returns:
            For each record what `restrict` returns, and its "pid".
        """
        with self.database.unit_of_work() as connection:
            members.lock_accounts(connection, [account])
            pids = [pid for pid, _ in members.pids_of(connection, account)]
            outcome = self._events.restrict(connection, pids, "object", "session")
        return [
            {"pid": pid, **answer} for pid, answer in zip(pids, self._answers(outcome), strict=True)
        ]

    def draft(self, pid: str, choice: drafts.Choice) -> dict[str, Any]:
        """An unsigned event for the patient's browser to sign (`consent.drafts.draft`)."""
        with self.database.unit_of_work() as connection:
            key = enrolled_or_refused(connection, pid)
            standing = standings(connection, [pid]).get(pid)
            return drafts.draft(connection, key, standing, choice, self.now())

    def sign(self, draft_id: str, signature: str, did: str) -> dict[str, Any]:
        """Accept a draft with the signature the browser made over it.

        Raises:
            CoopError: The signature does not verify, or the chain moved on since the draft.
        """
        with self.database.unit_of_work() as connection:
            _, document = drafts.signed(connection, draft_id, did, signature, self.now())
        return self.accept(document)

    def pid_of_draft(self, draft_id: str) -> str:
        """Whose draft it is.

        Raises:
            NotFoundError: No such draft.
        """
        with self.database.reading() as connection:
            query = sa.select(consent_draft.c.pid).where(consent_draft.c.id == draft_id)
            pid = connection.execute(query).scalar()
        if pid is None:
            raise NotFoundError("draft_id: not found")
        return str(pid)

    # -- questions ---------------------------------------------------------------------------------

    def standing(self, pid: str) -> Standing | None:
        """How a chain stands; None before its first event."""
        with self.database.reading() as connection:
            return standings(connection, [pid]).get(pid)

    def overview(self, pid: str) -> dict[str, Any]:
        """A chain in words and figures, for its owner."""
        with snapshot(self.database) as connection:
            key = enrolled_or_refused(connection, pid)
            standing = standings(connection, [pid]).get(pid)
            head = events_by_digest(connection, [standing.head_digest] if standing else [])
        policy = standing.policy if standing else None
        row = head.get(standing.head_digest) if standing else None
        return {
            "pid": pid,
            "site": key.site,
            "did": key.did,
            "custody": key.custody,
            "state": _shown(standing, self.now()),
            "objected": standing.objected if standing else False,
            "on_death": standing.on_death if standing else None,
            "sequence": standing.sequence if standing else 0,
            "event": row.event if row else None,
            "at": row.at if row else None,
            "head_sha256": standing.head_digest if standing else None,
            "log_index": standing.log_index if standing else None,
            "actor": row.actor if row else None,
            "starts_at": standing.starts_at if standing else None,
            "ends_at": standing.ends_at if standing and standing.ends_at < TIME_MAX else None,
            "waits_until": waits if (waits := key.speakers.waits_until) > self.now() else None,
            "closed": key.speakers.closed,
            "policy": policy.model_dump(mode="json", exclude_none=True) if policy else None,
            "preset": preset_of(policy) if policy else None,
            "summary": summary(policy),
        }

    def history(
        self, pid: str, *, after: int = 0, limit: int = HISTORY_PAGE
    ) -> list[dict[str, Any]]:
        """The events of a chain after this sequence, oldest first, at most `limit`.

        Returns:
            For each: {"sequence", "event", "actor", "at", "log_index", "digest", "proof"}; `proof`
            is a file for `coop verify consent`: consent, enrolment, what else says who may speak,
            and receipt, with their proofs.
        """
        with snapshot(self.database) as connection:
            enrolled_or_refused(connection, pid)
            sites = members.site_dids(connection)
            query = (
                sa.select(consent_event)
                .where(consent_event.c.pid == pid, consent_event.c.sequence > after)
                .order_by(consent_event.c.sequence)
                .limit(limit)
            )
            return [
                {
                    "sequence": row.sequence,
                    "event": row.event,
                    "actor": row.actor,
                    "at": row.at,
                    "log_index": row.log_index,
                    "digest": row.digest,
                    "proof": {
                        **self.journal.receipt(connection, row.digest, sites=sites),
                        "enrolment": self.journal.receipt(
                            connection, row.enrolment_digest, sites=sites
                        ),
                        **self._people_before(connection, row, sites),
                        "receipt": self.journal.receipt(
                            connection, row.receipt_digest, sites=sites
                        ),
                    },
                }
                for row in connection.execute(query).all()
            ]

    def lease(
        self, site: str, nonce: str, have: int, documents_from: int | None = None
    ) -> dict[str, Any]:
        """The registry's word for one hospital's nonce (`consent.lease.Leases.lease`)."""
        start = have if documents_from is None else documents_from
        return self._leases.lease(site, nonce, have, start)

    def decision(self, pid: str, request: Request) -> Decision:
        """What the registry knows of one record; only the hospital's own decision opens it."""
        return decide(self.standing(pid), request)

    def permitted(self, request: Request) -> dict[str, list[str]]:
        """Pids by site whose consent permits `request`, as registered; sites without any too."""
        with snapshot(self.database) as connection:
            none: dict[str, list[str]] = {name: [] for name in members.site_dids(connection)}
            return none | self._roster.permitted(connection, request)

    def counts(self) -> dict[str, dict[str, int]]:
        """Enrolments and consent states by site, for operators."""
        with snapshot(self.database) as connection:
            found = {name: {"enrolled": 0} for name in members.site_dids(connection)}
            keys = sa.select(enrolment.c.site, sa.func.count()).group_by(enrolment.c.site)
            for site, count in connection.execute(keys):
                found.setdefault(site, {})["enrolled"] = count
            states = sa.select(consent_head.c.site, consent_head.c.state, sa.func.count()).group_by(
                consent_head.c.site, consent_head.c.state
            )
            for site, state, count in connection.execute(states):
                found.setdefault(site, {})[state] = count
        return found

    # -- inside ------------------------------------------------------------------------------------

    def _people_before(
        self, connection: sa.Connection, row: sa.Row[tuple[object, ...]], sites: Mapping[str, str]
    ) -> dict[str, Any]:
        """What else says who could speak when this event came; nothing for most."""
        digests = people_before(connection, row.pid, row.log_index)
        others = [one for one in digests if one != row.enrolment_digest]
        bundles = [self.journal.receipt(connection, one, sites=sites) for one in others]
        return {"people": bundles} if bundles else {}

    def _only(self, outcome: Sequence[str | CoopError]) -> dict[str, Any]:
        if isinstance(outcome[0], CoopError):
            raise outcome[0]
        return self._answers(outcome)[0]

    def _answers(self, outcome: Sequence[str | CoopError]) -> list[dict[str, Any]]:
        with snapshot(self.database) as connection:
            return self._events.answers(connection, outcome)


def _shown(standing: Standing | None, now: int) -> str:
    if standing is None:
        return str(State.NONE)
    counts = standing.starts_at, standing.ends_at
    return state_at(standing.state, standing.policy, counts, now)


def _check_batch(items: Sequence[object]) -> None:
    if len(items) > BATCH_MAX:
        raise InvalidInputError(f"documents: at most {BATCH_MAX} in one request")
