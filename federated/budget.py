"""The privacy ledger of one hospital: every noise draw is debited here first, and never given back.

One row of `debit` is one draw; `debit_pid` says whose records it may have used; `answer` holds what
came of it. The debit and the answer's `granted` state are one transaction *before* noise is drawn.

The lifetime filter (Feldman & Zrnic 2020, arXiv 2008.11193) works per patient at the fixed Rényi
order alpha = 4, where a draw of zCDP rho costs 4 rho. Whoever would pass the cap leaves the cohort
before anything is computed. All sums are integers in 10⁻⁹, rounded up where they are made.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy import event

from coop.db import RowId, metadata
from coop.documents.study import MICRO
from coop.errors import CoopError, InvariantError, Kind
from coop.keys import random_bytes
from federated.accounting import (
    lifetime_cap_nano,
    rdp_nano,
    sigma_micro_for,
)
from federated.answers import State, Stored, answer, stored

LIFETIME_CAP_NANO: Final = lifetime_cap_nano()
"""RDP(4) a patient may spend in her life: 6.144 (ε = 10 at δ = 1e-6), in 10⁻⁹."""
_CHUNK: Final = 500  # pids in one statement; SQLite allows 32,766 parameters, PostgreSQL 65,535
_SEED_BYTES: Final = 32
EVERYBODY: Final = "everybody"


class Line(StrEnum):
    """What a debit is for; each line of a study's plan has its own end."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    RESERVE = "reserve"
    COHORT = "cohort"


class BudgetExhaustedError(CoopError):
    """The study's line and its reserve are spent at this hospital."""

    code = "budget.exhausted"
    kind = Kind.CONFLICT


debit = sa.Table(
    "debit",
    metadata,
    sa.Column("sequence", RowId, primary_key=True),
    sa.Column("study_id", sa.String(64), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("line", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("order_sha256", sa.String(64)),
    sa.Column("round", sa.BigInteger),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("job_id", sa.String(80)),
    sa.Column("rho_nano", sa.BigInteger, nullable=False),
    sa.Column("sigma_micro", sa.BigInteger, nullable=False),
    sa.Column("honest", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("sampling_micro", sa.BigInteger, nullable=False, server_default=str(MICRO)),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("rho_nano > 0", name="costs_something"),
    sa.Index("ix_debit_study", "study_id", "version"),
)
"""One noise draw, append-only. `phase` is train, evaluate or cohort; `line` is who pays for it.
Both are `everybody` where no draw is known and every patient pays (`charge_everybody`). In mode B
sigma and rho are those of the whole sum, of which this hospital drew a share: one of `honest`.
Of a sampled draw `rho_nano` is what the lifetime's order needs, and no more: its epsilon follows
from sigma and sampling."""

debit_pid = sa.Table(
    "debit_pid",
    metadata,
    sa.Column("sequence", sa.ForeignKey("debit.sequence"), primary_key=True),
    sa.Column("pid", sa.String(26), primary_key=True),
    sa.Column("consent", sa.BigInteger, nullable=False),
    sa.Index("ix_debit_pid_pid", "pid"),
)
"""Who pays a debit, append-only, and where in the log her newest consent document stood then."""

debit_bystander = sa.Table(
    "debit_bystander",
    metadata,
    sa.Column("sequence", sa.ForeignKey("debit.sequence"), primary_key=True),
    sa.Column("pid", sa.String(26), primary_key=True),
)
"""Who permitted a draw and took no part: another fold, an unusable row, a spent lifetime.
Should she withdraw before the answer leaves, it is refused as for a member: so a refusal tells
nothing of the cohort."""


_ddl: Callable[[str], sa.DDL] = sa.DDL  # SQLAlchemy leaves its constructor untyped


def _append_only(table: str) -> None:
    """Refuse UPDATE and DELETE in the database itself: a spent budget cannot be unspent."""
    for verb in ("UPDATE", "DELETE"):
        name = f"{table}_no_{verb.lower()}"
        sqlite = _ddl(
            f"CREATE TRIGGER {name} BEFORE {verb} ON {table} "
            "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
        )
        function = _ddl(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger AS $$ "
            "BEGIN RAISE EXCEPTION 'the privacy ledger is append-only'; END $$ LANGUAGE plpgsql"
        )
        trigger = _ddl(
            f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
        target = metadata.tables[table]
        event.listen(target, "after_create", sqlite.execute_if(dialect="sqlite"))
        event.listen(target, "after_create", function.execute_if(dialect="postgresql"))
        event.listen(target, "after_create", trigger.execute_if(dialect="postgresql"))


_append_only("debit")
_append_only("debit_pid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """How much of rho each line of one study's plan holds at this hospital, in 10⁻⁹."""

    study_id: str
    version: int
    training_nano: int
    evaluation_nano: int
    reserve_nano: int
    cohort_nano: int

    def end_of(self, line: Line) -> int:
        """Where `line` ends."""
        return {
            Line.TRAINING: self.training_nano,
            Line.EVALUATION: self.evaluation_nano,
            Line.RESERVE: self.reserve_nano,
            Line.COHORT: self.cohort_nano,
        }[line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One noise draw that is asked for: what it is part of and what it costs."""

    key: str
    """Primary key of its answer: one attempt at one round, or at one cohort job."""
    input_sha256: str
    """What it is computed from; a repeat with the same input is the same draw."""
    lease_sha256: str
    phase: Literal["train", "evaluate", "cohort"]
    attempt: int
    rho_nano: int
    sigma_micro: int
    places: int
    """Leaves of its cohort's commitment: of all chains here, so it says nothing of the cohort."""
    honest: int = 1
    """h of mode B, on whose noise rho relies; this hospital's share alone costs h times rho."""
    sampling_micro: int = MICRO
    order_sha256: str | None = None
    round: int | None = None
    job_id: str | None = None


def lock(connection: sa.Connection) -> None:
    """Let one debit at a time happen, so that what was read stays true until the commit.

    SQLite's `unit_of_work` holds the write lock already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE debit IN EXCLUSIVE MODE"))


def afford(connection: sa.Connection, pids: Iterable[str], cost_nano: int) -> set[str]:
    """Those of `pids` who can pay a draw of rho = `cost_nano` within their lifetime cap."""
    asked = set(pids)
    spent = spent_by(connection, asked)
    left = LIFETIME_CAP_NANO - rdp_nano(cost_nano)
    return {pid for pid in asked if rdp_nano(spent.get(pid, 0)) <= left}


def grant(
    connection: sa.Connection,
    draw: Draw,
    pids: Collection[str],
    lines: Lines,
    *,
    permits: Mapping[str, int],
    now: int,
) -> Stored:
    """Debit `draw` to `pids` and write its answer as granted: in the caller's transaction.

    The caller holds `lock` and took `pids` from `afford` in this same transaction. A repeat of a
    known key debits nothing and returns the row that is there. `permits` are all whose consent the
    lease showed, `pids` among them, with the place of each one's newest consent document in the
    log. So what the receipt will commit to is durable with the debit.

    Raises:
        BudgetExhaustedError: The line and then the reserve cannot pay. Depends on the study's
            public plan and the number of draws only, never on any patient.
        InvariantError: A patient cannot pay, or does not permit it; the caller did not filter.
    """
    known = stored(connection, draw.key)
    if known is not None:
        return known
    line = _paying_line(connection, draw, lines)
    if afford(connection, pids, draw.rho_nano) != set(pids):
        raise InvariantError("budget: a cohort holds someone who cannot pay for it")
    if not permits.keys() >= set(pids):
        raise InvariantError("budget: a cohort holds someone whose consent nothing shows")
    sequence = connection.execute(
        sa.insert(debit)
        .values(
            study_id=lines.study_id,
            version=lines.version,
            line=line,
            phase=draw.phase,
            order_sha256=draw.order_sha256,
            round=draw.round,
            attempt=draw.attempt,
            job_id=draw.job_id,
            rho_nano=draw.rho_nano,
            sigma_micro=draw.sigma_micro,
            honest=draw.honest,
            sampling_micro=draw.sampling_micro,
            at=now,
        )
        .returning(debit.c.sequence)
    ).scalar_one()
    rows = [{"sequence": sequence, "pid": pid, "consent": permits[pid]} for pid in sorted(pids)]
    if rows:
        connection.execute(sa.insert(debit_pid), rows)
    others = [{"sequence": sequence, "pid": pid} for pid in sorted(set(permits) - set(pids))]
    if others:
        connection.execute(sa.insert(debit_bystander), others)
    connection.execute(
        sa.insert(answer).values(
            key=draw.key,
            input_sha256=draw.input_sha256,
            debit_sequence=sequence,
            seed=random_bytes(_SEED_BYTES).hex(),
            places=draw.places,
            lease_sha256=draw.lease_sha256,
            state=State.GRANTED,
            at=now,
        )
    )
    granted = stored(connection, draw.key)
    if granted is None:
        raise InvariantError("budget: the row just written is not there")
    return granted


def charge_everybody(connection: sa.Connection, lines: Lines, *, now: int) -> int:
    """Count every line of one study version as spent to its end, by whoever has a record here.

    Also by whoever gets one later: a record imported after the backup comes back as a new one. What
    is known of the version already, draws and earlier charges, is taken off, so repeating it
    charges nothing. Returns the charge, rho in 10⁻⁹. The caller holds `lock`.
    """
    of_study = (debit.c.study_id == lines.study_id) & (debit.c.version == lines.version)
    known = connection.execute(sa.select(sa.func.sum(debit.c.rho_nano)).where(of_study)).scalar()
    rest = sum(lines.end_of(line) for line in Line) - int(known or 0)
    if rest <= 0:
        return 0
    connection.execute(
        sa.insert(debit).values(
            study_id=lines.study_id,
            version=lines.version,
            line=EVERYBODY,
            phase=EVERYBODY,
            attempt=1,
            rho_nano=rest,
            sigma_micro=sigma_micro_for(rest),
            at=now,
        )
    )
    return rest


def everybodys_charge(connection: sa.Connection) -> int:
    """What every patient was charged without a known draw, rho in 10⁻⁹."""
    query = sa.select(sa.func.sum(debit.c.rho_nano)).where(debit.c.phase == EVERYBODY)
    return int(connection.execute(query).scalar() or 0)


def cohort_of(connection: sa.Connection, sequence: int) -> dict[str, int]:
    """Who pays one debit, in pid order, and where her newest consent document stood in the log."""
    rows = connection.execute(
        sa.select(debit_pid.c.pid, debit_pid.c.consent)
        .where(debit_pid.c.sequence == sequence)
        .order_by(debit_pid.c.pid)
    )
    return {row.pid: row.consent for row in rows}


def permitted_by(connection: sa.Connection, sequence: int) -> set[str]:
    """Everyone whose consent covered one debit when it was granted, of its cohort or not."""
    both = sa.union_all(
        sa.select(debit_pid.c.pid).where(debit_pid.c.sequence == sequence),
        sa.select(debit_bystander.c.pid).where(debit_bystander.c.sequence == sequence),
    )
    return set(connection.execute(both).scalars())


def site_spend(connection: sa.Connection, study_id: str, version: int) -> dict[str, int]:
    """What one study drew here (rho in 10⁻⁹) by line: the most any one patient paid."""
    rows = connection.execute(
        sa.select(debit.c.line, sa.func.sum(debit.c.rho_nano).label("rho"))
        .where(debit.c.study_id == study_id, debit.c.version == version)
        .group_by(debit.c.line)
    )
    spent = {row.line: int(row.rho) for row in rows}
    return {line.value: spent.get(line.value, 0) for line in Line}


def _paying_line(connection: sa.Connection, draw: Draw, lines: Lines) -> Line:
    own = {"train": Line.TRAINING, "evaluate": Line.EVALUATION, "cohort": Line.COHORT}[draw.phase]
    # A question of a cohort has no reserve: it can simply be asked again within its line.
    candidates = (own,) if own is Line.COHORT else (own, Line.RESERVE)
    spent = site_spend(connection, lines.study_id, lines.version)
    for line in candidates:
        if spent[line] + draw.rho_nano <= lines.end_of(line):
            return line
    raise BudgetExhaustedError(
        f"budget: the {own.value} line of {lines.study_id} version {lines.version} is spent here"
    )


def spent_by(connection: sa.Connection, pids: set[str]) -> Mapping[str, int]:
    """Spent rho in 10⁻⁹ by pid, over every study and everybody's charges."""
    spent = dict.fromkeys(pids, everybodys_charge(connection))
    ordered = sorted(pids)
    for start in range(0, len(ordered), _CHUNK):
        rows = connection.execute(
            sa.select(debit_pid.c.pid, sa.func.sum(debit.c.rho_nano).label("rho"))
            .join(debit, debit.c.sequence == debit_pid.c.sequence)
            .where(debit_pid.c.pid.in_(ordered[start : start + _CHUNK]))
            .group_by(debit_pid.c.pid)
        )
        for row in rows:
            spent[row.pid] += int(row.rho)
    return spent
