"""Outside witnesses over `/add-checkpoint`: a strict one signs our log, and catches a fork."""

import base64
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from doors_world import world
from small_world import DIDS, LOG, NOW, TRUST, World, consent_receipt

from coop.db import Database
from coop.hub.outside import Outside
from coop.journal import note
from coop.journal.rows import outside_refusal
from coop.journal.witness import Witness, WitnessesFileError, witnesses_of
from coop.keys import public_of
from coop.settings import Settings

KIND = "consent-receipt"


# -- the witness: c2sp.org/tlog-witness by the letter, with nothing of ours ------------------------


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def consistent(old: int, size: int, roots: tuple[bytes, bytes], proof: list[bytes]) -> bool:
    """RFC 6962 §2.1.4, written from its recursive definition: rebuild both roots."""
    rest = list(proof)

    def rebuild(m: int, n: int, known: bytes | None) -> tuple[bytes, bytes]:
        if m == n:
            one = rest.pop() if known is None else known
            return one, one
        k = 1 << ((n - 1).bit_length() - 1)
        if m <= k:
            right = rest.pop()
            before, after = rebuild(m, k, known)
            return before, node(after, right)
        left = rest.pop()
        before, after = rebuild(m - k, n - k, None)
        return node(left, before), node(left, after)

    try:
        return rebuild(old, size, roots[0]) == roots and not rest
    except IndexError:
        return False


@dataclass
class Strict:
    """A witness server; `behave` lets a test make her a bad one."""

    origin: str
    log_key: bytes
    name: str = "witness.example/w1"
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    size: int = 0
    root: bytes = hashlib.sha256(b"").digest()
    asked: list[tuple[int, int]] = field(default_factory=list)
    behave: str = ""

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(self.name.encode() + b"\n\x04" + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        material = base64.b64encode(b"\x04" + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    def add(self, data: bytes) -> tuple[int, str]:
        head, _, checkpoint = data.decode().partition("\n\n")
        first, *lines = head.split("\n")
        body, _, signatures = checkpoint.rpartition("\n\n")
        body += "\n"
        origin, said, root_text, end = body.split("\n")
        if not first.startswith("old ") or len(lines) > 63 or end:
            return 400, ""
        if origin != self.origin:
            return 404, ""
        if not self.signed(body, signatures):
            return 403, ""
        old, size, root = int(first[4:]), int(said), base64.b64decode(root_text, validate=True)
        self.asked.append((old, size))
        proof = [base64.b64decode(line, validate=True) for line in lines]
        status = self.judge(old, size, root, proof)
        if status != 200:
            return status, f"{self.size}\n" if status == 409 else ""
        self.size, self.root = size, root
        return 200, self.line(body)

    def judge(self, old: int, size: int, root: bytes, proof: list[bytes]) -> int:
        if old > size:
            return 400
        if old != self.size or (old == size and root != self.root):
            return 409
        if old in {0, size}:
            return 422 if proof else 200
        return 200 if consistent(old, size, (self.root, root), proof) else 422

    def signed(self, body: str, signatures: str) -> bool:
        expected = hashlib.sha256(self.origin.encode() + b"\n\x01" + self.log_key).digest()[:4]
        for line in signatures.splitlines():
            _, name, text = line.split(" ")
            data = base64.b64decode(text, validate=True)
            if name == self.origin and data[:4] == expected:
                try:
                    Ed25519PublicKey.from_public_bytes(self.log_key).verify(data[4:], body.encode())
                except InvalidSignature:
                    return False
                return True
        return False

    def line(self, body: str) -> str:
        if self.behave == "signs something else":
            body = body.replace("\n", "\n9", 1)
        message = f"cosignature/v1\ntime {NOW}\n{body}".encode()
        data = self.key_id + NOW.to_bytes(8) + self.key.sign(message)
        if self.behave == "says nothing":
            return ""
        return f"— {self.name} {base64.b64encode(data).decode()}\n"


class Handler(BaseHTTPRequestHandler):
    strict: Strict

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        status, text = self.strict.add(data) if self.path == "/w/add-checkpoint" else (404, "")
        if self.strict.behave.isdigit():
            status, text = int(self.strict.behave), "no"
        self.send_response(status)
        if status == 409:
            self.send_header("Content-Type", "text/x.tlog.size")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def strict() -> Iterator[tuple[Strict, Witness]]:
    here = Strict(TRUST.origin, public_of(LOG.did))
    handler = type("Mine", (Handler,), {"strict": here})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/w"
        yield here, Witness.of_line(f"{here.vkey} {url}")
        server.shutdown()


@pytest.fixture
def log(sqlite_database: Database) -> World:
    return World(sqlite_database)


def grow(log: World, *numbers: int) -> None:
    for number in numbers:
        log.record(KIND, consent_receipt(number))


def signed(log: World, outside: Outside) -> dict[str, object]:
    with log.database.reading() as connection:
        (one,) = outside.signed(connection)
    return one


def test_a_strict_witness_signs_our_log_as_it_grows(log: World, strict: tuple[Strict, Witness]):
    server, witness = strict
    outside = Outside(log.database, log.journal, [witness], log.clock)
    outside.push()
    assert server.asked == []  # an empty log needs no witness
    for numbers in ([0], [1, 2, 3, 4, 5], [6]):
        grow(log, *numbers)
        log.witness("zurich")
        outside.push()
        outside.push()  # nothing new: she is not asked again
    assert server.asked == [(0, 1), (1, 6), (6, 7)]
    one = signed(log, outside)
    assert one["refusals"] == []
    text = str(one["checkpoint"])
    seen = note.open_checkpoint(text, origin=TRUST.origin, log_did=LOG.did)
    assert (seen.size, seen.root) == (7, server.root)
    assert note.cosigners(text, {witness.name: witness.did}) == {witness.name}
    # Whose word counts for a grant is the members' only.
    with log.database.reading() as connection:
        assert (
            note.cosigners(log.journal.checkpoint(connection), {witness.name: witness.did}) == set()
        )
        assert "zurich" in note.cosigners(log.journal.checkpoint(connection), DIDS)
    outside.close()


def test_a_conflict_names_her_size_and_the_proof_begins_there(
    log: World, strict: tuple[Strict, Witness], tmp_path: Path
):
    server, witness = strict
    grow(log, 0, 1, 2)
    first = Outside(log.database, log.journal, [witness], log.clock)
    first.push()
    with log.database.unit_of_work() as connection:  # restored from a backup that lacks her word
        connection.execute(sa.text("DELETE FROM outside_cosignature"))
    grow(log, 3, 4)
    first.push()
    assert server.asked == [(0, 3), (0, 5), (3, 5)]
    assert signed(log, first)["refusals"] == []
    with log.database.unit_of_work() as connection:
        connection.execute(sa.text("DELETE FROM outside_cosignature"))
    first.push()  # she has it already: the same size once more
    assert server.asked[-2:] == [(0, 5), (5, 5)]
    first.close()


def test_a_fork_is_refused_by_her_and_the_evidence_is_kept(
    log: World, strict: tuple[Strict, Witness], tmp_path: Path
):
    server, witness = strict
    grow(log, 0, 1, 2, 3)
    honest = Outside(log.database, log.journal, [witness], log.clock)
    honest.push()
    honest.close()
    for name, numbers, statuses in (
        ("same size", (9, 8, 7, 6), {409}),
        ("grown", (9, 8, 7, 6, 5), {422}),
        ("shrunk", (0, 1), {409}),
    ):
        database = Database(f"sqlite:///{tmp_path / name.replace(' ', '-')}")
        database.upgrade()
        fork = World(database)
        grow(fork, *numbers)
        outside = Outside(database, fork.journal, [witness], fork.clock)
        outside.push()
        asked = len(server.asked)
        outside.push()
        assert len(server.asked) == asked  # she is not asked about the same fork again
        one = signed(fork, outside)
        assert one["checkpoint"] is None
        (refusal,) = one["refusals"]
        assert {refusal["status"]} == statuses
        theirs = str(refusal["sent"]).partition("\n\n")[2]
        assert note.open_checkpoint(theirs, origin=TRUST.origin, log_did=LOG.did).size == len(
            numbers
        )
        outside.close()
        database.close()
    assert server.size == 4


@pytest.mark.parametrize(
    "behave", ["signs something else", "says nothing", "400", "403", "404", "422", "409"]
)
def test_what_is_no_cosignature_of_hers_is_refused_and_kept(
    log: World, strict: tuple[Strict, Witness], behave: str
):
    server, witness = strict
    server.behave = behave
    grow(log, 0)
    outside = Outside(log.database, log.journal, [witness], log.clock)
    outside.push()
    one = signed(log, outside)
    assert one["checkpoint"] is None
    assert [each["status"] for each in one["refusals"]] == [int(behave) if behave.isdigit() else 0]
    server.behave, server.size, server.root = "", 0, hashlib.sha256(b"").digest()
    grow(log, 1)
    outside.push()
    assert signed(log, outside)["checkpoint"] is not None
    outside.close()


def test_a_witness_that_is_away_or_fails_holds_up_nothing(
    log: World, strict: tuple[Strict, Witness]
):
    server, witness = strict
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = Witness.of_line(
        f"{note.vkey('away', DIDS['zurich'], cosigner=True)} http://127.0.0.1:{port}"
    )
    outside = Outside(log.database, log.journal, [away, witness], log.clock)
    grow(log, 0)
    outside.push()
    assert server.size == 1
    server.behave = "503"
    grow(log, 1)
    outside.push()
    with log.database.reading() as connection:
        assert connection.execute(sa.select(outside_refusal)).all() == []
    outside.close()


def test_a_file_of_witnesses_has_one_form():
    vkey = note.vkey("w.example", DIDS["zurich"], cosigner=True)
    text = f"# ours\n{vkey} https://w.example/a/\n\n"
    (one,) = witnesses_of(text)
    assert (one.name, one.url, one.vkey) == ("w.example", "https://w.example/a", vkey)
    log_key = note.vkey("w.example", DIDS["zurich"])
    for bad in (
        vkey,
        f"{vkey} http://w.example",
        f"{vkey} ftp://w.example",
        f"{vkey} https://",
        f"{vkey} https://w.example?a=b",
        f"{vkey} https://w.example extra",
        f"{log_key} https://w.example",
        f"{vkey[:-6]}AAAAA= https://w.example",
        f"x{vkey} https://w.example",
        f"{vkey} https://a.example\n{vkey} https://b.example",
    ):
        with pytest.raises(WitnessesFileError):
            witnesses_of(bad)


def test_the_hub_shows_its_outside_witnesses_in_public(tmp_path: Path):
    with world(tmp_path) as here:
        assert here.actors["public"].ok("GET", "/v1/log/witnesses") == {"witnesses": []}
    assert Settings().witnesses_file is None
