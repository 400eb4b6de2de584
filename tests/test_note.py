"""Checkpoints and cosignatures: strict in form, and worth exactly the keys behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import DIDS, LOG, NOW, SITES, TRUST, key

from coop.canonical import sha256
from coop.errors import InvalidInputError, NotFoundError
from coop.journal import note
from coop.journal.note import NoteError
from coop.journal.tiles import Tile, entry_bundle, parse_path, path_of

ROOT = sha256(b"root")
TEXT = note.sign_checkpoint(TRUST.origin, 7, ROOT, LOG)


def opened(text: str) -> note.Checkpoint:
    return note.open_checkpoint(text, origin=TRUST.origin, log_did=LOG.did)


def cosigned(*names: str, text: str = TEXT) -> str:
    for name in names:
        text = note.cosign(text, name=name, key=SITES[name], now=NOW)
    return text


def test_a_checkpoint_reads_as_three_lines_and_a_signature():
    body, signature = TEXT.split("\n\n")
    assert body.split("\n")[:2] == ["hub.test/log", "7"]
    assert signature.startswith("— hub.test/log ")
    assert (opened(TEXT).size, opened(TEXT).root) == (7, ROOT)
    assert note.parse_checkpoint(TEXT) == opened(TEXT)


def test_the_key_names_are_those_of_the_signed_note_format():
    # name+hash+base64(0x01 ‖ key), hash = first four bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ key)
    name, identity, material = note.vkey(TRUST.origin, LOG.did).split("+", 2)
    data = note.from_base64(material)
    assert data == b"\x01" + LOG.public
    assert identity == sha256(name.encode() + b"\n" + data)[:4].hex()
    assert note.vkey("zurich", DIDS["zurich"], cosigner=True) != note.vkey("zurich", DIDS["zurich"])


def test_only_this_log_signs_its_checkpoints():
    with pytest.raises(NoteError, match="not signed"):
        opened(note.sign_checkpoint(TRUST.origin, 7, ROOT, key("forger")))
    with pytest.raises(NoteError, match="of log"):
        opened(note.sign_checkpoint("other.test/log", 7, ROOT, LOG))
    body, _, line = TEXT.rpartition("\n\n")
    with pytest.raises(NoteError, match="does not verify"):
        opened(body.replace("\n7\n", "\n8\n") + "\n\n" + line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hub.test/log\n7\n",
        TEXT[:-1],
        TEXT + "\n",
        TEXT + "x\n",
        TEXT + "— zurich\n",
        TEXT + "— zurich AA\n",
        TEXT + "— zurich AAAA\n",
        TEXT + "- zurich AAAAAAAA\n",
        TEXT + "— zür ich AAAAAAAA\n",
        TEXT.replace("\n7\n", "\n07\n"),
        TEXT.replace("\n7\n", "\n-7\n"),
        TEXT.replace("\n7\n", "\n7\nextra\n"),
        TEXT.replace("hub.test/log\n7", "hub test/log\n7"),
        TEXT.replace("\n", "\r\n"),
        TEXT + "— zurich AAAAAAAAAA==\n" * 500,
        "x" * 70_000,
    ],
)
def test_a_note_has_one_form(text):
    with pytest.raises(NoteError):
        opened(text)


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [("", 1, ROOT), ("a b", 1, ROOT), ("a+b", 1, ROOT), ("a", -1, ROOT), ("a", 1, b"short")],
)
def test_no_checkpoint_is_signed_that_no_one_could_read(origin, size, root):
    with pytest.raises(NoteError):
        note.sign_checkpoint(origin, size, root, LOG)


def test_cosigners_are_those_whose_signature_verifies():
    text = cosigned("zurich", "budapest")
    assert note.cosigners(text, DIDS) == {"zurich", "budapest"}
    assert note.cosigners(text, {"zurich": DIDS["zurich"]}) == {"zurich"}
    assert note.cosigners(TEXT, DIDS) == set()
    assert opened(text) == opened(TEXT)


def test_a_cosigner_cannot_speak_for_another():
    forged = note.cosign(TEXT, name="zurich", key=SITES["budapest"], now=NOW)
    assert note.cosigners(forged, DIDS) == set()


def test_the_logs_own_signature_is_no_cosignature():
    assert note.cosigners(TEXT, {TRUST.origin: LOG.did}) == set()


def test_a_cosignature_serves_no_other_checkpoint_and_no_other_time():
    line = cosigned("zurich").removeprefix(TEXT)
    other = note.sign_checkpoint(TRUST.origin, 8, ROOT, LOG)
    assert note.cosigners(other + line, DIDS) == set()
    later = note.cosign(TEXT, name="zurich", key=SITES["zurich"], now=NOW + 1).removeprefix(TEXT)
    assert later != line
    data = bytearray(note.from_base64(line.split(" ")[2].strip()))
    data[11] ^= 1  # the last byte of the time
    moved = f"— zurich {note.to_base64(bytes(data))}\n"
    assert note.cosigners(TEXT + moved, DIDS) == set()


def test_one_name_can_hold_a_broken_and_a_good_line():
    broken = note.cosign(TEXT, name="zurich", key=key("forger"), now=NOW)
    assert note.cosigners(cosigned("zurich", text=broken), DIDS) == {"zurich"}


def test_the_line_of_a_site_can_be_taken_out_and_put_back():
    text = cosigned("zurich", "budapest")
    line = note.cosignature_line(text, name="zurich", did=DIDS["zurich"])
    assert line is not None
    assert note.with_lines(TEXT, [line]) == cosigned("zurich")
    assert note.cosignature_line(text, name="cleveland", did=DIDS["cleveland"]) is None
    assert note.cosignature_line(text, name="zurich", did=DIDS["budapest"]) is None


def test_merging_keeps_every_signature_once():
    first, second = cosigned("zurich"), cosigned("budapest", "zurich")
    merged = note.merge(first, second)
    assert note.cosigners(merged, DIDS) == {"zurich", "budapest"}
    assert note.merge(merged, merged) == merged
    assert len(note.signature_lines(merged)) == 3


def test_notes_of_different_checkpoints_never_merge():
    with pytest.raises(NoteError, match="different"):
        note.merge(TEXT, note.sign_checkpoint(TRUST.origin, 8, ROOT, LOG))


def test_a_cosigner_needs_a_name_that_a_note_can_hold():
    with pytest.raises(NoteError):
        note.cosign(TEXT, name="zü rich", key=SITES["zurich"], now=NOW)


@given(st.integers(0, len(TEXT.encode()) - 1), st.integers(0, 7))
def test_any_bit_changed_in_a_checkpoint_is_noticed(position, bit):
    data = bytearray(TEXT.encode())
    data[position] ^= 1 << bit
    with pytest.raises((NoteError, UnicodeDecodeError)):
        opened(bytes(data).decode())


@given(
    st.one_of(st.none(), st.integers(0, 7)),
    st.integers(0, 10**9),
    st.integers(1, 256),
)
def test_a_tile_has_one_path(level, number, width):
    tile = Tile(level=level, number=number, width=width)
    assert parse_path(path_of(tile)) == tile


def test_tile_paths_are_those_of_the_format():
    assert path_of(Tile(level=0, number=1234067, width=256)) == "0/x001/x234/067"
    assert path_of(Tile(level=None, number=0, width=5)) == "entries/000.p/5"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0/0",
        "0/0000",
        "8/000",
        "00/000",
        "0/x000/001",
        "entries/000.p/0",
        "entries/000.p/257",
        "0/000.p/256",
        "../000",
    ],
)
def test_any_other_path_is_no_tile(path):
    with pytest.raises(NotFoundError):
        parse_path(path)


def test_an_entry_tile_holds_each_leaf_behind_its_length():
    tile = Tile(level=None, number=0, width=2)
    assert entry_bundle([b"a", b"bc"], tile) == b"\x00\x01a\x00\x02bc"
    with pytest.raises(NotFoundError):
        entry_bundle([b"a"], tile)
    with pytest.raises(InvalidInputError):
        entry_bundle([b"a", bytes(65_536)], tile)
