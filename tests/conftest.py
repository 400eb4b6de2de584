"""Fixtures: fresh databases of both kinds, and the temporary PostgreSQL cluster behind them."""

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from coop.db import Database

if TYPE_CHECKING:
    from consent_hub import ConsentHub

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")

_NAMES = itertools.count()


def _postgres_bin() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _as_non_root() -> dict[str, int]:
    """PostgreSQL refuses to run as root: become `postgres` or `nobody` there."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid}
    return {}


@pytest.fixture
def hub(sqlite_database: Database) -> Iterator["ConsentHub"]:
    """Registry, journal and doors on a port, over a fresh database."""
    from consent_hub import ConsentHub

    made = ConsentHub(sqlite_database)
    made.serve()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL (without database name) of a temporary cluster that ends with the session."""
    programs = _postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL's initdb is not installed here")
    who = _as_non_root()
    folder = Path(tempfile.mkdtemp(prefix="coop-pg-"))
    if who:
        os.chown(folder, who["user"], who["group"])
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "coop", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **who,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run(
        [
            programs / "pg_ctl",
            "-D",
            data,
            "-w",
            "-l",
            folder / "log",
            "-o",
            f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}",
            "start",
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        **who,
    )
    try:
        yield f"postgresql://coop@127.0.0.1:{port}"
    finally:
        subprocess.run(
            [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"],
            check=False,
            capture_output=True,
            cwd=folder,
            **who,
        )
        shutil.rmtree(folder, ignore_errors=True)


def _fresh_postgres(url: str) -> str:
    import psycopg

    name = f"t{next(_NAMES)}"
    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{url}/{name}"


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """A fresh migrated SQLite database."""
    database = Database(f"sqlite:///{tmp_path / 'test.sqlite'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh migrated database of each kind: the contract both must hold."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'contract.sqlite'}"
    else:
        url = _fresh_postgres(request.getfixturevalue("postgres_url"))
    fresh = Database(url)
    fresh.upgrade()
    yield fresh
    fresh.close()
