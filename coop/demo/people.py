"""The demo's simulated patients: one own key for every record, and what each of them chooses.

The choices follow from the position in the file, so that two demos tell the same story: about one
in twelve refuses, one in ten allows training but no questions, one in fifteen excludes companies,
and two at each hospital stay un-enrolled so that a browser can join. Their signatures are real;
their keys are marked `custody: demo` and live only in the demo's folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from coop.keys import SigningKey

UNENROLLED_PER_SITE: Final = 2
ADA_AT: Final = "cleveland"
"""Ada's hospital: the first of its file's patients is Ada."""
_REFUSE_EVERY: Final = 12
_TRAIN_ONLY_EVERY: Final = 10
_NO_COMPANIES_EVERY: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A simulated patient: her record number at her hospital, her own key, what she decides."""

    site: str
    record_key: str
    key: SigningKey
    preset: str


def choice(position: int) -> str:
    """The consent preset (`consent.policy`) of the patient at `position` of her hospital's file."""
    if position % _REFUSE_EVERY == _REFUSE_EVERY - 1:
        return "refuse"
    if position % _TRAIN_ONLY_EVERY == _TRAIN_ONLY_EVERY - 1:
        return "train-only"
    if position % _NO_COMPANIES_EVERY == _NO_COMPANIES_EVERY - 1:
        return "no-companies"
    return "all-research"


def people(site: str, record_keys: Sequence[str]) -> Iterator[Person]:
    """Everyone at `site` who enrols; the last two records stay un-enrolled."""
    for position, record_key in enumerate(record_keys[:-UNENROLLED_PER_SITE]):
        yield Person(
            site=site, record_key=record_key, key=SigningKey.generate(), preset=choice(position)
        )
