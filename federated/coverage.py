"""What the hospital's own staff see of data quality and consent: exact, and never sent anywhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from consent.decide import Standing, decide
from coop.documents.study import Study
from federated import quality as figures
from federated.approval import approved_studies
from federated.mirror import Mirror
from federated.permits import consent_request
from federated.records import all_pids, extracts
from federated.site import Site, patient, quarantine

_NEWEST: Final = 2**62  # as a data version: whatever came last


def quality(site: Site, *, now: int) -> dict[str, Any]:
    """Completeness of every field, what the importers refused, and what moved since an approval."""
    with site.database.reading() as connection:
        reports = figures.reports(connection)
        held = {name: figures.of_extract(connection, name) for name in extracts(connection)}
        refused = connection.scalar(sa.select(sa.func.count()).select_from(quarantine))
        patients = connection.scalar(sa.select(sa.func.count()).select_from(patient))
        moved = approved_drift(connection, now=now)
    fields: dict[str, dict[str, int]] = {}
    for extract, profile in held.items():
        of = f"{reports[extract]['study_id']}: " if extract in reports else ""
        for name, said in profile["fields"].items():
            missing = profile["patients"] - said["present"]
            fields[f"{of}{name}"] = {"present": said["present"], "missing": missing}
    return {
        "patients": patients,
        "quarantined": refused,
        "fields": fields,
        "imports": list(reports.values()),
        "drift": moved,
    }


def approved_drift(connection: sa.Connection, *, now: int) -> list[dict[str, Any]]:
    """Studies approved here whose data moved since then, beyond the bounds of `quality`."""
    moved = []
    for entry in approved_studies(connection):
        if entry["revoked_at"] is not None or now >= entry["expires"]:
            continue
        study: Study = entry["study"]
        then = figures.profile_at(connection, study.extract, entry["data_version"])
        newest = figures.profile_at(connection, study.extract, _NEWEST)
        found = figures.drift(study, then, newest) if then and newest else []
        if found:
            named = {name: entry[name] for name in ("study_id", "version", "data_version")}
            moved.append({**named, "moved": found})
    return moved


def by_study(site: Site, mirror: Mirror, *, now: int) -> list[dict[str, Any]]:
    """For every approved study: how many patients permit it, refuse it, or have not decided.

    From the envelopes this node verified itself at its last lease or sync; no new lease is drawn.
    """
    standings = mirror.standings()
    with site.database.reading() as connection:
        studies = approved_studies(connection)
        pids = {e["study"].extract: all_pids(connection, e["study"].extract) for e in studies}
    return [
        {
            "study_id": entry["study_id"],
            "version": entry["version"],
            **_effects(entry["study"], pids[entry["study"].extract], standings, now),
        }
        for entry in studies
    ]


def of_study(site: Site, mirror: Mirror, study: Study, *, now: int) -> dict[str, int]:
    """The same of one study, approved or not."""
    with site.database.reading() as connection:
        pids = all_pids(connection, study.extract)
    return _effects(study, pids, mirror.standings(), now)


def _effects(
    study: Study, pids: Sequence[str], standings: Mapping[str, Standing], now: int
) -> dict[str, int]:
    request = consent_request(study, "train-federated", now)
    effects: Counter[str] = Counter()
    for pid in pids:
        standing = standings.get(pid)
        effects["undecided" if standing is None else decide(standing, request).effect] += 1
    return dict(effects)
