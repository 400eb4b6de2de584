"""Outside witnesses: the hub sends each its newest checkpoint and keeps what she signs, or refuses.

Beside every commit, never in its way: she is asked from a thread of its own, with no transaction
open. Hospitals stay the witnesses that count for a grant; these are for whoever trusts none of us.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import httpx
import sqlalchemy as sa

from coop.db import Database, insert_ignore
from coop.journal import note
from coop.journal.rows import outside_cosignature, outside_refusal
from coop.journal.store import Journal
from coop.journal.witness import (
    Witness,
    WitnessAnswerError,
    cosignature_in,
    request_text,
    size_in,
)
from coop.logs import logger

TIMEOUT_S: Final = 5.0
_ANSWER_BYTES_MAX: Final = 16_384
_ANSWER_S: Final = 20.0  # one witness that dawdles must not hold up the others
_TELLING: Final = (409, 422)
"""Refusals that say she saw another log: evidence that nothing pushes out."""
_TRIES: Final = 3  # her size may move between two questions
_OK, _CONFLICT, _NO_COSIGNATURE = 200, 409, 0
_REFUSED: Final = frozenset({400, 403, 404, 409, 422})
REFUSALS_MAX: Final = 100  # listed of each; a witness that refuses all does not fill the database


class Outside:
    """The outside witnesses of one log.

    Args:
        database: The hub's.
        journal: The log.
        witnesses: Whom to ask.
        now: UTC seconds.
        client: Speaks HTTP.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        witnesses: Sequence[Witness],
        now: Callable[[], int],
        client: httpx.Client | None = None,
    ) -> None:
        self.witnesses = tuple(witnesses)
        self._database = database
        self._journal = journal
        self._now = now
        self._http = client or httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)

    def push(self) -> None:
        """Send every witness what she has not seen; one that fails stops no other."""
        for witness in self.witnesses:
            try:
                self._push(witness)
            except httpx.HTTPError as error:
                logger().info("witness away", reason=witness.name, error_type=type(error).__name__)

    def signed(self, connection: sa.Connection) -> list[dict[str, object]]:
        """What each witness has signed last, and what she refused, newest first."""
        found: list[dict[str, object]] = []
        for witness in self.witnesses:
            query = sa.select(outside_cosignature).where(
                outside_cosignature.c.name == witness.name, outside_cosignature.c.did == witness.did
            )
            row = connection.execute(query).one_or_none()
            text = None
            if row is not None:
                plain = note.without_cosignatures(self._journal.checkpoint_at(connection, row.size))
                text = note.with_lines(plain, [row.line])
            refused = (
                sa.select(outside_refusal)
                .where(outside_refusal.c.name == witness.name)
                .order_by(outside_refusal.c.at.desc(), outside_refusal.c.size.desc())
            )
            found.append(
                {
                    "name": witness.name,
                    "vkey": witness.vkey,
                    "url": witness.url,
                    "checkpoint": text,
                    "refusals": [
                        {name: row[name] for name in ("size", "status", "sent", "answer", "at")}
                        for row in connection.execute(refused).mappings()
                    ],
                }
            )
        return found

    def close(self) -> None:
        """Give back the connections."""
        self._http.close()

    def _push(self, witness: Witness) -> None:
        """Ask one witness for her cosignature.

        Steps: (1) the newest checkpoint, if she has not signed it; (2) proved from the size she
        has; (3) a conflict names her size, from which it is proved again; (4) what she signed is
        verified, then kept; what she refuses is kept as it was sent and answered.
        """
        # (1)
        with self._database.reading() as connection:
            size = self._journal.size(connection)
            old = _seen(connection, witness)
            if size in {0, old} or _refused(connection, witness, size):
                return
            checkpoint = note.without_cosignatures(self._journal.checkpoint_at(connection, size))
        for _ in range(_TRIES):
            # (2)
            with self._database.reading() as connection:
                proof = self._journal.consistency(connection, old, size) if 0 < old < size else []
            sent = request_text(old, proof, checkpoint)
            status, answer = self._ask(witness, sent)
            # (3)
            theirs = _size(answer) if status == _CONFLICT else old
            if theirs != old and 0 <= theirs <= size:
                old = theirs
                continue
            # (4)
            if status == _OK and self._keep(witness, size, checkpoint, answer):
                return
            if status == _OK or status in _REFUSED:
                kept = status if status != _OK else _NO_COSIGNATURE
                self._evidence(witness, size, kept, (sent, answer))
            logger().warning("witness refused", reason=witness.name, status=status, size=size)
            return

    def _ask(self, witness: Witness, sent: str) -> tuple[int, str]:
        url, body = f"{witness.url}/add-checkpoint", sent.encode()
        with self._http.stream("POST", url, content=body) as response:
            data, until = b"", time.monotonic() + _ANSWER_S
            for chunk in response.iter_bytes():
                data += chunk
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the answer takes too long")
                if len(data) > _ANSWER_BYTES_MAX:
                    break  # no cosignature is so long
        return response.status_code, data[:_ANSWER_BYTES_MAX].decode(errors="replace")

    def _keep(self, witness: Witness, size: int, checkpoint: str, answer: str) -> bool:
        try:
            line = cosignature_in(answer, checkpoint, witness)
        except WitnessAnswerError:
            return False
        with self._database.unit_of_work() as connection:
            hers = (outside_cosignature.c.name == witness.name) & (
                outside_cosignature.c.did == witness.did
            )
            connection.execute(outside_cosignature.delete().where(hers))
            row = {"name": witness.name, "did": witness.did, "size": size, "line": line}
            connection.execute(outside_cosignature.insert().values(row))
        return True

    def _evidence(self, witness: Witness, size: int, status: int, said: tuple[str, str]) -> None:
        row = {"name": witness.name, "size": size, "status": status, "at": self._now()}
        row |= {"sent": said[0], "answer": said[1]}
        with self._database.unit_of_work() as connection:
            hers = outside_refusal.c.name == witness.name
            count = sa.select(sa.func.count()).select_from(outside_refusal).where(hers)
            if int(connection.execute(count).scalar() or 0) >= REFUSALS_MAX:
                plain = outside_refusal.c.status.not_in(_TELLING)
                oldest = sa.select(sa.func.min(outside_refusal.c.size)).where(hers, plain)
                stale = outside_refusal.c.size == oldest.scalar_subquery()
                if not connection.execute(
                    outside_refusal.delete().where(hers, plain, stale)
                ).rowcount:
                    return  # a hundred that tell something are enough
            insert_ignore(connection, outside_refusal, row)


def _seen(connection: sa.Connection, witness: Witness) -> int:
    query = sa.select(outside_cosignature.c.size).where(
        outside_cosignature.c.name == witness.name, outside_cosignature.c.did == witness.did
    )
    return connection.execute(query).scalar() or 0


def _refused(connection: sa.Connection, witness: Witness, size: int) -> bool:
    """Whether she has refused this very checkpoint: asking again brings the same."""
    query = sa.select(outside_refusal.c.size).where(
        outside_refusal.c.name == witness.name, outside_refusal.c.size == size
    )
    return connection.execute(query).first() is not None


def _size(answer: str) -> int:
    try:
        return size_in(answer)
    except WitnessAnswerError:
        return -1
