"""What a cohort question may ask, and what its answers add up to.

Core: pure, no I/O.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

from coop.canonical import Json
from coop.documents.serving import CohortAnswer, CohortQuery
from coop.documents.study import MICRO, CohortGrammar, Study
from coop.errors import CoopError, InvalidInputError, Kind
from inference_gateway import tables

MODEL_ID: Final = r"^[a-z][a-z0-9_-]{0,99}$"
_USE: Final = "infer-aggregate"


class QueryNotAllowedError(InvalidInputError):
    """The question is not in the study's grammar; the message names the predicate."""

    code = "cohort.query-not-allowed"
    kind = Kind.UNPROCESSABLE


class BeyondBudgetError(CoopError):
    """The question costs more privacy than the study's cohort line has; waiting does not help."""

    code = "cohort.beyond-budget"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The hospitals' answers, added up; `sd` is the noise's standard deviation."""

    count: int
    count_sd_micro: int
    mean_risk_micro: int | None = None
    mean_risk_sd_micro: int | None = None
    table: dict[str, Json] | None = None
    """Of a histogram or survival question (`inference_gateway.tables`)."""

    def json(self) -> dict[str, Json]:
        """The members that are there."""
        every: dict[str, Json] = {
            "table": self.table,
            "count": self.count,
            "count_sd_micro": self.count_sd_micro,
            "mean_risk_micro": self.mean_risk_micro,
            "mean_risk_sd_micro": self.mean_risk_sd_micro,
        }
        return {name: value for name, value in every.items() if value is not None}


def check(query: CohortQuery, study: Study) -> None:
    """Return if `query` may be asked under `study`.

    Raises:
        QueryNotAllowedError: A field, an operator or the model does not fit.
        BeyondBudgetError: Its rho alone exceeds the study's cohort line.
    """
    if _USE not in study.uses:
        raise QueryNotAllowedError(f"study.uses: lacks {_USE}; its hospitals would refuse")
    for place, predicate in enumerate(query.where):
        where = f"query.where.{place}"
        if predicate.operator == "is":
            fields, fits = (
                study.cohort.category_fields,
                predicate.text is not None and predicate.number is None,
            )
        else:
            fields, fits = (
                study.cohort.number_fields,
                predicate.number is not None and predicate.text is None,
            )
        if predicate.field not in fields:
            raise QueryNotAllowedError(
                f"{where}.field: {predicate.field} cannot be asked with {predicate.operator}; "
                f"the study's grammar has {_grammar(study.cohort)}"
            )
        if not fits:
            raise QueryNotAllowedError(f"{where}: 'is' takes a text, the others a number")
    _check_release(query, study)
    if query.rho_nano < study.budget.cohort_question_min_nano:
        raise QueryNotAllowedError(
            "query.rho_nano: less than a thousandth of the study's cohort line; "
            f"give at least {study.budget.cohort_question_min_nano}"
        )
    if query.rho_nano > study.budget.cohort_rho_nano:
        raise BeyondBudgetError("query.rho_nano: more than the study's whole cohort line")


def _check_release(query: CohortQuery, study: Study) -> None:
    if problem := query.table_problem(study.cohort):
        raise QueryNotAllowedError(problem)
    if (query.model_id is None) != (query.release != "count-and-mean-risk"):
        raise QueryNotAllowedError("query.model_id: belongs to count-and-mean-risk, and only there")
    if query.model_id is not None and not re.fullmatch(MODEL_ID, query.model_id):
        raise QueryNotAllowedError("query.model_id: is no model's id")


def combine(answers: Sequence[CohortAnswer], query: CohortQuery) -> Combined:
    """Sum of the counts, tables and risks; the mean risk is clamped to [0, 1].

    Each hospital drew its own noise, so variances add. The mean's sd is the first-order one of a
    quotient; it says nothing useful while the count is within its own noise.
    """
    count = sum(answer.count_noised for answer in answers)
    count_sd = isqrt(sum(answer.sigma_count_micro**2 for answer in answers))
    if query.cells:
        parts = [answer.cells_noised or [] for answer in answers]
        cells = [sum(column) for column in zip(*parts, strict=True)]
        return Combined(
            count=count,
            count_sd_micro=isqrt(query.cells * count_sd**2),
            table=tables.read(cells, query, cell_sd_micro=count_sd),
        )
    sums = [
        (answer.risk_sum_noised_micro, answer.sigma_risk_micro)
        for answer in answers
        if answer.risk_sum_noised_micro is not None and answer.sigma_risk_micro is not None
    ]
    if len(sums) < len(answers):
        return Combined(count=count, count_sd_micro=count_sd)
    people = max(count, 1)
    mean = min(max(sum(value for value, _ in sums) // people, 0), MICRO)
    spread = isqrt(sum(sigma**2 for _, sigma in sums) + (mean * count_sd // MICRO) ** 2)
    return Combined(
        count=count,
        count_sd_micro=count_sd,
        mean_risk_micro=mean,
        mean_risk_sd_micro=spread // people,
    )


def spent_nano(answers: Sequence[CohortAnswer]) -> Mapping[str, int]:
    """Rho each hospital has debited: a replayed answer carries its first debit and counts once."""
    debits = {(answer.site, answer.debit_sequence): answer.rho_nano for answer in answers}
    spent: dict[str, int] = {}
    for (site, _), rho in sorted(debits.items()):
        spent[site] = spent.get(site, 0) + rho
    return spent


def _grammar(grammar: CohortGrammar) -> str:
    return (
        f"numbers {', '.join(grammar.number_fields) or 'none'}; "
        f"categories {', '.join(grammar.category_fields) or 'none'}"
    )
