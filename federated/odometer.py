"""One patient's odometer: what all that used her record told about her, in epsilon.

Recomputed from the debits each time; only her hospital and she may see it.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from coop.documents.study import MICRO
from coop.privacy_loss import Releases
from federated.accounting import LIFETIME_DELTA, epsilon_of_rho, rdp_nano
from federated.budget import LIFETIME_CAP_NANO, debit, debit_pid, spent_by


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientBudget:
    """One patient's odometer; only this hospital and she may see it."""

    pid: str
    rho_nano: int
    rdp_nano: int
    """rho at order 4: what the cap bounds."""
    alone_nano: int
    """The same if no other hospital's noise counted: rho, or in mode B h times rho."""
    samples: tuple[Releases, ...] = ()
    """Her draws of which only a secret sample took part; `rho_nano` holds them too."""
    sampled_nano: int = 0
    """What of `rho_nano` is theirs."""
    cap_nano: int = LIFETIME_CAP_NANO

    @property
    def epsilon(self) -> float:
        """Everything she took part in, composed exactly, at delta one in a million."""
        return epsilon_of_rho(self.rho_nano - self.sampled_nano, LIFETIME_DELTA, self.samples)

    @property
    def alone_epsilon(self) -> float:
        """The stand-alone figure: what holds even if all other hospitals of a sum lie."""
        return epsilon_of_rho(self.alone_nano - self.sampled_nano, LIFETIME_DELTA, self.samples)


def patient_budget(connection: sa.Connection, pid: str) -> PatientBudget:
    """What this patient has spent in her life here."""
    spent = spent_by(connection, {pid}).get(pid, 0)
    relied_on = connection.scalar(
        sa.select(sa.func.sum(debit.c.rho_nano * (debit.c.honest - 1)))
        .join(debit_pid, debit_pid.c.sequence == debit.c.sequence)
        .where(debit_pid.c.pid == pid)
    )
    kinds = connection.execute(
        sa.select(
            debit.c.sigma_micro,
            debit.c.sampling_micro,
            sa.func.count().label("times"),
            sa.func.sum(debit.c.rho_nano).label("rho"),
        )
        .join(debit_pid, debit_pid.c.sequence == debit.c.sequence)
        .where(debit_pid.c.pid == pid, debit.c.sampling_micro < MICRO)
        .group_by(debit.c.sigma_micro, debit.c.sampling_micro)
        .order_by(debit.c.sigma_micro, debit.c.sampling_micro)
    ).all()
    return PatientBudget(
        pid=pid,
        rho_nano=spent,
        rdp_nano=rdp_nano(spent),
        alone_nano=spent + int(relied_on or 0),
        samples=tuple(
            Releases(row.sigma_micro / MICRO, row.times, row.sampling_micro / MICRO)
            for row in kinds
        ),
        sampled_nano=sum(int(row.rho) for row in kinds),
    )
