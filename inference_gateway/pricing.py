"""What an answer costs: the study's own fees, multiplied, never divided.

Core: pure, no I/O.
"""

import math
from typing import Final

from coop.documents.serving import CohortQuery
from coop.documents.study import MICRO, NANO, PICO, Study
from coop.money import NanoCredits

RISK_RELEASES: Final = 2  # a count and a sum share the question's rho equally


def fee_point(study: Study, rows: int) -> NanoCredits:
    """Fee of one point answer: the study's fee for every row."""
    return NanoCredits(study.fee_point_nano * rows)


def fee_cohort(study: Study) -> NanoCredits:
    """Fee of one cohort question, however many hospitals answer; none if none does."""
    return NanoCredits(study.fee_cohort_nano)


def sd_count_micro(query: CohortQuery, sites: int) -> int:
    """Standard deviation of the summed noisy count if `sites` hospitals answer.

    Each draws Gaussian noise of its own: sigma = 1/sqrt(2 rho) for a patient who counts once
    (zCDP), rho halved where a risk sum is asked too; over k sites the variances add.
    """
    rho = query.rho_nano / NANO / _releases(query)
    return math.ceil(math.sqrt(max(query.cells, 1) * sites / (2 * rho)) * MICRO)


def sigma_micro(query: CohortQuery) -> int:
    """The standard deviation each hospital must draw for each number, in its unit, rounded up.

    The same integers as `federated.accounting.sigma_micro_for`, which a hospital draws by.
    """
    rho = query.rho_nano // _releases(query)
    squared = -(-MICRO * MICRO * NANO // (2 * rho))
    root = math.isqrt(squared)
    return root if root * root == squared else root + 1


def _releases(query: CohortQuery) -> int:
    """Among how many numbers a patient can change the rho is shared; a table is one of them."""
    return RISK_RELEASES if query.release == "count-and-mean-risk" else 1


def epsilon_micro(rho_nano: int, delta_pico: int) -> int:
    """Upper bound of the epsilon a patient pays: rho + 2 sqrt(rho ln(1/delta)), rounded up.

    Bun & Steinke 2016, proposition 1.3. The hospitals account in rho; this is for people.
    """
    rho = rho_nano / NANO
    return math.ceil((rho + 2 * math.sqrt(rho * math.log(PICO / delta_pico))) * MICRO)
