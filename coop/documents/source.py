"""Where a study's fields come from in a hospital's records: codes, unit, which value, and when.

A study that states this for every field needs no table made for it: the hospital's node extracts
one row a patient from a FHIR export or an OMOP database. Days are counted from the patient's index
day; day 0 is the index day itself.
"""

from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from coop.documents.units import ANALYTES, UNITS

DAYS_MAX: Final = 36_525  # a hundred years: no bound in practice
SEXES: Final = ("female", "male", "other")
"""Values of the attribute `sex`; anything else is missing."""

System = Literal["loinc", "snomed", "icd10", "rxnorm", "atc", "omop"]
"""Code systems; `icd10` is ICD-10 and its national editions, dots do not matter."""
Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}\*?$")]
"""One code; `E11*` is every code that begins so."""
CodeSet = Annotated[
    dict[System, Annotated[list[Code], Field(min_length=1, max_length=1024)]], Field(min_length=1)
]
Event = Literal["condition", "observation", "medication"]
Pick = Literal["latest", "first", "mean", "lowest", "highest", "count", "ever"]


S = TypeVar("S", bound="Source | None")


class _Stated(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Stated):
    """What of a patient's records gives one field its value.

    | field    | what it may be                                                                    |
    |----------|-----------------------------------------------------------------------------------|
    | number   | `patient` age_years; a coded observation in a unit; the count of coded records    |
    | category | `patient` sex; the coded value of an observation; which coded record there is     |
    | flag     | whether there is a coded record                                                   |
    """

    table: Literal["patient", "condition", "observation", "medication", "encounter"]
    attribute: Literal["age_years", "sex"] | None = None
    """Of `patient`: whole years on the index day, or administrative sex."""
    codes: CodeSet | None = None
    """Which records count."""
    values: dict[str, CodeSet] | None = Field(default=None, min_length=1, max_length=64)
    """Of a category: the codes that mean each value."""
    pick: Pick | None = None
    """Of several in the window; `latest` by default, `ever` for a flag."""
    unit: str | None = None
    """UCUM unit of the study's numbers; records in another unit are converted or left out."""
    analyte: str | None = None
    """The substance, where mass becomes amount (mg/dL, mmol/L)."""
    low_micro: int | None = None
    high_micro: int | None = None
    """A value beyond these is an error of the record and left out."""
    from_day: int = Field(default=-DAYS_MAX, ge=-DAYS_MAX, le=DAYS_MAX)
    to_day: int = Field(default=0, ge=-DAYS_MAX, le=DAYS_MAX)
    """First and last day of the window, both included."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.table == "patient") != (self.attribute is not None):
            raise ValueError("attribute: age_years or sex, of the table patient only")
        if self.table in {"patient", "encounter"} and (self.codes or self.values):
            raise ValueError("codes: not of this table")
        if self.from_day > self.to_day:
            raise ValueError("from_day: must not be after to_day")
        if self.unit is not None and self.unit not in UNITS:
            raise ValueError("unit: not a unit of docs/study-file.md")
        if self.analyte is not None and self.analyte not in ANALYTES:
            raise ValueError("analyte: not a substance of docs/study-file.md")
        return self


class LabelSource(Source):
    """What of a patient's records is her outcome; by default anything after the index day."""

    from_day: int = Field(default=1, ge=-DAYS_MAX, le=DAYS_MAX)
    to_day: int = Field(default=DAYS_MAX, ge=-DAYS_MAX, le=DAYS_MAX)
    seen_until_day: int | None = Field(default=None, ge=0, le=DAYS_MAX)
    """A patient without the outcome counts only if a record of hers lies on this day or later;
    whoever was not seen again is unknown, not well."""


class Index(_Stated):
    """The day from which a patient's days are counted; a patient without one is not in the study.

    `first-record` is the day of the first record with one of `codes`; `date` is one day for all.
    """

    event: Literal["first-encounter", "last-encounter", "first-record", "date"]
    table: Event | None = None
    codes: CodeSet | None = None
    at: int | None = None
    """UTC seconds of the midnight that begins the day."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        coded = self.event == "first-record"
        if coded != (self.table is not None) or coded != (self.codes is not None):
            raise ValueError("codes: with their table, for first-record only")
        if (self.event == "date") != (self.at is not None):
            raise ValueError("at: for date only")
        return self


def _check_flag(source: Source | None) -> Source | None:
    if source is not None:
        _refuse(source, "unit", "analyte", "low_micro", "high_micro", "values", "attribute")
        if source.pick not in {None, "ever"}:
            raise ValueError("pick: ever, for a flag")
        _need_codes(source)
    return source


def _check_number(source: S) -> S:
    if source is None:
        return source
    _refuse(source, "values")
    if source.pick == "ever":
        raise ValueError("pick: ever is for a flag; count the records instead")
    if source.table == "patient":
        if source.attribute != "age_years":
            raise ValueError("attribute: age_years is a number")
        _refuse(source, "unit", "pick", "analyte")
        return source
    _need_codes(source)
    if source.pick == "count":
        _refuse(source, "unit", "analyte", "low_micro", "high_micro")
    elif source.table != "observation":
        raise ValueError("pick: count, of this table")
    elif source.unit is None:
        raise ValueError("unit: needed, for a number of observations")
    return source


def _check_category(source: Source | None) -> Source | None:
    if source is None:
        return None
    _refuse(source, "unit", "analyte", "low_micro", "high_micro")
    if source.table == "patient":
        if source.attribute != "sex":
            raise ValueError("attribute: sex is a category")
        _refuse(source, "pick")
        return source
    if source.pick not in {None, "latest", "first"}:
        raise ValueError("pick: latest or first, for a category")
    if source.values is None:
        raise ValueError("values: needed, the codes of each value")
    if (source.table == "observation") != (source.codes is not None):
        raise ValueError("codes: of observations; other records are named by their values")
    return source


def _need_codes(source: Source) -> None:
    if source.table != "encounter" and source.codes is None:
        raise ValueError("codes: needed")


def _refuse(source: Source, *names: str) -> None:
    for name in names:
        if getattr(source, name) is not None:
            raise ValueError(f"{name.removesuffix('_micro')}: not for such a field")


NumberSource = Annotated[Source | None, AfterValidator(_check_number)]
CategorySource = Annotated[Source | None, AfterValidator(_check_category)]
FlagSource = Annotated[Source | None, AfterValidator(_check_flag)]
OutcomeSource = Annotated[LabelSource | None, AfterValidator(_check_number)]
"""A source that can give a field of the kind; None where the study reads an imported table."""
