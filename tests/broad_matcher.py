"""How the matcher of the Broad Institute behaves (`DataUseMatcherV4`, as of 2024-10), told anew.

It compares a stated purpose with what a data set allows, field by field; a field may also be unset.
Six questions are asked; only if all say approve does it approve, and any abstention outweighs a
denial. For tests: we never ask it, we say where we differ and why.
"""

from dataclasses import dataclass

from consent.mondo import above

APPROVE, DENY, ABSTAIN = "approve", "deny", "abstain"


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """A purpose, or what a data set allows. None: not stated."""

    general: bool | None = None
    health: bool | None = None
    ancestry: bool | None = None
    methods: bool | None = None
    non_profit: bool | None = None
    diseases: tuple[str, ...] = ()


def match(purpose: DataUse, data: DataUse) -> str:
    disease = _disease(purpose, data)
    answers = [
        disease,
        _health(purpose, data),
        _ancestry(purpose, data),
        _methods(purpose, data, disease),
        _non_profit(purpose, data),
        _is_anything_stated(purpose, data, disease),
    ]
    if all(answer == APPROVE for answer in answers):
        return APPROVE
    return ABSTAIN if ABSTAIN in answers else DENY


def _disease(purpose: DataUse, data: DataUse) -> str:
    # With no disease in the purpose there is nothing to hold against the data's diseases, and
    # nothing found wrong is an approval: this is where it fails open.
    if purpose.diseases and (data.general or data.health):
        return APPROVE
    covered = all(above(disease) & set(data.diseases) for disease in purpose.diseases)
    return APPROVE if covered else DENY


def _health(purpose: DataUse, data: DataUse) -> str:
    if purpose.health is None and data.health is None:
        return APPROVE
    if data.general or (purpose.health and data.health):
        return APPROVE
    too_wide = purpose.general and data.health
    elsewhere = purpose.health and (data.diseases or data.ancestry)
    return DENY if too_wide or elsewhere else APPROVE


def _ancestry(purpose: DataUse, data: DataUse) -> str:
    if purpose.ancestry is None or data.general:
        return APPROVE
    return APPROVE if purpose.ancestry and data.ancestry else DENY


def _methods(purpose: DataUse, data: DataUse, disease: str) -> str:
    if not (purpose.diseases or data.diseases) or not purpose.methods:
        return APPROVE
    if data.general or data.health or data.ancestry:
        return APPROVE
    return disease


def _non_profit(purpose: DataUse, data: DataUse) -> str:
    return DENY if data.non_profit and not purpose.non_profit else APPROVE


def _is_anything_stated(purpose: DataUse, data: DataUse, disease: str) -> str:
    if purpose.diseases:
        return _disease(purpose, data)
    if purpose.health or purpose.general:
        return _health(purpose, data)
    if purpose.ancestry:
        return _ancestry(purpose, data)
    if purpose.methods:
        return _methods(purpose, data, disease)
    if purpose.non_profit is not None or data.non_profit is not None:
        return _non_profit(purpose, data)
    return ABSTAIN
