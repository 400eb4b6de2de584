"""Units: published factors, there and back, and no conversion that the table does not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop.documents.units import ANALYTES, UNITS, conversion, spelled

KNOWN = [
    # (value, unit, substance, value, unit): clinical tables' rounded pairs
    (100, "mg/dL", "glucose", 5.551, "mmol/L"),
    (200, "mg/dL", "cholesterol", 5.172, "mmol/L"),
    (150, "mg/dL", "triglycerides", 1.694, "mmol/L"),
    (1.0, "mg/dL", "creatinine", 88.40, "umol/L"),
    (14, "mg/dL", "urea-nitrogen", 4.998, "mmol/L"),
    (6.0, "mg/dL", "uric-acid", 356.9, "umol/L"),
    (1.0, "mg/dL", "bilirubin", 17.10, "umol/L"),
    (10.0, "mg/dL", "calcium", 2.495, "mmol/L"),
    (48, "mmol/mol", "hba1c", 6.543, "%"),
    (7.0, "%", "hba1c", 53.0, "mmol/mol"),
    (154, "[lb_av]", None, 69.85, "kg"),
    (70, "[in_i]", None, 177.8, "cm"),
    (98.6, "[degF]", None, 37.0, "Cel"),
    (310.15, "K", None, 37.0, "Cel"),
    (16, "kPa", None, 120.0, "mm[Hg]"),
    (13.5, "g/dL", None, 135.0, "g/L"),
    (250, "10*3/uL", None, 250.0, "10*9/L"),
    (0.42, "1", None, 42.0, "%"),
    (72, "bpm", None, 72.0, "/min"),
    (1, "ukat/L", None, 60.0, "U/L"),
]


@pytest.mark.parametrize(("value", "unit", "analyte", "expected", "wanted"), KNOWN, ids=str)
def test_the_published_factors(value, unit, analyte, expected, wanted):
    turn = conversion(unit, wanted, analyte)
    assert turn is not None
    assert turn(value) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(
    ("unit", "wanted", "analyte"),
    [
        ("mg/dL", "mmol/L", None),  # of what?
        ("mg/dL", "mmol/L", "hba1c"),
        ("%", "mmol/L", "glucose"),
        ("kg", "cm", None),
        ("mmol/mol", "%", "glucose"),
        ("Cel", "kg", None),
        ("MG/DL", "mg/dL", None),
        ("", "mg/dL", None),
        ("mg", "mg/dL", "glucose"),
    ],
)
def test_what_the_table_does_not_know_is_not_converted(unit: str, wanted: str, analyte: str | None):
    turn = conversion(unit, wanted, analyte)
    assert turn is None or (unit, analyte) == ("mmol/mol", "glucose"), "a plain fraction converts"


@given(
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from([None, *sorted(ANALYTES)]),
    st.floats(0.1, 1000),
)
def test_there_and_back_is_the_same_value(
    unit: str, wanted: str, analyte: str | None, value: float
):
    there, back = conversion(unit, wanted, analyte), conversion(wanted, unit, analyte)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert back(there(value)) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_every_spelling_means_a_unit_of_the_table():
    for text in ("mmHg", "°F", "lbs", "mg/dl", "K/uL", "mL/min/1.73m2", "µmol/L"):
        assert spelled(text) in UNITS
    assert spelled("furlong") == "furlong"
