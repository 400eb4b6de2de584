"""The hospital's mirror of the log: witnesses it, and turns the hub's word on consent into its own.

The node believes the hub about nothing that widens. It keeps every leaf hash of the log, so a log
that shrinks or forks is refused with evidence; it verifies every envelope of its own patients; and
a lease only says *until when* and *under which log* that reading holds.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from threading import RLock
from typing import Any, Final, NoReturn

from consent.chain import cosigners_needed
from consent.decide import Standing, State
from consent.speakers import Speakers
from coop.canonical import from_b64u
from coop.client import Client
from coop.errors import CoopError
from coop.journal import note
from coop.journal.merkle import leaf_hash
from coop.journal.trust import Trust
from federated import erased, mirror_store
from federated.cosigning import paused
from federated.envelopes import Envelope, Fold, UnloggedDocumentError
from federated.held_lease import (
    DRIFT,
    HeadsMismatchError,
    HeldLease,
    LeaseExpiredError,
    LeaseRefusedError,
    LogRollbackError,
    WitnessForkError,
    ask,
    boottime,
)
from federated.quarantine import Aside, asides, keep_refused, settle, take
from federated.site import Site
from federated.witnesses import known

__all__ = [
    "HeadsMismatchError",
    "HeldLease",
    "LeaseExpiredError",
    "LeaseRefusedError",
    "LogRollbackError",
    "Mirror",
    "WitnessForkError",
    "boottime",
]

_RECORDS_KEPT: Final = 1_000_000
_SHRUNK: Final = "checkpoint: the log had {} entries and now has {}"


class Mirror:
    """One hospital's mirror. Thread-safe.

    Args:
        site: Whose patients and pinned trust it is.
        client: Speaks to the hub with the site's key.
        now: UTC seconds, for cosignatures.
        clock: CLOCK_BOOTTIME.
    """

    def __init__(
        self,
        site: Site,
        client: Client,
        *,
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._site = site
        self._client = client
        self._now = now
        self._clock = clock
        self._lock = RLock()
        self._tree = mirror_store.stored_tree(site)
        self._fold: Fold | None = None
        self._heads = ""
        self._documents_to = mirror_store.documents_to(site)
        self._asides = asides(site)
        self._newest = mirror_store.NewestEnrolments(site)
        # An erasure names a digest: each record's is made once, not once for every erasure.
        self._record_of = lru_cache(maxsize=_RECORDS_KEPT)(partial(erased.record_digest, site))

    def size(self) -> int:
        """How many entries of the log were verified here."""
        with self._lock:
            return self._tree.size

    def standings(self) -> dict[str, Standing]:
        """How every chain stands by the newest verified envelopes; says nothing of freshness."""
        gone = erased.waiting(self._site)
        with self._lock:
            return erased.remaining(self._folded(self._site.trust), gone)

    def speakers(self) -> dict[str, Speakers]:
        """Who may speak for each record, by the newest verified envelopes.

        Nobody does for whom this hospital has enrolled a newer key than the hub has shown it, nor
        for an erased record.
        """
        newest = self._newest.now()
        gone = erased.waiting(self._site)
        with self._lock:
            fold = self._folded(self._site.trust)
            return {
                pid: speakers
                for pid, speakers in fold.speakers.items()
                if pid not in gone | fold.denied
                and not mirror_store.is_behind(speakers, newest.get(pid))
            }

    def shown_again(self) -> set[str]:
        """Erased records of which the hub holds something new; they are denied all the same."""
        with self._lock:
            return set(self._folded(self._site.trust).denied)

    def sync(self) -> int:
        """Fetch and verify what is new; returns the verified log size."""
        return self.lease().log_size

    def lease(self) -> HeldLease:
        """A fresh lease over this hospital's own verified reading of the consents.

        Steps:
          (1) read the clock, then ask with a fresh nonce: whatever the hub acknowledged before the
              question is in the answer, so the lease counts from the question;
          (2) the pinned hub signed the lease, for this site and this nonce;
          (3) the log only grew, and its newest checkpoint is signed by the pinned log key over the
              very tree mirrored here;
          (4) every new envelope of this site's patients stands in that log and verifies;
          (5) the chain heads are the ones the lease vouches for (of a patient of whom staff set a
              document aside, and who is denied for it: that document or the one before it);
          (6) a grant is usable only below a checkpoint that enough other hospitals cosigned,
              of those that count here (`federated.witnesses`).

        Raises:
            LeaseRefusedError: (2) fails. LogRollbackError, WitnessForkError: (3) fails.
            CoopError: (4) fails, with the code of what is wrong.
            HeadsMismatchError: (5) fails.
        """
        with self._lock:
            trust = self._site.trust
            self._catch_up()
            try:
                return self._lease(trust, self._documents_to)
            except mirror_store.MirrorMovedError:
                self._catch_up()
                return self._lease(trust, self._documents_to)
            except HeadsMismatchError:
                # The hub may have left something out before: ask for everything once more. What
                # was seen stays seen, so this can add a withdrawal and never drop one.
                return self._lease(trust, 0)

    def witness(self, wait: int = 0) -> None:
        """Verify that the log really grew to its newest checkpoint, and cosign it.

        Args:
            wait: Seconds the hub may wait for something new.

        Raises:
            LogRollbackError, WitnessForkError: It did not; nothing is signed.
        """
        path = f"/v1/sites/{self._site.name}/checkpoints"
        since = self.size()
        answer = self._client.get(path, since=since, wait=wait)
        text = str(answer.get("checkpoint") or "") if isinstance(answer, dict) else ""
        if not text:
            return
        trust = self._site.trust
        seen = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
        leaves = _leaves(answer)
        while since + len(leaves) < seen.size:
            page = _leaves(self._client.get(path, since=since + len(leaves), wait=0))
            if not page:
                raise LeaseRefusedError("checkpoint: the hub does not send the entries below it")
            leaves += page
        with self._lock:
            # A lease, here or in another process, may have grown the mirror meanwhile.
            self._catch_up()
            if seen.size < self._tree.size and self._tree.root(seen.size) == seen.root:
                if seen.size < since:
                    raise LogRollbackError(_SHRUNK.format(since, seen.size))
                return
            fresh = leaves[max(0, self._tree.size - since) : max(0, seen.size - since)]
            self._grow(trust, text, fresh)
            self._persist(seen.size, text, fresh)
            if paused(self._site) or not mirror_store.must_cosign(self._site, seen.size):
                return
        # The growth is durable before it is signed: after a crash here the same size is signed
        # again, and no other root ever is.
        now = self._now()
        signed = note.cosign(text, name=self._site.name, key=self._site.key, now=now)
        self._client.post(f"/v1/sites/{self._site.name}/cosignatures", {"checkpoint": signed})
        mirror_store.keep_cosigned(self._site, seen.size, now)

    def evidence(self) -> list[Mapping[str, Any]]:
        """Signed notes of the log that contradict each other, oldest first."""
        return mirror_store.evidence(self._site)

    # -- inside ------------------------------------------------------------------------------------

    def _lease(self, trust: Trust, documents_from: int) -> HeldLease:
        # (1), (2)
        asked = ask(
            self._client,
            site=self._site.name,
            hub_did=trust.hub,
            have=self._tree.size,
            documents_from=documents_from,
            clock=self._clock,
        )
        subject = asked.lease.subject
        # (3)
        self._grow(trust, asked.latest, asked.leaves)
        try:
            # (4)
            fold, fresh = self._tried(trust, asked.envelopes, whole=documents_from == 0)
            # (5)
            heads = subject.heads_sha256
            if (fresh or heads != self._heads) and fold.heads_of(heads) is None:
                raise HeadsMismatchError(
                    "lease: the hub vouches for other consents than it sent; see the evidence"
                )
            # (6)
            cosigned = self._cosigned_size(trust, subject.checkpoint)
            mirror_store.keep_lease(
                self._site, asked.lease, asked.latest, asked.leaves, fresh, erased.purge
            )
            settle(self._site, self._now())
        except CoopError:
            if asked.leaves:
                self._tree = mirror_store.stored_tree(self._site)
            raise
        self._fold, self._heads = fold, heads
        self._documents_to = subject.log_size
        # Denied from the desk's act on, whether or not the hub has erased yet.
        standings = erased.remaining(fold, erased.waiting(self._site))
        return HeldLease(
            document=asked.lease.document,
            digest=asked.lease.digest,
            log_size=subject.log_size,
            cosigned_size=cosigned,
            expires_boottime=asked.started + subject.seconds * (1 - DRIFT),
            standings=standings,
            usable=self._usable(fold, standings, cosigned),
        )

    def _grow(self, trust: Trust, text: str, leaves: Sequence[bytes]) -> None:
        """Let the tree grow to the checkpoint `text`, or keep it as it was and raise."""
        seen = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
        if seen.size < self._tree.size:
            if self._tree.root(seen.size) != seen.root:
                self._convict(text)
            raise LogRollbackError(_SHRUNK.format(self._tree.size, seen.size))
        if seen.size != self._tree.size + len(leaves):
            raise LeaseRefusedError("checkpoint: is of another size than the entries sent with it")
        for leaf in leaves:
            self._tree.append(leaf_hash(leaf))
        if self._tree.size == seen.size and self._tree.root() == seen.root:
            return
        if leaves:
            self._tree = mirror_store.stored_tree(self._site)
        self._convict(text)

    def _persist(self, size: int, text: str, leaves: Sequence[bytes]) -> None:
        try:
            mirror_store.keep_growth(self._site, size, text, leaves)
        except mirror_store.MirrorMovedError:
            self._tree = mirror_store.stored_tree(self._site)
            raise

    def _catch_up(self) -> None:
        """Take over what another process of this hospital has verified and stored."""
        if mirror_store.stored_size(self._site) != self._tree.size:
            self._tree = mirror_store.stored_tree(self._site)
            self._fold, self._heads = None, ""
            self._documents_to = mirror_store.documents_to(self._site)
        aside = asides(self._site)
        if aside.keys() != self._asides.keys():  # staff set a document aside meanwhile
            self._asides = aside
            self._fold, self._heads = None, ""

    def _convict(self, theirs: str) -> NoReturn:
        mirror_store.keep_evidence(self._site, theirs, WitnessForkError.code, self._now())
        raise WitnessForkError(
            "checkpoint: the log does not extend what it showed before; both notes are kept"
        )

    def _empty_fold(self, trust: Trust) -> Fold:
        return Fold(
            site=self._site.name,
            site_did=self._site.key.did,
            hub_did=trust.hub,
            passkeys=trust.passkeys,
            record_of=self._record_of,
        )

    def _folded(self, trust: Trust) -> Fold:
        """The fold of everything stored, verified again when this process first needs it."""
        if self._fold is None:
            fold = self._empty_fold(trust)
            known: dict[int, Envelope | Aside] = {
                index: aside for index, aside in self._asides.items() if index < self._documents_to
            }
            for envelope in mirror_store.stored_envelopes(self._site):
                known.setdefault(envelope.index, envelope)
            for index in sorted(known):
                take(fold, known[index])
            self._fold = fold
        return self._fold

    def _tried(
        self, trust: Trust, sent: Iterable[Envelope], *, whole: bool
    ) -> tuple[Fold, list[Envelope]]:
        """The fold with the envelopes that are new, and those; `whole` reads all once more.

        What staff set aside counts as such, whether or not the hub still sends it. What was erased
        is refused.
        """
        sent = list(sent)
        erased.refuse_shown(self._site, [envelope.index for envelope in sent])
        todo: dict[int, Envelope | Aside]
        if whole:
            known = {e.index: e for e in mirror_store.stored_envelopes(self._site)}
            fresh = {e.index: e for e in sent if e.index not in known}
            fold, todo = self._empty_fold(trust), {**known, **fresh, **self._asides}
        else:
            fold = self._folded(trust)
            fresh = {e.index: e for e in sent if e.index > fold.last}
            todo = {**fresh, **{i: a for i, a in self._asides.items() if i > fold.last}}
            if not todo:
                return fold, []
            fold = fold.copy()
        now = self._now()
        fresh = {i: replace(e, seen_at=now) for i, e in fresh.items() if i not in self._asides}
        todo |= fresh
        for index in sorted(todo):
            if index >= self._tree.size:
                raise UnloggedDocumentError(f"entry {index}: beyond the log")
            try:
                if index in fresh or index in self._asides:
                    todo[index].check_logged(self._leaf(index))
                take(fold, todo[index])
            except CoopError as error:
                if index in fresh:
                    given, at = fresh[index], self._now()
                    keep_refused(self._site, given, self._leaf(index), error.code, at)
                raise
        return fold, [fresh[index] for index in sorted(fresh)]

    def _leaf(self, index: int) -> bytes:
        return self._tree.hashes(0, index, index + 1)

    def _usable(
        self, fold: Fold, standings: Mapping[str, Standing], cosigned: int
    ) -> frozenset[str]:
        """Pids whose chain is active by an event that the witnesses saw, under today's key."""
        newest = self._newest.now()
        ended = mirror_store.ended_representations(self._site)
        return frozenset(
            pid
            for pid, standing in standings.items()
            if standing.state is State.ACTIVE
            and 0 <= standing.widened_index < cosigned
            # A hub that withholds a key change would let a lost key go on speaking, or a
            # representative whom this hospital has dismissed.
            and not mirror_store.is_behind(fold.speakers[pid], newest.get(pid))
            and standing.under not in ended
        )

    def _cosigned_size(self, trust: Trust, text: str) -> int:
        """The size enough others vouch for; 0 when they do not, so that nothing is usable."""
        others = known(self._site)
        needed = cosigners_needed(len(others) + 1)
        if needed == 0:  # a single hospital: unwitnessed, and labelled so
            return self._tree.size
        seen = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
        if seen.size > self._tree.size or len(note.cosigners(text, others)) < needed:
            return 0
        if self._tree.root(seen.size) != seen.root:
            self._convict(text)
        return seen.size


def _leaves(answer: object) -> list[bytes]:
    entries = answer.get("entries") if isinstance(answer, dict) else None
    return [from_b64u(str(text)) for text in entries] if isinstance(entries, list) else []
