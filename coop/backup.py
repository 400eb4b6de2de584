"""Backup and restore of a process's folder: databases by SQLite's online backup, then files.

A backup is a folder of its own with a manifest of digests. It holds keys: keep it as safe as the
folder it was made from.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from coop.canonical import Json, jcs, parse_object
from coop.errors import ConflictError, InvalidInputError, NotFoundError

MANIFEST: Final = "backup.json"
_SKIPPED_SUFFIXES: Final = ("-wal", "-shm", "-journal")
_REMADE: Final = frozenset({"superlink", "supernode", "logs", "run.lock", "local.url"})
_PAGES: Final = 1000  # copied at a time, so that writers get in between


class BackupError(InvalidInputError):
    """The backup is incomplete, changed or damaged; nothing was restored from it."""

    code = "backup.damaged"


class BackupTargetError(ConflictError):
    """The target exists; nothing is ever overwritten."""

    code = "backup.target-exists"


def backup_folder(state: Path, target: Path, *, database: str = "coop.sqlite") -> dict[str, Json]:
    """Copy the folder `state` into the new folder `target`, while its process runs.

    Steps: (1) a consistent copy of every SQLite database, checked; (2) every other file; (3) the
    manifest, last: a crash before leaves a folder that `restore_folder` refuses. What a process can
    make anew (Flower's relay) is left out.

    Args:
        state: A hub's or hospital's folder.
        target: Must not exist.
        database: A file that is a SQLite database though its name does not end in `.sqlite`. Other
            databases (PostgreSQL) are backed up with their own tools.

    Returns:
        {"folder", "files", "bytes"}.

    Raises:
        NotFoundError: There is no such folder.
        BackupTargetError: The target exists.
    """
    if not state.is_dir():
        raise NotFoundError(f"{state} is missing; nothing to back up")
    if target.exists():
        raise BackupTargetError(f"{target} exists; name a new folder")
    target.mkdir(parents=True, mode=0o700)
    # (1), (2)
    for path in _files(state, leave_out=target):
        copy = target / path.relative_to(state)
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.suffix == ".sqlite" or path.name == database:
            _copy_database(path, copy)
        else:
            shutil.copy2(path, copy)
    # (3)
    files = _digests(target)
    (target / MANIFEST).write_bytes(jcs({"v": 1, "files": files}))
    _sync(target)
    size = sum((target / name).stat().st_size for name in files)
    return {"folder": str(target), "files": len(files), "bytes": size}


def restore_folder(
    source: Path,
    state: Path,
    *,
    needs: str = MANIFEST,
    prepare: Callable[[Path], None] | None = None,
) -> dict[str, Json]:
    """Make the new folder `state` from a backup, after checking every file of it.

    Args:
        source: What `backup_folder` made.
        state: The new folder.
        needs: The file by which a backup of the wanted kind is known.
        prepare: What must be done to the restored files before anything can run on them.

    Raises:
        BackupError: A file is missing, unlisted or changed.
        BackupTargetError: `state` exists.
    """
    if not (source / MANIFEST).is_file():
        raise BackupError(f"{source} is no finished backup: {MANIFEST} is missing")
    if state.exists():
        raise BackupTargetError(f"{state} exists; move it away or name a new folder")
    listed = parse_object((source / MANIFEST).read_bytes(), bytes_max=64_000_000).get("files")
    found = _digests(source)
    if not isinstance(listed, dict) or found != listed:
        known = listed if isinstance(listed, dict) else {}
        names = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
        raise BackupError(f"{source}: missing, unlisted or changed: {', '.join(names[:3])}")
    if not (source / needs).is_file():
        raise BackupError(f"{source}: the backup of another kind of folder; {needs} is missing")
    # Written beside and renamed: a crash leaves no half-restored folder under the real name.
    beside = state.with_name(f"{state.name}.restoring")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True, mode=0o700)
    for name in found:
        copy = beside / name
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy2(source / name, copy)
    for path in beside.rglob("*.sqlite"):
        _check_database(path)
    if prepare is not None:
        prepare(beside)
    _sync(beside)
    beside.rename(state)
    return {"folder": str(state), "files": len(found), "intact": True}


def _copy_database(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy, pages=_PAGES)
    target.chmod(0o600)
    _check_database(target)


def _check_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != ("ok",):
        raise BackupError(f"{path.name}: the copy is damaged; check the disk")


def _files(state: Path, *, leave_out: Path) -> Iterator[Path]:
    for path in sorted(state.rglob("*")):
        inside = path.resolve().is_relative_to(leave_out.resolve())
        relative = path.relative_to(state)
        skipped = path.name.endswith(_SKIPPED_SUFFIXES) or relative.parts[0] in _REMADE
        if path.is_file() and not path.is_symlink() and not inside and not skipped:
            yield path


def _digests(folder: Path) -> dict[str, Json]:
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _digest(path: Path) -> str:
    import hashlib  # noqa: PLC0415  (files may be larger than memory: not canonical.sha256)

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
