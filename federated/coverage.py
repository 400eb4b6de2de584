"""What the hospital's own staff see of data quality and consent: exact, and never sent anywhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from consent.decide import Standing, decide
from coop.documents.study import Study
from federated.approval import approved_studies
from federated.mirror import Mirror
from federated.permits import consent_request
from federated.records import all_pids, rows_of
from federated.site import Site, quarantine


def quality(site: Site) -> dict[str, Any]:
    """Completeness of every field and what the importer refused."""
    present: Counter[str] = Counter()
    rows = 0
    with site.database.reading() as connection:
        for _pid, row in rows_of(connection, all_pids(connection)):
            rows += 1
            present.update(name for name, value in row.items() if value is not None)
        refused = connection.scalar(sa.select(sa.func.count()).select_from(quarantine))
    fields = {name: {"present": count, "missing": rows - count} for name, count in present.items()}
    return {"patients": rows, "quarantined": refused, "fields": dict(sorted(fields.items()))}


def by_study(site: Site, mirror: Mirror, *, now: int) -> list[dict[str, Any]]:
    """For every approved study: how many patients permit it, refuse it, or have not decided.

    From the envelopes this node verified itself at its last lease or sync; no new lease is drawn.
    """
    standings = mirror.standings()
    with site.database.reading() as connection:
        pids = all_pids(connection)
        studies = approved_studies(connection)
    return [
        {
            "study_id": entry["study_id"],
            "version": entry["version"],
            **_effects(entry["study"], pids, standings, now),
        }
        for entry in studies
    ]


def of_study(site: Site, mirror: Mirror, study: Study, *, now: int) -> dict[str, int]:
    """The same of one study, approved or not."""
    with site.database.reading() as connection:
        pids = all_pids(connection)
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
