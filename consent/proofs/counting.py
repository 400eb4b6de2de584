"""A tally made of the registry, once for each study version and hospital, and kept.

Made by the hub and not by a node: who permits a study is registry knowledge (DESIGN §7), whereas an
exact count that leaves a node, however well proved, would break promise 3 - what leaves a node is a
budgeted DP output or a salted commitment. Below the smallest band of `cohorts:count` nothing is
said here either, and there is no second tally of a version: two of neighbouring sizes of the log
would differ by what one patient decided between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from consent.api import BANDS
from consent.decide import decide
from consent.proofs.bits import ROW_BYTES
from consent.proofs.tally import About, Answer, Counted, count
from consent.questions import question_of
from consent.store import consent_head, snapshot, standing_of
from coop import members, studies
from coop.canonical import b64u, document_digest, sha256
from coop.db import Database, metadata
from coop.documents.envelope import issue
from coop.documents.provision import Policy
from coop.documents.tally import Tally
from coop.errors import CoopError, Kind, NotFoundError, broken
from coop.journal import note
from coop.journal.rows import signed_document
from coop.journal.store import Journal
from coop.keys import SigningKey, random_bytes
from coop.studies import StudyRow

FEWEST: Final = BANDS[-1]

tally_table = sa.Table(
    "tally",
    metadata,
    sa.Column("study_digest", sa.Text, primary_key=True),
    sa.Column("site", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("rows", sa.LargeBinary, nullable=False),
)


class TooFewToTellError(CoopError):
    """So few permit the study there that a count would be about persons."""

    code = "proofs.too-few"
    kind = Kind.CONFLICT


class NoTallyError(NotFoundError):
    """No tally was made of this study at this hospital."""

    code = "proofs.no-tally"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """Makes tallies; any number may share one database.

    Args:
        database: The hub's.
        journal: Every tally goes into this log.
        hub_key: Signs them.
        now: UTC seconds.
    """

    database: Database
    journal: Journal
    hub_key: SigningKey
    now: Callable[[], int]

    def tally(self, study_id: str, version: int | None, site: str) -> dict[str, Any]:
        """The tally of a study at a hospital, made now if there is none yet.

        Steps: (1) a known one is given again; (2) answers and log are read at one instant; (3) too
        few are not counted; (4) the proofs, outside any transaction; (5) logged and kept, unless
        another process was faster. A crash before (5) leaves nothing.

        Returns:
            The file that `coop verify tally` reads.

        Raises:
            NotFoundError: No such study or hospital.
            TooFewToTellError: (3).
        """
        # (1)
        with self.database.reading() as connection:
            row = studies.get(connection, study_id, version)
            known = _kept(connection, row.digest, site)
            if known is None and site not in members.site_dids(connection):
                raise NotFoundError("site: no member hospital of this name")
        if known is None:
            known = self._made(row, site)
        return self._file(row, known)

    def made(self, study_id: str, version: int | None, site: str) -> dict[str, Any]:
        """The tally that was made.

        Raises:
            NotFoundError: No such study, or no tally of it there.
        """
        with self.database.reading() as connection:
            row = studies.get(connection, study_id, version)
            known = _kept(connection, row.digest, site)
        if known is None:
            raise NoTallyError("tally: none was made of this study at this hospital")
        return self._file(row, known)

    def _made(self, row: StudyRow, site: str) -> sa.Row[tuple[object, ...]]:
        at, study = self.now(), row.study
        question = question_of(
            study, "train-federated", at, epsilon_micro=study.budget.epsilon_micro
        )
        # (2)
        with snapshot(self.database) as connection:
            text = self.journal.checkpoint(connection)
            parsed: dict[str, Policy] = {}
            answers = [
                Answer(one.body.encode(), decide(standing_of(one, parsed), question).permits)
                for one in connection.execute(_heads_of(site))
            ]
        # (3)
        permits = sum(answer.permits for answer in answers)
        if min(permits, len(answers) - permits) < FEWEST:
            raise TooFewToTellError(
                f"tally: fewer than {FEWEST} patients of {site} permit it, or fewer do not; no "
                "number is given"
            )
        # (4)
        seen = note.parse_checkpoint(text)
        about = About(
            log=self.journal.log_did,
            origin=seen.origin,
            log_size=seen.size,
            root=seen.root.hex(),
            site=site,
            study_sha256=row.digest,
            action="train-federated",
            at=at,
        )
        counted = count(about, answers, random_bytes)
        # (5)
        with self.database.unit_of_work() as connection:
            return self._keep(connection, row, about, text, counted)

    def _keep(
        self,
        connection: sa.Connection,
        row: StudyRow,
        about: About,
        text: str,
        counted: Counted,
    ) -> sa.Row[tuple[object, ...]]:
        lock = sa.select(studies.study_table.c.digest).where(
            studies.study_table.c.digest == row.digest
        )
        connection.execute(lock.with_for_update())
        known = _kept(connection, row.digest, about.site)
        if known is not None:
            return known
        subject = Tally(
            log=about.log,
            checkpoint=text,
            site=about.site,
            study_sha256=row.digest,
            study_id=row.id,
            version=row.version,
            action="train-federated",
            at=about.at,
            patients=len(counted.rows) // ROW_BYTES,
            consented=counted.consented,
            blinding=counted.blinding.hex(),
            rows_sha256=sha256(counted.rows).hex(),
        )
        document = issue(subject, self.hub_key, about.at)
        connection.execute(
            tally_table.insert().values(
                study_digest=row.digest,
                site=about.site,
                digest=document_digest(document),
                rows=counted.rows,
            )
        )
        self.journal.record(connection, Tally.kind, document)
        return _kept(connection, row.digest, about.site) or broken("the tally just kept is gone")

    def _file(self, row: StudyRow, kept: sa.Row[tuple[object, ...]]) -> dict[str, Any]:
        with snapshot(self.database) as connection:
            sites = members.site_dids(connection)
            return {
                "v": 1,
                "tally": self.journal.receipt(connection, str(kept.digest), sites=sites),
                "study": self.journal.receipt(connection, row.digest, sites=sites),
                "rows": b64u(bytes(kept.rows)),
            }


def _kept(connection: sa.Connection, study: str, site: str) -> sa.Row[tuple[object, ...]] | None:
    same = (tally_table.c.study_digest == study) & (tally_table.c.site == site)
    return connection.execute(sa.select(tally_table).where(same)).one_or_none()


def _heads_of(site: str) -> sa.Select[tuple[object, ...]]:
    """Every chain's standing at a hospital with its newest document; erased ones are not there."""
    return (
        sa.select(consent_head, signed_document.c.body)
        .join(signed_document, signed_document.c.digest == consent_head.c.digest)
        .where(consent_head.c.site == site, signed_document.c.body.is_not(None))
    )
