"""Import records for a study: read them all, extract one row a patient, store or only report.

What is stored are the study's own fields and nothing else of the records.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from coop.documents.study import Study
from federated import quality
from federated.extract import Extractor
from federated.fhir_export import FhirReader
from federated.importers import Dictionary, read_table
from federated.intake import Aside, Row, keep, look
from federated.omop import OmopReader
from federated.site import Site
from federated.wanted import PLACES

_SHOWN_MAX: Final = 100  # places listed in a report; the quarantine holds more


def import_fhir(
    site: Site,
    folder: Path,
    study: Study,
    *,
    now: int,
    identifier: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Import a FHIR R4 bulk export for `study`.

    Args:
        site: This hospital.
        folder: Holds the `.ndjson` files.
        study: States where its fields come from.
        now: UTC seconds.
        identifier: System of the identifier that is the patient number; Patient.id by default.
        dry_run: Read and report, store nothing.

    Returns:
        The report; exact, for the hospital's eyes.

    Raises:
        NoSourcesError: The study reads an imported table.
        UnreadableFileError: The export is none, or a file is damaged; nothing was stored.
    """
    extractor = Extractor(study, now)
    reader = FhirReader(extractor, identifier)
    reader.read_folder(folder)
    facts = {"format": "fhir", "ignored": _sorted(reader.ignored)}
    return _finish(site, extractor, reader.files, reader.read, facts, dry_run=dry_run)


def import_omop(
    site: Site,
    where: str,
    study: Study,
    *,
    now: int,
    by_person_id: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Import from an OMOP CDM 5.3 or 5.4 database, which is only read.

    Args:
        site: This hospital.
        where: A DuckDB or SQLite file, a folder of CSV or Parquet tables, or a postgresql:// DSN.
        study: States where its fields come from.
        now: UTC seconds.
        by_person_id: The patient number is `person_id`; `person_source_value` by default.
        dry_run: Read and report, store nothing.

    Raises:
        NoSourcesError: The study reads an imported table.
        UnreadableFileError: It is no such database; nothing was stored.
    """
    extractor = Extractor(study, now)
    reader = OmopReader(extractor, by_person_id=by_person_id)
    reader.read_database(where)
    facts = {"format": "omop", "codes_without_concept": reader.unknown_codes}
    return _finish(site, extractor, reader.tables, reader.read, facts, dry_run=dry_run)


def read_patients(
    study: Study, path: Path, dictionary: Dictionary | None = None
) -> tuple[dict[str, Row], int]:
    """One site's rows by record key without any store, and how many lines were set aside.

    Args:
        study: On a table, or on records.
        path: A CSV or Parquet file; for a study on records a FHIR export or an OMOP database.
        dictionary: What a table's columns may hold; the bundled cardiology one by default.

    Raises:
        UnreadableFileError: It is none.
    """
    if study.index is None:
        table = read_table(path, dictionary or Dictionary.load())
        return dict(table.patients), len(table.quarantined)
    extractor = Extractor(study, int(time.time()))
    if path.is_dir() and any(path.glob("*.ndjson*")):
        FhirReader(extractor).read_folder(path)
    else:
        OmopReader(extractor).read_database(str(path))
    rows: dict[str, Row] = dict(extractor.rows())
    return rows, extractor.aside.counts.total()


def _finish(
    site: Site,
    extractor: Extractor,
    files: Sequence[str],
    read: Counter[str],
    facts: Mapping[str, Any],
    *,
    dry_run: bool,
) -> dict[str, Any]:
    study, tally = extractor.study, quality.Tally()
    rows = tally.each(extractor.rows())

    def aside() -> list[Aside]:
        return [
            Aside(file=files[place // PLACES], line=place % PLACES, reason=reason)
            for place, reason in extractor.aside.entries
        ]

    if dry_run:
        kept = look(rows)
        kept.data_version = site.data_version()
    else:
        kept = keep(site, rows, extract=study.extract, files=files, aside=aside)
    report = {
        "study_id": study.study_id,
        "version": study.version,
        "extract": study.extract,
        "dry_run": dry_run,
        "read": _sorted(read),
        **facts,
        "patients": kept.rows,
        "new": kept.new,
        "changed": kept.changed,
        "data_version": kept.data_version,
        "without_index": extractor.without_index,
        "merged": extractor.merged,
        "repeated": extractor.repeated,
        "alike": kept.alike,
        "fields": _fields(extractor, tally.profile()),
        "set_aside": _sorted(extractor.aside.counts),
    }
    if not dry_run:
        with site.database.unit_of_work() as connection:
            quality.keep_report(connection, study.extract, report)
    listed = [
        {"file": entry.file, "line": entry.line, "reason": entry.reason}
        for entry in aside()[:_SHOWN_MAX]
    ]
    return {**report, "quarantined": listed}


def _fields(extractor: Extractor, profile: quality.Profile) -> dict[str, dict[str, Any]]:
    """Each field: how many patients have it, its figures, and what was done to its records."""
    found, patients = {}, profile["patients"]
    for name, facts in extractor.facts().items():
        figures = profile["fields"].get(name, {"present": 0})
        missing = patients - figures["present"]
        share = round(missing / patients, 4) if patients else None
        found[name] = {**figures, "missing": missing, "missing_share": share, **facts}
    return found


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
