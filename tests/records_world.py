"""A small study on records, and FHIR resources to extract it from."""

from pathlib import Path
from typing import Any

import orjson
import yaml

from coop.documents.study import Study
from coop.studyfile import load_study

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "diabetes-fhir.yaml"
NOW = 1_800_000_000  # 2027-01-15
LOINC, ICD10, UCUM = (
    "http://loinc.org",
    "http://hl7.org/fhir/sid/icd-10-cm",
    "http://unitsofmeasure.org",
)
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"


def number(name: str, **source: Any) -> dict[str, Any]:
    """A number feature from a source."""
    scale = {"center": "50", "scale": "10", "clip": "2.5", "gain": "0.5"}
    return {"kind": "number", "name": name, **scale, "source": source}


def glucose(**more: Any) -> dict[str, Any]:
    """A feature from fasting glucose in mg/dL."""
    codes = {"loinc": ["1558-6"]}
    return number("glucose", table="observation", codes=codes, unit="mg/dL", **more)


def written(folder: Path, **changes: Any) -> Path:
    """The example study with other features, label or index."""
    study = yaml.safe_load(EXAMPLE.read_text())
    study["expires"] = str(study["expires"])
    study["ethics_sha256"] = "0" * 64
    del study["ethics_document"]
    features = changes.pop("features", None)
    if features is not None:
        age, sex = study["features"]["features"][:2]
        study["features"]["features"] = [age, sex, *features]
        study["cohort"] = {"number_fields": ["age_years"], "category_fields": ["sex"]}
    study |= changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def study_of(folder: Path, **changes: Any) -> Study:
    """The same, read."""
    return Study.model_validate(load_study(written(folder, **changes)))


def patient(name: str, born: str | None = "1970-03-02", **more: Any) -> dict[str, Any]:
    """A Patient."""
    birth = {} if born is None else {"birthDate": born}
    return {"resourceType": "Patient", "id": name, "gender": "female", **birth, **more}


def encounter(name: str, start: str = "2020-05-10T09:00:00Z", **more: Any) -> dict[str, Any]:
    """An Encounter of a patient."""
    record = {"resourceType": "Encounter", "status": "finished", "period": {"start": start}}
    return {**record, "subject": {"reference": f"Patient/{name}"}, **more}


def observation(
    name: str,
    value: object = 100,
    unit: str = "mg/dL",
    at: str = "2020-05-01",
    code: str = "1558-6",
    **more: Any,
) -> dict[str, Any]:
    """An Observation with a quantity."""
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": code}]},
        "subject": {"reference": f"Patient/{name}"},
        "effectiveDateTime": at,
        "valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit},
        **more,
    }


def condition(name: str, code: str = "E11.9", at: str = "2019-01-01", **more: Any) -> dict:
    """A Condition."""
    return {
        "resourceType": "Condition",
        "code": {"coding": [{"system": ICD10, "code": code}]},
        "subject": {"reference": f"Patient/{name}"},
        "onsetDateTime": at,
        **more,
    }


def prescription(name: str, code: str = "861007", at: str = "2020-04-01", **more: Any) -> dict:
    """A MedicationRequest."""
    return {
        "resourceType": "MedicationRequest",
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": {"coding": [{"system": RXNORM, "code": code}]},
        "subject": {"reference": f"Patient/{name}"},
        "authoredOn": at,
        **more,
    }


def export(folder: Path, *resources: Any, name: str = "all.ndjson") -> Path:
    """Resources (or raw lines of bytes) as an export of one file."""
    folder.mkdir(exist_ok=True)
    lines = [line if isinstance(line, bytes) else orjson.dumps(line) for line in resources]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder
