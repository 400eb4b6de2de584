"""`coop hospital import …` and `quality`: records into this hospital, and how complete they are.

These belong to the group in `coop.cli.hospital`, which is loaded through this module.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coop.cli.hospital import HERE, Json, State, _hub, _open, app
from coop.cli.output import show, told

if TYPE_CHECKING:
    from coop.documents.study import Study
    from federated.site import Site

__all__ = ["app"]

import_app = typer.Typer(no_args_is_help=True, help="Read patients' records into this hospital.")
app.add_typer(import_app, name="import")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Read and report; store nothing.")]
StudyOption = Annotated[
    str, typer.Option("--study", help="A study file, or the id of a proposed study.")
]
_LINES_MAX = 20


@import_app.command("csv")
def import_csv(
    path: Annotated[
        Path, typer.Argument(help="A CSV or .parquet file; one row a patient, a header.")
    ],
    dictionary: Annotated[
        Path | None,
        typer.Option(help="What each column may hold; the bundled cardiology one by default."),
    ] = None,
    dry_run: DryRun = False,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Import a table; a malformed line is set aside with its reason and stops nothing."""
    from federated.importers import Dictionary
    from federated.importers import import_csv as read

    site = _open(state)
    chosen = Dictionary.load(dictionary) if dictionary else None
    report = read(site, path, chosen, dry_run=dry_run)
    moved = _moved(site)
    site.close()
    facts = {
        "dry_run": dry_run,
        "rows": report.rows,
        "new": report.new,
        "changed": report.changed,
        "alike": report.alike,
        "data_version": report.data_version,
        "quarantined": [{"line": bad.line, "reason": bad.reason} for bad in report.quarantined],
        "data_other_than_approved": moved,
    }
    done = "nothing stored" if dry_run else f"{report.new} new, {report.changed} changed"
    lines = [f"{report.rows} patients read, {done}"]
    if report.alike:
        lines.append(f"{report.alike} of them exactly like another: the same person twice?")
    lines += [f"line {bad.line} set aside: {bad.reason}" for bad in report.quarantined[:_LINES_MAX]]
    show(facts, as_json, "\n".join(lines + _warnings(moved)))


@import_app.command("fhir")
def import_fhir(
    folder: Annotated[Path, typer.Argument(help="A FHIR R4 bulk export: .ndjson or .ndjson.gz.")],
    study: StudyOption,
    identifier: Annotated[
        str | None,
        typer.Option(help="System of the identifier that is your patient number; Patient.id else."),
    ] = None,
    dry_run: DryRun = False,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Extract a study's fields from a FHIR export: one row a patient, nothing else is stored."""
    from federated.record_import import import_fhir as read

    site = _open(state)
    report = read(
        site,
        folder,
        _study(site, study),
        now=int(time.time()),
        identifier=identifier,
        dry_run=dry_run,
    )
    moved = _moved(site)
    site.close()
    text = "\n".join(_said(report) + _warnings(moved))
    show({**report, "data_other_than_approved": moved}, as_json, text)


@import_app.command("omop")
def import_omop(
    path: Annotated[
        str,
        typer.Argument(
            help="A DuckDB or SQLite file, a folder of CSV or Parquet tables, or postgresql://…"
        ),
    ],
    study: StudyOption,
    by_person_id: Annotated[
        bool,
        typer.Option("--person-id", help="person_id is your patient number, not the source value."),
    ] = False,
    dry_run: DryRun = False,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Extract a study's fields from an OMOP CDM, which is only read: one row a patient."""
    from federated.record_import import import_omop as read

    site = _open(state)
    report = read(
        site,
        path,
        _study(site, study),
        now=int(time.time()),
        by_person_id=by_person_id,
        dry_run=dry_run,
    )
    moved = _moved(site)
    site.close()
    text = "\n".join(_said(report) + _warnings(moved))
    show({**report, "data_other_than_approved": moved}, as_json, text)


@app.command()
def quality(state: State = HERE, as_json: Json = False) -> None:
    """How complete the records are, what imports refused, what moved since a study's approval."""
    from federated import coverage

    site = _open(state)
    facts = coverage.quality(site, now=int(time.time()))
    site.close()
    show(facts, as_json, told(facts))


def _study(site: "Site", named: str) -> "Study":
    """The study in a file, or the newest proposed one of that id."""
    from coop.documents.study import Study
    from coop.studyfile import load_study
    from federated import approval

    path = Path(named)
    if path.exists() or path.suffix in {".yaml", ".yml"}:
        return Study.model_validate(load_study(path))
    with _hub(site) as hub:
        return Study.model_validate(approval.review(site, hub, named)["study"])


def _moved(site: "Site") -> list[dict[str, Any]]:
    from federated import coverage

    with site.database.reading() as connection:
        return coverage.approved_drift(connection, now=int(time.time()))


def _warnings(moved: list[dict[str, Any]]) -> list[str]:
    return [
        f"WARNING: {entry['study_id']} v{entry['version']} was approved for other data: "
        f"{', '.join(sorted({each['field'] for each in entry['moved']}))}"
        for entry in moved
    ]


def _said(report: dict[str, Any]) -> list[str]:
    """A report in lines a person checks a mapping by."""
    done = (
        "nothing stored"
        if report["dry_run"]
        else f"{report['new']} new, {report['changed']} changed"
    )
    lines = [f"{report['patients']} patients for {report['study_id']}: {done}"]
    for name, facts in report["fields"].items():
        turned = "".join(f", {n} from {unit}" for unit, n in facts["converted"].items())
        refused = f", {facts['out_of_range']} out of range" if facts["out_of_range"] else ""
        lines.append(
            f"  {name:24} {facts['present']} have it, {facts['missing']} do not{turned}{refused}"
        )
    counted = ("without_index", "merged", "repeated", "alike")
    lines += [f"{report[name]} {name.replace('_', ' ')}" for name in counted if report[name]]
    for name, codes in report.get("codes_without_concept", {}).items():
        lines.append(f"  {name}: not in this vocabulary: {', '.join(codes)}")
    lines += [f"{n} set aside: {reason}" for reason, n in report["set_aside"].items()]
    return lines
