"""What a hospital's IT checks before joining and after every change: findings with their fixes."""

import os
import shutil
import stat
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import httpx
import sqlalchemy as sa

from coop.errors import CoopError
from federated import after_restore, cosigning, coverage, emergency, overlay
from federated.accounting import sigma_for
from federated.quarantine import RUNBOOK, acts, refusals
from federated.site import Site

_DISK_MIN_BYTES: Final = 2 * 2**30  # a year of answers of a busy node is under 1 GiB
_CLOCK_MAX_S: Final = 5  # Flower refuses a node whose clock is more than 5 s ahead
_SIGMA_KNOWN: Final = (
    16.68  # sigma of 20 full-batch rounds at epsilon 1, delta 1e-5 (privacy.md §2)
)
_PACKAGES: Final = ("torch", "opacus", "opendp", "flwr")


def checks(site: Site) -> dict[str, Any]:
    """Every check with `ok`, what was found, and the fix where it is not; and what is set aside."""
    found: dict[str, dict[str, Any]] = {}
    for name, check in _CHECKS.items():
        try:
            found[name] = check(site)
        except (CoopError, OSError, httpx.HTTPError, sa.exc.SQLAlchemyError) as error:
            found[name] = {"ok": False, "found": type(error).__name__, "fix": str(error)[:200]}
    return {
        "ok": all(entry["ok"] for entry in found.values()),
        "checks": found,
        "set_aside": acts(site),
    }


def _secrets(site: Site) -> dict[str, Any]:
    open_files = [
        path.name
        for path in site.folder.iterdir()
        if path.suffix in {".key", ".token", ".secret"} and path.stat().st_mode & 0o077
    ]
    return {
        "ok": not open_files,
        "found": ", ".join(open_files) or "only the owner can read them",
        "fix": f"chmod 600 the files above in {site.folder}",
    }


def _disk(site: Site) -> dict[str, Any]:
    free = shutil.disk_usage(site.folder).free
    return {"ok": free >= _DISK_MIN_BYTES, "found": f"{free >> 30} GiB free", "fix": "free 2 GiB"}


def _database(site: Site) -> dict[str, Any]:
    with site.database.reading() as connection:
        sqlite = connection.dialect.name == "sqlite"
        answer = connection.exec_driver_sql("PRAGMA quick_check" if sqlite else "SELECT 'ok'")
        result = str(answer.scalar_one())
    return {"ok": result == "ok", "found": result, "fix": "restore the newest backup"}


def _trust(site: Site) -> dict[str, Any]:
    pinned = site.trust
    return {"ok": True, "found": f"hub {pinned.hub[:24]}…, {len(pinned.sites)} other sites"}


def _hub(site: Site) -> dict[str, Any]:
    answer = _healthz(site)
    return {"ok": answer.is_success, "found": f"HTTP {answer.status_code} over TLS"}


def _clock(site: Site) -> dict[str, Any]:
    answer = _healthz(site)
    theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    off = int(time.time() - theirs)
    return {"ok": abs(off) <= _CLOCK_MAX_S, "found": f"{off} s off the hub's", "fix": "run NTP"}


def _proxy(_site: Site) -> dict[str, Any]:
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy") if os.getenv(name)]
    bypass = os.getenv("NO_PROXY", os.getenv("no_proxy", ""))
    return {
        "ok": not proxies or "127.0.0.1" in bypass,
        "found": ", ".join(proxies) or "none",
        "fix": "set NO_PROXY=127.0.0.1,localhost for the loopback runtime",
    }


def _packages(_site: Site) -> dict[str, Any]:
    missing = []
    for name in _PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return {
        "ok": not missing,
        "found": "missing: " + ", ".join(missing) if missing else "all installed",
        "fix": "pip install 'health-data-coop[node]'",
    }


def _accountant(_site: Site) -> dict[str, Any]:
    sigma = sigma_for(1.0, 1e-5, 20)
    return {"ok": abs(sigma - _SIGMA_KNOWN) < 0.01, "found": f"sigma {sigma:.2f}"}  # noqa: PLR2004


def _folder(site: Site) -> dict[str, Any]:
    mode = stat.S_IMODE(site.folder.stat().st_mode)
    return {"ok": not mode & 0o007, "found": oct(mode), "fix": f"chmod 750 {site.folder}"}


def _healthz(site: Site) -> httpx.Response:
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context(cafile=str(site.ca_file) if site.ca_file else None)
    return httpx.get(f"{site.hub_url}/healthz", verify=context, timeout=10, trust_env=False)


def _emergencies(site: Site) -> dict[str, Any]:
    with site.database.reading() as connection:
        open_ = [act for act in emergency.acts(connection, int(time.time())) if not act["verdict"]]
    overdue = [act["digest"][:12] for act in open_ if act["overdue"]]
    return {
        "ok": not overdue,
        "found": f"{len(open_)} to judge" + (f", overdue: {', '.join(overdue)}" if overdue else ""),
        "fix": "coop hospital review DIGEST --reviewer NAME --verdict justified|not-justified",
    }


def _approved_data(site: Site) -> dict[str, Any]:
    with site.database.reading() as connection:
        moved = coverage.approved_drift(connection, now=int(time.time()))
    said = [
        f"{entry['study_id']} v{entry['version']}: {first['field']}, {first['what']} "
        f"{first['then']:g} then, {first['now']:g} now"
        for entry in moved
        for first in entry["moved"][:1]
    ]
    return {
        "ok": not moved,
        "found": "; ".join(said) or "is what the approvals were given for",
        "fix": "the approval was given for other data: see `coop hospital quality`, mend the "
        "import, or take the approval back in the console and approve again",
    }


def _restore(site: Site) -> dict[str, Any]:
    said = after_restore.facts(site)
    if said["settled"]:
        return {"ok": True, "found": f"every patient was charged {said['charged_rho']} rho"}
    return {
        "ok": False,
        "found": "restored; the cooperative was not asked yet what was approved after the backup",
        "fix": f"reach the hub, then `coop hospital approve STUDY`; see {after_restore.RUNBOOK}",
    }


def _cosigning(site: Site) -> dict[str, Any]:
    if not cosigning.paused(site):
        return {"ok": True, "found": "cosigns what it verified"}
    return {
        "ok": False,
        "found": "restored from a backup: cosigns nothing, so new consents elsewhere wait for it",
        "fix": "another hospital runs `coop hospital checkpoint --out FILE` and hands you the file;"
        " then `coop hospital cosign FILE`",
    }


def _documents(site: Site) -> dict[str, Any]:
    refused = refusals(site)
    if not refused:
        return {"ok": True, "found": "every one sent so far verified or was set aside"}
    first = refused[0]["log_index"]
    return {
        "ok": False,
        "found": "; ".join(
            f"entry {row['log_index']}, document {row['digest']}: {row['code']}" for row in refused
        ),
        "fix": f"no lease until this is solved; the evidence is kept. Read {RUNBOOK}, then "
        f'`coop hospital quarantine {first} --reason "…"`',
    }


_CHECKS: Final[dict[str, Callable[[Site], dict[str, Any]]]] = {
    "secret files": _secrets,
    "state folder": _folder,
    "disk": _disk,
    "database": _database,
    "pinned trust": _trust,
    "consent documents": _documents,
    "own prohibitions": overlay.check,
    "approved data": _approved_data,
    "restores": _restore,
    "cosigning": _cosigning,
    "broken glass": _emergencies,
    "hub over TLS": _hub,
    "clock": _clock,
    "proxy": _proxy,
    "packages": _packages,
    "accountant": _accountant,
}
