"""What a hospital accepts of a study: purposes it understands, a price within its own limits.

Core: pure, no I/O.
"""

import re
from decimal import Decimal
from typing import Any, Final

from consent.duo import Reading, asserted
from consent.purposes import USES
from coop.documents.study import MICRO, PICO, Study
from coop.errors import CoopError, Kind
from federated.accounting import LIFETIME_DELTA, plan, price_of

EPSILON_MAX_MICRO: Final = 3 * MICRO  # opt-in ceiling of one study (DESIGN §11)
_STUDY_ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_DELTA_PATIENTS: Final = 10  # delta <= 1/(10 n): less than a tenth of one patient exposed


class StudyExpiredError(CoopError):
    """The study's time is over."""

    code = "approval.study-expired"
    kind = Kind.CONFLICT


class UnknownPurposeError(CoopError):
    """The study names a purpose or use this hospital's software does not understand."""

    code = "approval.unknown-purpose"
    kind = Kind.UNPROCESSABLE


class PurposeForPeopleError(CoopError):
    """The study asserts no purpose, or one that only an access committee can judge."""

    code = "approval.purpose-for-people"
    kind = Kind.UNPROCESSABLE


class ProposerNameError(CoopError):
    """The proposer's name could be a study's: a permission for one is not the other's."""

    code = "approval.proposer-name"
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
    match asserted(study.purpose, study.disease, tuple(study.further_purposes)).reading:
        case Reading.UNKNOWN:
            found.append(UnknownPurposeError("purpose: not a purpose this software understands"))
        case Reading.PEOPLE:
            found.append(
                PurposeForPeopleError(
                    "purpose: people judge it; a new version must say which permission it needs"
                )
            )
        case Reading.CLEAR:
            pass
    if _STUDY_ID.fullmatch(study.proposer.strip()):
        found.append(ProposerNameError("proposer: has a study id's form"))
    if unknown := sorted(set(study.uses) - set(USES)):
        found.append(UnknownPurposeError(f"uses: {unknown[0][:40]!r} is not a use we know"))
    return found + _too_dear(study, cap_micro)


def _too_dear(study: Study, cap_micro: int) -> list[CoopError]:
    """What of its budget is beyond this hospital's limits, or impossible."""
    found: list[CoopError] = []
    if study.budget.epsilon_micro > cap_micro:
        found.append(
            PriceTooHighError("budget.epsilon: above this hospital's own cap for one study")
        )
    delta_max = min(LIFETIME_DELTA, 1 / (_DELTA_PATIENTS * study.recipe.population))
    if study.budget.delta_pico / PICO > delta_max:
        found.append(PriceTooHighError(f"budget.delta: must be at most {delta_max:.0e}"))
    try:
        together = price_of(study.budget, study.recipe.schedule).together_micro
    except CoopError as error:
        found.append(error)
    else:
        # The cap bounds what a patient can lose to this study version, whatever of it she joins.
        if together > cap_micro >= study.budget.epsilon_micro:
            found.append(
                PriceTooHighError(
                    "budget.cohort_rho: with training and evaluation it costs a patient epsilon "
                    f"{_decimal(together, MICRO)}, above this hospital's own cap for one study "
                    f"({_decimal(cap_micro, MICRO)})"
                )
            )
    return found


def price(study: Study) -> dict[str, Any]:
    """What the study costs one patient, in the words an approver reads."""
    split = plan(study.budget, study.recipe.schedule)
    cost = price_of(study.budget, study.recipe.schedule)
    return {
        "epsilon": {
            "training_and_evaluation": _decimal(cost.plan_micro, MICRO),
            "cohort_questions": _decimal(cost.cohort_micro, MICRO),
            "together": _decimal(cost.together_micro, MICRO),
        },
        "delta": _decimal(study.budget.delta_pico, PICO),
        "relation": "add/remove one patient, all her records",
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
