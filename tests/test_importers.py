"""Import: no bad line is guessed, none is lost silently, and a re-import changes no pid."""

import threading
from pathlib import Path

import duckdb
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coop.errors import CoopError, NotFoundError
from federated import importers
from federated.data import csv_of
from federated.importers import Dictionary, UnreadableFileError, import_csv, read_csv
from federated.records import all_pids, pid_of_record, rows_of
from federated.site import Site, quarantine

HEADER = "patient,age_years,sex,exercise_angina,st_depression,severity\n"


@pytest.fixture
def site(tmp_path: Path):
    made = Site.create(tmp_path / "node", "cleveland")
    yield made
    made.close()


@pytest.fixture
def write(tmp_path: Path):
    def written(body: str | bytes, header: str = HEADER) -> Path:
        path = tmp_path / "extract.csv"
        path.write_bytes(body if isinstance(body, bytes) else (header + body).encode())
        return path

    return written


def test_a_file_becomes_rows_by_pid(site: Site, write):
    report = import_csv(site, write("A-1,63,Male,TRUE,2.3,0\nA-2,40,female,,,1\n"))
    assert (report.rows, report.new, report.changed, report.quarantined) == (2, 2, 0, [])
    with site.database.reading() as connection:
        assert rows_of(connection, [site.pid_of("A-1")]) == [
            (
                site.pid_of("A-1"),
                {
                    "age_years": 63.0,
                    "sex": "male",
                    "exercise_angina": True,
                    "st_depression": 2.3,
                    "severity": 0.0,
                },
            )
        ]
        assert rows_of(connection, [site.pid_of("A-2")])[0][1].keys() == {
            "age_years",
            "sex",
            "severity",
        }
        assert pid_of_record(connection, "A-2") == site.pid_of("A-2")
        assert pid_of_record(connection, "A-3") is None


def test_rows_come_in_the_order_of_their_pids_and_only_those_asked_for(site: Site):
    import_csv(site, csv_of("longbeach"))
    with site.database.reading() as connection:
        pids = all_pids(connection)
        assert pids == sorted(pids)
        assert len(pids) == 200
        wanted = [*pids[::3], "z" * 26]
        assert [pid for pid, _ in rows_of(connection, reversed(wanted))] == pids[::3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,63,male,true,2.3", "has 5 cells instead of 6"),
        ("1,63,male,true,2.3,0,9", "has 7 cells instead of 6"),
        (",63,male,true,2.3,0", "patient: must have"),
        ("x" * 201 + ",63,male,true,2.3,0", "patient: must have"),
        ("1,old,male,true,2.3,0", "age_years: must be a number from 0 to 130"),
        ("1,-1,male,true,2.3,0", "age_years: must be a number"),
        ("1,nan,male,true,2.3,0", "age_years: must be a number"),
        ("1,inf,male,true,2.3,0", "age_years: must be a number"),
        ("1,6_3,male,true,2.3,0", "age_years: must be a number"),
        ("1,٦٣,male,true,2.3,0", "age_years: must be a number"),
        ("1,63,man,true,2.3,0", "sex: must be one of female, male"),
        ("1,63,male,yes,2.3,0", "exercise_angina: must be true or false"),
        ('1,63,male,true,"2.3,0', "is not CSV"),
        ("1,63,male,tr\0ue,2.3,0", "holds NUL"),
        ("good,63,male,true,2.3,0", "patient: stood on an earlier line"),
    ],
)
def test_a_malformed_line_is_set_aside_with_line_and_reason(
    site: Site, write, line: str, reason: str
):
    path = write(f"good,63,male,true,2.3,0\n{line}\nlater,40,female,,,1\n")
    report = import_csv(site, path)
    assert report.new == 2
    assert [entry.line for entry in report.quarantined] == [3]
    assert reason in report.quarantined[0].reason
    with site.database.reading() as connection:
        kept = connection.execute(sa.select(quarantine)).one()
    assert (kept.file, kept.line) == ("extract.csv", 3)
    assert reason in kept.reason


def test_the_quarantine_repeats_no_value_of_the_line(write):
    extract = read_csv(write("77123456,secretvalue,male,true,2.3,0\n"), Dictionary.load())
    assert "secretvalue" not in extract.quarantined[0].reason
    assert "77123456" not in extract.quarantined[0].reason


def test_a_mended_line_leaves_the_quarantine(site: Site, write):
    import_csv(site, write("1,old,male,true,2.3,0\n"))
    assert import_csv(site, write("1,63,male,true,2.3,0\n")).new == 1
    with site.database.reading() as connection:
        assert connection.execute(sa.select(quarantine)).all() == []


def test_a_reimport_keeps_every_pid_and_counts_only_what_changed(site: Site, write):
    first = import_csv(site, write("1,63,male,true,2.3,0\n2,40,female,,,1\n"))
    with site.database.reading() as connection:
        before = all_pids(connection)
    same = import_csv(site, write("2,40,female,,,1\n1,63,male,true,2.3,0\n"))
    assert (same.new, same.changed, same.data_version) == (0, 0, first.data_version)
    other = import_csv(site, write("1,64,male,true,2.3,0\n3,50,male,,,0\n"))
    assert (other.new, other.changed, other.data_version) == (1, 1, first.data_version + 1)
    assert site.data_version() == first.data_version + 1
    corrected = import_csv(site, write("3,51,male,,,0\n"))
    assert (corrected.new, corrected.changed) == (0, 1)
    assert site.data_version() == first.data_version + 2
    with site.database.reading() as connection:
        assert set(before) < set(all_pids(connection)), "an absent patient stays"


def test_a_duplicate_row_of_two_patients_is_two_patients(site: Site):
    """UCI holds one exact duplicate each in Hungary and Long Beach; the ids differ."""
    assert import_csv(site, csv_of("budapest")).new == 294


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"age_years\n63\n", "lacks the column 'patient'"),
        (b"patient,age_years,age_years\n1,2,3\n", "stands twice"),
        (b"patient,shoe_size\n1,44\n", "'shoe_size' is not in the data dictionary"),
        (b"patient,age_years\n1,\xff\xfe\n", "must be UTF-8"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "UTF-8"),
        (b"pat\0ient\n", "holds NUL"),
        (b'"patient\n', "is not CSV"),
        (b"patient,age_years\n" + b"1" * 70_000, "a line is longer than"),
        (b"patient," + b",".join(b"c%d" % i for i in range(1100)) + b"\n", "more than 1024"),
    ],
)
def test_a_file_that_is_no_extract_changes_nothing(site: Site, write, content: bytes, reason: str):
    with pytest.raises(UnreadableFileError, match=reason):
        import_csv(site, write(content))
    assert site.data_version() == 0
    with site.database.reading() as connection:
        assert all_pids(connection) == []


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(NotFoundError, match="no such file"):
            read_csv(path, Dictionary.load())


def test_a_spreadsheets_file_with_mark_and_crlf_is_read(site: Site, write):
    body = "﻿" + HEADER + "1,63,male,true,2.3,0\n\n"
    report = import_csv(site, write(body.replace("\n", "\r\n").encode()))
    assert (report.rows, report.quarantined) == (1, [])


def test_a_file_of_another_format_stops_instead_of_filling_the_quarantine(write):
    with pytest.raises(UnreadableFileError, match="more than 1000 bad lines"):
        read_csv(write("1;63;male\n" * 1002), Dictionary.load())


def test_sizes_are_limited(write, monkeypatch: pytest.MonkeyPatch):
    path = write("1,63,male,true,2.3,0\n2,63,male,true,2.3,0\n")
    monkeypatch.setattr(importers, "ROWS_MAX", 1)
    with pytest.raises(UnreadableFileError, match="more than 1 patients"):
        read_csv(path, Dictionary.load())
    monkeypatch.setattr(importers, "FILE_BYTES_MAX", 10)
    with pytest.raises(UnreadableFileError, match="larger than 10 bytes"):
        read_csv(path, Dictionary.load())


def test_an_unusable_dictionary_is_said(tmp_path: Path):
    path = tmp_path / "d.json"
    path.write_text('{"class": "x"}')
    with pytest.raises(UnreadableFileError, match="not a data dictionary"):
        Dictionary.load(path)


def test_two_imports_at_once_lose_nothing(site: Site, tmp_path: Path):
    paths = []
    for half in range(2):
        path = tmp_path / f"half{half}.csv"
        rows = "".join(f"{half}-{n},63,male,true,2.3,0\n" for n in range(300))
        path.write_text(HEADER + rows)
        paths.append(path)
    threads = [threading.Thread(target=import_csv, args=(site, path)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with site.database.reading() as connection:
        assert len(all_pids(connection)) == 600
    assert site.data_version() == 2


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: (HEADER + t).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_but_never_crash(write, content: bytes):
    try:
        extract = read_csv(write(content), Dictionary.load())
    except UnreadableFileError:
        return
    except CoopError as error:
        raise AssertionError from error
    assert len(extract.patients) + len(extract.quarantined) <= content.count(b"\n") + 300


# --- Parquet ----------------------------------------------------------------------------


def parquet(path: Path, select: str) -> Path:
    with duckdb.connect() as database:
        database.execute(f"COPY ({select}) TO '{path}' (FORMAT PARQUET)")
    return path


def test_parquet_is_judged_like_a_csv_of_the_same_rows(site: Site, tmp_path: Path):
    table = csv_of("longbeach")
    copy = parquet(tmp_path / "t.parquet", f"SELECT * FROM read_csv('{table}')")  # noqa: S608
    as_csv, as_parquet = (importers.read_table(path, Dictionary.load()) for path in (table, copy))
    assert as_csv.patients == as_parquet.patients
    assert as_parquet.quarantined == []
    assert import_csv(site, copy).new == 200
    assert import_csv(site, table).changed == 0


def test_a_bad_row_of_a_parquet_file_is_set_aside_and_gaps_are_missing(tmp_path: Path):
    path = parquet(
        tmp_path / "t.parquet",
        "SELECT * FROM (VALUES (1, 63.0, 'male', true), (2, 'nan'::DOUBLE, NULL, NULL), "
        "(3, 999.0, 'male', true), (NULL, 50.0, 'male', true)) "
        "AS t(patient, age_years, sex, exercise_angina)",
    )
    extract = importers.read_table(path, Dictionary.load())
    assert extract.patients == {
        "1": {"age_years": 63.0, "sex": "male", "exercise_angina": True},
        "2": {},
    }
    assert [bad.line for bad in extract.quarantined] == [4, 5]


def test_what_is_no_parquet_file_is_said(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.write_text("patient,age_years\n1,63\n")
    with pytest.raises(UnreadableFileError, match="not a Parquet file"):
        importers.read_table(path, Dictionary.load())
    whole = parquet(tmp_path / "w.parquet", "SELECT 1 AS patient, 63 AS age_years").read_bytes()
    path.write_bytes(whole[:20] + b"\xff" * 40 + whole[60:])
    with pytest.raises(UnreadableFileError, match="not a Parquet file"):
        importers.read_table(path, Dictionary.load())
    starred = tmp_path / "*.parquet"
    starred.write_bytes(whole)
    with pytest.raises(UnreadableFileError, match="not a Parquet file"):
        importers.read_table(starred, Dictionary.load())
