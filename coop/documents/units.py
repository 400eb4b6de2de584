"""Units of measure and how one becomes another: a small public table, exact fractions.

UCUM codes (https://ucum.org), case sensitive, and the spellings that laboratories write instead of
them. What is not in the table has no conversion: the value is missing, never guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final


def _of(text: str) -> Fraction:
    return Fraction(text)


_LINEAR: Final[Mapping[str, Mapping[str, Fraction]]] = {
    # dimension: {unit: how many of the dimension's first unit it is}
    "mass": {
        "kg": _of("1"), "g": _of("1/1000"), "mg": _of("1/1000000"),
        "[lb_av]": _of("0.45359237"), "[oz_av]": _of("0.028349523125"),
    },
    "length": {
        "m": _of("1"), "cm": _of("1/100"), "mm": _of("1/1000"),
        "[in_i]": _of("0.0254"), "[ft_i]": _of("0.3048"),
    },
    "pressure": {
        "mm[Hg]": _of("1"), "kPa": 1000 / _of("133.322387415"),
        "cm[H2O]": _of("98.0665") / _of("133.322387415"),
    },
    "time": {
        "d": _of("1"), "h": _of("1/24"), "min": _of("1/1440"), "s": _of("1/86400"),
        "wk": _of("7"), "mo": _of("30.4375"), "a": _of("365.25"),
    },
    "mass concentration": {
        "g/L": _of("1"), "mg/dL": _of("1/100"), "g/dL": _of("10"), "mg/L": _of("1/1000"),
        "ug/dL": _of("1/100000"), "ug/L": _of("1/1000000"), "ng/mL": _of("1/1000000"),
        "ug/mL": _of("1/1000"), "mg/mL": _of("1"), "ng/dL": _of("1/100000000"),
        "ng/L": _of("1/1000000000"), "pg/mL": _of("1/1000000000"),
    },
    "substance concentration": {
        "mmol/L": _of("1"), "mol/L": _of("1000"), "umol/L": _of("1/1000"),
        "nmol/L": _of("1/1000000"), "pmol/L": _of("1/1000000000"), "mmol/dL": _of("10"),
    },
    "number concentration": {
        "10*9/L": _of("1"), "10*3/uL": _of("1"), "/uL": _of("1/1000"),
        "10*6/uL": _of("1000"), "10*12/L": _of("1000"),
    },
    "catalytic concentration": {
        "U/L": _of("1"), "[iU]/L": _of("1"), "ukat/L": _of("60"), "m[iU]/L": _of("1/1000"),
        "u[iU]/mL": _of("1/1000"), "[iU]/mL": _of("1000"),
    },
    "rate": {"/min": _of("1"), "{beats}/min": _of("1"), "{breaths}/min": _of("1")},
    "fraction": {"%": _of("1"), "1": _of("100"), "mmol/mol": _of("1/10")},
    "body mass index": {"kg/m2": _of("1")},
    "clearance": {"mL/min/{1.73_m2}": _of("1"), "mL/min/1.73.m2": _of("1")},
    "flow": {"L/min": _of("1"), "mL/min": _of("1/1000")},
    "volume": {"L": _of("1"), "dL": _of("1/10"), "mL": _of("1/1000")},
    "entitic volume": {"fL": _of("1")},
    "entitic mass": {"pg": _of("1")},
    "potential": {"mV": _of("1")},
}  # fmt: skip
_TEMPERATURE: Final[Mapping[str, tuple[Fraction, Fraction]]] = {
    # unit: (a, b) with °C = a · value + b
    "Cel": (_of("1"), _of("0")),
    "[degF]": (_of("5/9"), _of("-160/9")),
    "K": (_of("1"), _of("-273.15")),
}
_MOLAR_MASS: Final[Mapping[str, Fraction]] = {
    # g/mol; for cholesterol in whatever particle, triglycerides as triolein, urea as its nitrogen
    "glucose": _of("180.156"),
    "cholesterol": _of("386.654"),
    "triglycerides": _of("885.43"),
    "creatinine": _of("113.12"),
    "urea": _of("60.056"),
    "urea-nitrogen": _of("28.014"),
    "uric-acid": _of("168.11"),
    "bilirubin": _of("584.66"),
    "calcium": _of("40.078"),
    "magnesium": _of("24.305"),
    "phosphorus": _of("30.974"),
    "iron": _of("55.845"),
}
_GLYCATED: Final = "hba1c"
"""Its % (NGSP) and mmol/mol (IFCC) are two scales: % = 0.09148 · mmol/mol + 2.152."""
_NGSP: Final = (_of("0.09148"), _of("2.152"))
_SPELLINGS: Final[Mapping[str, str]] = {
    "mmHg": "mm[Hg]", "mm Hg": "mm[Hg]", "cmH2O": "cm[H2O]", "lb": "[lb_av]", "lbs": "[lb_av]",
    "oz": "[oz_av]", "in": "[in_i]", "[in_us]": "[in_i]", "inches": "[in_i]", "ft": "[ft_i]",
    "°C": "Cel", "degC": "Cel", "°F": "[degF]", "degF": "[degF]", "bpm": "/min",
    "beats/min": "/min", "beats/minute": "/min", "breaths/min": "/min", "/minute": "/min",
    "kg/m²": "kg/m2", "kg/m^2": "kg/m2", "years": "a", "year": "a", "yr": "a", "months": "mo",
    "weeks": "wk", "days": "d", "hours": "h", "percent": "%", "mg/dl": "mg/dL", "g/dl": "g/dL",
    "g/l": "g/L", "mg/l": "mg/L", "mmol/l": "mmol/L", "umol/l": "umol/L", "µmol/L": "umol/L",
    "μmol/L": "umol/L", "µg/L": "ug/L", "μg/L": "ug/L", "µg/dL": "ug/dL", "IU/L": "[iU]/L",
    "U/l": "U/L", "K/uL": "10*3/uL", "10^9/L": "10*9/L", "10^3/uL": "10*3/uL",
    "x10^9/L": "10*9/L", "mL/min/1.73m2": "mL/min/{1.73_m2}", "mL/min/1.73 m2": "mL/min/{1.73_m2}",
}  # fmt: skip
ANALYTES: Final = frozenset({*_MOLAR_MASS, _GLYCATED})
"""Substances whose mass and amount convert into each other."""
_DIMENSION: Final = {unit: name for name, units in _LINEAR.items() for unit in units}
UNITS: Final = frozenset({*_DIMENSION, *_TEMPERATURE})
"""Every unit a study may ask for."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """`factor · value + offset`."""

    factor: float
    offset: float

    def __call__(self, value: float) -> float:
        """The value in the other unit."""
        return self.factor * value + self.offset


def spelled(unit: str) -> str:
    """The UCUM code of a unit as written, or the text itself."""
    return unit if unit in UNITS else _SPELLINGS.get(unit, unit)


def conversion(unit: str, wanted: str, analyte: str | None = None) -> Conversion | None:
    """How a value in `unit` becomes one in `wanted`; None if that is not known.

    Args:
        unit: As the record says.
        wanted: A member of `UNITS`.
        analyte: A member of `ANALYTES`, needed only between mass and amount, and for HbA1c.
    """
    unit = spelled(unit)
    if unit == wanted:
        return Conversion(1.0, 0.0)
    if analyte == _GLYCATED:
        return _glycated(unit, wanted)
    if unit in _TEMPERATURE and wanted in _TEMPERATURE:
        (a, b), (c, d) = _TEMPERATURE[unit], _TEMPERATURE[wanted]
        return Conversion(float(a / c), float((b - d) / c))
    factor = _factor(unit, wanted, _MOLAR_MASS.get(analyte or ""))
    return None if factor is None else Conversion(float(factor), 0.0)


def _glycated(unit: str, wanted: str) -> Conversion | None:
    slope, start = _NGSP
    match unit, wanted:
        case "mmol/mol", "%":
            return Conversion(float(slope), float(start))
        case "%", "mmol/mol":
            return Conversion(float(1 / slope), float(-start / slope))
        case _:
            return None


def _factor(unit: str, wanted: str, molar_mass: Fraction | None) -> Fraction | None:
    of, to = _DIMENSION.get(unit), _DIMENSION.get(wanted)
    if of is None or to is None:
        return None
    ratio = _LINEAR[of][unit] / _LINEAR[to][wanted]
    if of == to:
        return ratio
    if molar_mass is None:
        return None
    match of, to:
        case "mass concentration", "substance concentration":  # g/L to mmol/L
            return ratio * 1000 / molar_mass
        case "substance concentration", "mass concentration":
            return ratio * molar_mass / 1000
        case _:
            return None
