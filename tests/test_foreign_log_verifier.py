"""Go's own transparency-log packages verify our log, tiles, cosignatures and receipts."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors_world import now, served, world
from small_world import DIDS, LOG, TRUST, World, consent_receipt
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coop import members
from coop.db import Database
from coop.journal import note
from coop.journal.receipts import foreign_form
from coop.journal.store import Journal
from coop.journal.tiles import TILE_WIDTH, Tile, path_of

SOURCE = Path(__file__).parent / "foreign" / "go"
PACKAGES = Path("/usr/share/gocode")  # where Debian puts golang-golang-x-mod-dev
OLD, NEW = 259, 600


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled foreign verifier."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed here: the foreign verifier of the log did not run")
    if not (PACKAGES / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("Go's x/mod sources are not installed here: the foreign verifier did not run")
    folder = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ,  # noqa: TID251  (the compiler's own environment)
        "GO111MODULE": "off",
        "GOPATH": str(PACKAGES),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
    }
    subprocess.run(
        ["go", "build", "-o", folder / "verify", "."], cwd=SOURCE, env=environment, check=True
    )
    return folder / "verify"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything a stranger needs, as the hub publishes it."""
    folder = tmp_path_factory.mktemp("log")
    database = Database(f"sqlite:///{folder / 'log.sqlite'}")
    database.upgrade()
    world = World(database)
    journal = world.journal
    with database.unit_of_work() as connection:
        journal.record_many(connection, "consent-receipt", _documents(0, OLD))
    world.witness("zurich")
    with database.unit_of_work() as connection:
        (folder / "old-checkpoint").write_text(journal.checkpoint(connection))
        logged = journal.record_many(connection, "consent-receipt", _documents(OLD, NEW))
    world.witness(*DIDS)
    with database.reading() as connection:
        (folder / "checkpoint").write_text(journal.checkpoint(connection))
        proof = journal.consistency(connection, OLD, NEW)
        (folder / "consistency").write_text("\n".join(map(note.to_base64, proof)))
        receipt = journal.receipt(connection, logged[7].digest, sites=DIDS)
        (folder / "receipt.tlog-proof").write_text(str(receipt["proof"]))
        leaf = journal.entries(connection, logged[7].index, 1)[0]
        (folder / "receipt.leaf").write_bytes(leaf)
        for tile in _tiles(NEW):
            path = folder / "tile" / path_of(tile)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(journal.tile(connection, tile))
    (folder / "log.vkey").write_text(note.vkey(TRUST.origin, LOG.did))
    cosigners = [note.vkey(name, did, cosigner=True) for name, did in DIDS.items()]
    (folder / "cosigners.vkey").write_text("\n".join(cosigners))
    database.close()
    return folder


def _documents(start: int, end: int) -> list[dict[str, object]]:
    return [consent_receipt(number) for number in range(start, end)]


def _tiles(size: int) -> list[Tile]:
    """Every tile of a log of `size`, partial ones as wide as they are."""
    found = []
    for level in (None, 0, 1):
        hashes = size if level in (None, 0) else size // TILE_WIDTH
        for number in range(-(-hashes // TILE_WIDTH)):
            width = min(TILE_WIDTH, hashes - number * TILE_WIDTH)
            found.append(Tile(level=level, number=number, width=width))
    return found


def _run(program: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, folder], capture_output=True, check=False, text=True)


def test_a_foreign_verifier_accepts_our_log(program: Path, published: Path):
    result = _run(program, published)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"verified {NEW} entries, cosigned by 3\n"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint",
        "old-checkpoint",
        "consistency",
        "receipt.tlog-proof",
        "receipt.leaf",
        "tile/0/000",
        "tile/0/002.p/88",
        "tile/1/000.p/2",
        "tile/entries/001",
        "tile/entries/002.p/88",
        "log.vkey",
        "cosigners.vkey",
    ],
)
def test_a_foreign_verifier_refuses_a_log_changed_anywhere(
    program: Path, published: Path, tmp_path: Path, name: str
):
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    result = _run(program, copy)
    assert result.returncode == 1
    assert "FAILED" in result.stderr


# -- over HTTP, from a real hub --------------------------------------------------------------------


class Line:
    """Everything between the hub and a stranger; it may flip one byte of one answer."""

    def __init__(self, hub: ASGIApp) -> None:
        self.hub = hub
        self.tampered = ""
        self.asked: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path"))
        self.asked.add(path)

        async def change(message: Message) -> None:
            if path == self.tampered and message.get("body"):
                body = bytearray(message["body"])
                body[len(body) // 2] ^= 1
                message = {**message, "body": bytes(body)}
            await send(message)

        await self.hub(scope, receive, change)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Line, str, Path]]:
    """A real hub with a long log on a loopback port, and what a stranger keeps of it."""
    folder = tmp_path_factory.mktemp("kept")
    with world(tmp_path_factory.mktemp("hub")) as here:
        database = here.database()
        journal = Journal(database, here.folder.log_key, here.folder.origin, now)
        with database.unit_of_work() as connection:
            journal.record_many(connection, "consent-receipt", _documents(0, OLD))
        with database.unit_of_work() as connection:
            (folder / "old-checkpoint").write_text(journal.checkpoint(connection))
            logged = journal.record_many(connection, "consent-receipt", _documents(OLD, NEW))[7]
            receipt = journal.receipt(connection, logged.digest, sites={})
            leaf, proof = foreign_form(receipt)
            (folder / "receipt.leaf").write_bytes(leaf)
            (folder / "receipt.tlog-proof").write_bytes(proof)
        for name in ("cleveland", "budapest"):
            actor = here.actors[name]
            text = actor.send("GET", "/checkpoint").text
            signed = note.cosign(text, name=name, key=actor.key, now=now())
            actor.ok("POST", f"/v1/sites/{name}/cosignatures", {"checkpoint": signed})
        (folder / "log.vkey").write_text(note.vkey(here.folder.origin, here.folder.log_key.did))
        with database.reading() as connection:
            dids = members.site_dids(connection)
        database.close()
        cosigners = [note.vkey(name, did, cosigner=True) for name, did in dids.items()]
        (folder / "cosigners.vkey").write_text("\n".join(cosigners))
        line = Line(here.app)
        with socket.create_server(("127.0.0.1", 0)) as listening, served(line, listening):
            yield line, f"http://127.0.0.1:{listening.getsockname()[1]}", folder


def _fetch(program: Path, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, folder, url], capture_output=True, check=False, text=True)


def test_a_foreign_verifier_fetches_our_log_over_http_and_accepts_it(
    program: Path, hub: tuple[Line, str, Path]
):
    line, url, folder = hub
    result = _fetch(program, folder, url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("verified ")
    assert result.stdout.endswith(" entries, cosigned by 2\n")
    partial = [path for path in line.asked if ".p/" in path]
    assert {path.split("/")[2] for path in partial} >= {"0", "1", "entries"}
    assert {"/checkpoint", "/tile/0/000", "/tile/entries/001", "/v1/log/proof"} <= line.asked


def test_a_foreign_verifier_refuses_what_was_changed_on_the_way(
    program: Path, hub: tuple[Line, str, Path]
):
    line, url, folder = hub
    assert _fetch(program, folder, url).returncode == 0
    for path in sorted(line.asked):
        line.tampered = path
        result = _fetch(program, folder, url)
        assert result.returncode == 1, path
        assert "FAILED" in result.stderr
    line.tampered = ""


def test_a_foreign_verifier_refuses_a_hub_that_rewrote_its_past(
    program: Path, hub: tuple[Line, str, Path], published: Path, tmp_path: Path
):
    _, url, folder = hub
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    shutil.copy(published / "old-checkpoint", kept)  # of another log
    assert _fetch(program, kept, url).returncode == 1
