"""What a hospital accepts of a study: purposes it understands, a price within its own limits.

Core: pure, no I/O.
"""

import math
from decimal import Decimal
from typing import Any, Final

from consent.purposes import USES, closure
from coop.documents.study import MICRO, PICO, Study
from coop.errors import CoopError, Kind
from federated.accounting import LIFETIME_DELTA, epsilon_of_rho, plan

EPSILON_MAX_MICRO: Final = 3 * MICRO  # opt-in ceiling of one study (DESIGN §11)
_DELTA_PATIENTS: Final = 10  # delta <= 1/(10 n): less than a tenth of one patient exposed
_EPSILON_SHOWN_MAX: Final = 1e6  # a line without any noise is "infinite"; integers are not


class StudyExpiredError(CoopError):
    """The study's time is over."""

    code = "approval.study-expired"
    kind = Kind.CONFLICT


class UnknownPurposeError(CoopError):
    """The study names a purpose or use this hospital's software does not understand."""

    code = "approval.unknown-purpose"
    kind = Kind.UNPROCESSABLE


class PriceTooHighError(CoopError):
    """The study costs a patient more privacy than this hospital's own policy allows."""

    code = "approval.price-too-high"
    kind = Kind.FORBIDDEN


def refusals(study: Study, cap_micro: int, now: int | None) -> list[CoopError]:
    """Every reason to refuse the study, the first one first."""
    found: list[CoopError] = []
    if now is not None and now >= study.expires:
        found.append(StudyExpiredError("expires: the study is over"))
    if not closure(study.purpose, study.disease):
        found.append(UnknownPurposeError("purpose: not a purpose this software understands"))
    if unknown := sorted(set(study.uses) - set(USES)):
        found.append(UnknownPurposeError(f"uses: {unknown[0][:40]!r} is not a use we know"))
    if study.budget.epsilon_micro > cap_micro:
        found.append(
            PriceTooHighError("budget.epsilon: above this hospital's own cap for one study")
        )
    if cohort_epsilon_micro(study) > cap_micro:
        found.append(PriceTooHighError("budget.cohort_rho: above this hospital's own cap"))
    delta_max = min(LIFETIME_DELTA, 1 / (_DELTA_PATIENTS * study.recipe.population))
    if study.budget.delta_pico / PICO > delta_max:
        found.append(PriceTooHighError(f"budget.delta: must be at most {delta_max:.0e}"))
    try:
        plan(study.budget, study.recipe.rounds)
    except CoopError as error:
        found.append(error)
    return found


def cohort_epsilon_micro(study: Study) -> int:
    """What the line of cohort questions costs by itself."""
    epsilon = epsilon_of_rho(study.budget.cohort_rho_nano, study.budget.delta_pico / PICO)
    return math.ceil(min(epsilon, _EPSILON_SHOWN_MAX) * MICRO)


def price(study: Study) -> dict[str, Any]:
    """What the study costs one patient, in the words an approver reads."""
    split = plan(study.budget, study.recipe.rounds)
    return {
        "epsilon": _decimal(study.budget.epsilon_micro, MICRO),
        "delta": _decimal(study.budget.delta_pico, PICO),
        "relation": "add/remove one patient, all her records",
        "cohort_epsilon": _decimal(cohort_epsilon_micro(study), MICRO),
        "plan": {
            "rounds": split.rounds,
            "clip": _decimal(study.recipe.clip_micro, MICRO),
            "training_sigma": _decimal(split.training_sigma_micro, MICRO),
            "evaluation_sigma": _decimal(split.evaluation_sigma_micro, MICRO),
            "rho_round_nano": split.rho_round_nano,
            "rho_evaluation_nano": split.rho_evaluation_nano,
            "rho_reserve_nano": split.rho_reserve_nano,
            "cohort_rho_nano": study.budget.cohort_rho_nano,
        },
    }


def _decimal(value: int, unit: int) -> str:
    return format((Decimal(value) / unit).normalize(), "f")
