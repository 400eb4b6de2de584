"""The hospital's own view of its data: how complete it is, what was refused, whether it moved.

Exact, and never sent anywhere. A profile of the rows is kept for every data version, so that an
approval can be held against the data it was given for.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from coop.db import metadata
from coop.documents.study import MICRO, CategoryFeature, FlagFeature, NumberFeature, Study
from federated.records import each_row

MISSING_SHIFT_MAX: Final = 0.10
"""Of the share of patients without a value: ten points more or less is other data."""
MEAN_SHIFT_MAX: Final = 0.25
"""Of a number's mean, in the study's public scale (the outcome's: in its own deviation then)."""
SHARE_SHIFT_MAX: Final = 0.10
"""Of the share of any value of a category or flag."""
_PATIENTS_MIN: Final = 20  # with fewer, chance alone moves a mean this far
_VALUES_MAX: Final = 100

data_profile = sa.Table(
    "data_profile",
    metadata,
    sa.Column("extract", sa.String(64), primary_key=True),
    sa.Column("data_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("profile", sa.Text, nullable=False),
)
"""Figures of all rows of an extract, as they stood from this data version on."""

import_report = sa.Table(
    "import_report",
    metadata,
    sa.Column("extract", sa.String(64), primary_key=True),
    sa.Column("report", sa.Text, nullable=False),
)
"""What the newest import of an extract read, converted and refused."""

Profile = Mapping[str, Any]
R = TypeVar("R", bound=Mapping[str, object])


@dataclass(slots=True)
class _Figures:
    """Of one field; sums are exact enough for a comparison and need no second pass."""

    present: int = 0
    total: float = 0.0
    squares: float = 0.0
    shares: Counter[str] = field(default_factory=Counter)

    def take(self, value: object) -> None:
        self.present += 1
        if isinstance(value, str | bool):
            key = str(value).lower()
            if key in self.shares or len(self.shares) < _VALUES_MAX:
                self.shares[key] += 1
        elif isinstance(value, int | float):
            self.total += value
            self.squares += value * value

    def said(self) -> dict[str, Any]:
        if self.shares:
            parts = {name: count / self.present for name, count in sorted(self.shares.items())}
            return {"present": self.present, "shares": parts}
        mean = self.total / self.present
        variance = max(0.0, self.squares / self.present - mean * mean)
        return {"present": self.present, "mean": mean, "deviation": math.sqrt(variance)}


class Tally:
    """How many patients there are, and each field's presence and mean or shares."""

    def __init__(self) -> None:
        self.patients = 0
        self._fields: dict[str, _Figures] = {}

    def each(self, rows: Iterable[tuple[str, R]]) -> Iterator[tuple[str, R]]:
        """The same rows, counted on their way."""
        for key, row in rows:
            self.take(row)
            yield key, row

    def take(self, row: Mapping[str, object]) -> None:
        """Count one patient."""
        self.patients += 1
        for name, value in row.items():
            if value is not None:
                self._fields.setdefault(name, _Figures()).take(value)

    def profile(self) -> dict[str, Any]:
        """The figures so far."""
        fields = {name: figures.said() for name, figures in sorted(self._fields.items())}
        return {"patients": self.patients, "fields": fields}


def remember(connection: sa.Connection, extract: str, data_version: int) -> None:
    """Keep the profile of the extract as it stands now, in the unit of work that changed it."""
    text = orjson.dumps(of_extract(connection, extract)).decode()
    connection.execute(
        sa.insert(data_profile).values(extract=extract, data_version=data_version, profile=text)
    )


def of_extract(connection: sa.Connection, extract: str) -> dict[str, Any]:
    """The figures of all rows of an extract as they stand."""
    tally = Tally()
    for row in each_row(connection, extract):
        tally.take(row)
    return tally.profile()


def profile_at(connection: sa.Connection, extract: str, data_version: int) -> Profile | None:
    """The profile in force at a data version; None if nothing had been imported by then."""
    text = connection.scalar(
        sa.select(data_profile.c.profile)
        .where(data_profile.c.extract == extract, data_profile.c.data_version <= data_version)
        .order_by(data_profile.c.data_version.desc())
        .limit(1)
    )
    return None if text is None else dict(orjson.loads(text))


def keep_report(connection: sa.Connection, extract: str, report: Mapping[str, Any]) -> None:
    """Keep what the newest import of the extract did."""
    connection.execute(sa.delete(import_report).where(import_report.c.extract == extract))
    text = orjson.dumps(report).decode()
    connection.execute(sa.insert(import_report).values(extract=extract, report=text))


def reports(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """The newest import of each extract."""
    return {
        str(row.extract): orjson.loads(row.report)
        for row in connection.execute(sa.select(import_report))
    }


def drift(study: Study, then: Profile, now: Profile) -> list[dict[str, Any]]:
    """What of a study's data moved beyond the bounds above since `then`.

    Returns:
        {"field", "what", "then", "now"} each; empty while the data is what was approved.
    """
    if min(then["patients"], now["patients"]) < _PATIENTS_MIN:
        return []
    found: list[dict[str, Any]] = []
    for feature in study.schema_.features:
        before, after = (part["fields"].get(feature.name) for part in (then, now))
        found += _moved(feature.name, "missing", *_missing(before, after, then, now))
        match feature:
            case NumberFeature():
                scale = feature.scale_micro / MICRO
                found += _moved_mean(feature.name, before, after, scale)
            case CategoryFeature() | FlagFeature():
                found += _moved_shares(feature.name, before, after)
    for name in study.label.fields:
        before, after = (part["fields"].get(name) for part in (then, now))
        found += _moved(name, "missing", *_missing(before, after, then, now))
        deviation = 0.0 if before is None else float(before.get("deviation", 0.0))
        found += _moved_mean(name, before, after, deviation)
        found += _moved_shares(name, before, after)
    return found


def _missing(
    before: Profile | None, after: Profile | None, then: Profile, now: Profile
) -> tuple[float, float, float]:
    had = 0 if before is None else before["present"]
    has = 0 if after is None else after["present"]
    return 1 - had / then["patients"], 1 - has / now["patients"], MISSING_SHIFT_MAX


def _moved_mean(
    name: str, before: Profile | None, after: Profile | None, scale: float
) -> Iterator[dict[str, Any]]:
    if before and after and "mean" in before and "mean" in after and scale > 0:
        bound = MEAN_SHIFT_MAX * scale
        yield from _moved(name, "mean", before["mean"], after["mean"], bound)


def _moved_shares(
    name: str, before: Profile | None, after: Profile | None
) -> Iterator[dict[str, Any]]:
    had, has = (part.get("shares", {}) if part else {} for part in (before, after))
    for value in sorted({*had, *has} if had and has else ()):
        shares = had.get(value, 0.0), has.get(value, 0.0)
        yield from _moved(name, f"share of {value}", *shares, SHARE_SHIFT_MAX)


def _moved(name: str, what: str, then: float, now: float, bound: float) -> Iterator[dict[str, Any]]:
    if abs(now - then) > bound:
        yield {"field": name, "what": what, "then": round(then, 4), "now": round(now, 4)}
