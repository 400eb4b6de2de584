"""Signed notes, checkpoints and cosignatures exactly as C2SP writes them.

A checkpoint is three lines (origin, size, root) signed by the log; a hospital's cosignature over
the same lines, with a time, says: I have seen this log grow to here and nowhere else.

Formats: c2sp.org/signed-note, c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature. Core: pure.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from coop.canonical import Hash, sha256
from coop.errors import InvalidInputError, Kind
from coop.journal.merkle import HASH_BYTES
from coop.keys import SIGNATURE_BYTES, BadSignatureError, SigningKey, did_of, public_of, verify

NOTE_BYTES_MAX: Final = 65_536  # a checkpoint with a cosignature of 300 sites is 40 kB
SIGNATURES_MAX: Final = 400
_ED25519: Final = b"\x01"
_COSIGNATURE: Final = b"\x04"
_KEY_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
_KEY_BYTES: Final = 32
_NAME: Final = re.compile(r"[!-*,-~]{1,128}")  # printable ASCII, no space and no plus
_LINE: Final = re.compile(r"— ([!-*,-~]{1,128}) ([A-Za-z0-9+/]+={0,2})")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")


class NoteError(InvalidInputError):
    """The text is not a signed checkpoint of this log."""

    code: ClassVar[str] = "journal.bad-note"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the log says of itself, after its signature was verified."""

    origin: str
    size: int
    root: Hash
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureLine:
    """One signature of a note: who claims to have signed, which key, the bytes."""

    name: str
    key_id: bytes
    signature: bytes
    text: str


def key_id(name: str, did: str, *, cosigner: bool = False) -> bytes:
    """The four bytes by which a note names a key."""
    algorithm = _COSIGNATURE if cosigner else _ED25519
    return sha256(name.encode() + b"\n" + algorithm + public_of(did))[:_KEY_ID_BYTES]


def vkey(name: str, did: str, *, cosigner: bool = False) -> str:
    """The verifier key in the form foreign tools take: `name+keyid+base64`."""
    algorithm = _COSIGNATURE if cosigner else _ED25519
    identity = key_id(name, did, cosigner=cosigner).hex()
    return f"{name}+{identity}+{to_base64(algorithm + public_of(did))}"


def open_vkey(text: str) -> tuple[str, str]:
    """(name, did) of a cosigner's verifier key; the inverse of `vkey`.

    Raises:
        NoteError: It is not one.
    """
    name, _, rest = text.partition("+")
    _, _, material = rest.partition("+")
    data = from_base64(material)
    if data[:1] != _COSIGNATURE or len(data) != 1 + _KEY_BYTES or not _NAME.fullmatch(name):
        raise NoteError("vkey: not a cosigner's, of type 4 (Ed25519)")
    did = did_of(data[1:])
    if vkey(name, did, cosigner=True) != text:
        raise NoteError("vkey: its hash is not that of its name and key")
    return name, did


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The three signed lines of a checkpoint."""
    if not _NAME.fullmatch(origin) or size < 0 or len(root) != HASH_BYTES:
        raise NoteError("checkpoint: needs an origin without spaces, a size and a root of 32 bytes")
    return f"{origin}\n{size}\n{to_base64(root)}\n"


def sign_checkpoint(origin: str, size: int, root: bytes, key: SigningKey) -> str:
    """A checkpoint signed by the log's key under the log's own origin as name."""
    body = checkpoint_text(origin, size, root)
    signature = key_id(origin, key.did) + key.sign(body.encode())
    return f"{body}\n— {origin} {to_base64(signature)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """The lines of a checkpoint WITHOUT checking any signature: for what was verified before."""
    body, _ = _split(text)
    return _parse_body(body)


def open_checkpoint(text: str, *, origin: str, log_did: str) -> Checkpoint:
    """The checkpoint in `text`, after verifying that this log signed it.

    Raises:
        NoteError: Not a checkpoint of `origin`, or not signed by `log_did`.
    """
    body, lines = _split(text)
    checkpoint = _parse_body(body)
    if checkpoint.origin != origin:
        raise NoteError(f"checkpoint: of log {checkpoint.origin!r}, not of {origin!r}")
    expected = key_id(origin, log_did)
    for line in lines:
        if line.name == origin and line.key_id == expected:
            try:
                verify(public_of(log_did), body.encode(), line.signature)
            except BadSignatureError as error:
                raise NoteError("checkpoint: the log's signature does not verify") from error
            return checkpoint
    raise NoteError("checkpoint: not signed by the log's key in the trust file")


def cosign(text: str, *, name: str, key: SigningKey, now: int) -> str:
    """The note with one more cosignature/v1 line, by `name` at `now`.

    The caller must have verified that the log grew to this checkpoint from what it saw before.
    """
    body, _ = _split(text)
    _parse_body(body)
    if not _NAME.fullmatch(name):
        raise NoteError(f"cosigner: {name!r} has a character a note cannot hold")
    signature = key.sign(_cosigned(body, now))
    value = key_id(name, key.did, cosigner=True) + now.to_bytes(_TIME_BYTES) + signature
    return f"{text}— {name} {to_base64(value)}\n"


def cosignature_line(text: str, *, name: str, did: str) -> str | None:
    """The line by which `name` verifiably cosigned this note; None if there is none."""
    body, lines = _split(text)
    for line in lines:
        if line.name == name and _cosigns(body, line, did):
            return line.text
    return None


def cosigned_at(text: str, *, name: str, did: str) -> int | None:
    """When `name` last cosigned this note, verifiably, in its own UTC seconds; None if never."""
    body, lines = _split(text)
    times = [
        int.from_bytes(line.signature[:_TIME_BYTES])
        for line in lines
        if line.name == name and _cosigns(body, line, did)
    ]
    return max(times, default=None)


def cosigners(text: str, sites: Mapping[str, str]) -> set[str]:
    """Names of those `sites` (name to did) whose cosignature verifies. Unknown lines say nothing.

    This does not check the log's own signature: `open_checkpoint` does.
    """
    body, lines = _split(text)
    return {
        line.name for line in lines if line.name in sites and _cosigns(body, line, sites[line.name])
    }


def signature_lines(text: str) -> list[SignatureLine]:
    """Every signature line of the note, unverified."""
    return list(_split(text)[1])


def merge(first: str, second: str) -> str:
    """The note with the signature lines of both; they must sign the same text."""
    body, lines = _split(first)
    other_body, other_lines = _split(second)
    if body != other_body:
        raise NoteError("merge: the two notes are of different checkpoints")
    ordered = dict.fromkeys(line.text for line in [*lines, *other_lines])
    return body + "\n" + "".join(line + "\n" for line in ordered)


def with_lines(text: str, lines: list[str]) -> str:
    """The note with more signature lines, as they are."""
    return text + "".join(line + "\n" for line in lines)


def without_cosignatures(text: str) -> str:
    """The note with its first signature alone: the log's own, which signs before all others."""
    body, lines = _split(text)
    return f"{body}\n{lines[0].text}\n"


def to_base64(data: bytes) -> str:
    """Standard base64 with padding, as notes write it."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """The inverse; refuses anything that does not encode back to itself."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise NoteError("note: not base64") from error
    if to_base64(data) != text:
        raise NoteError("note: base64 not in canonical form")
    return data


def _cosigned(body: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{body}".encode()


def _cosigns(body: str, line: SignatureLine, did: str) -> bool:
    if line.key_id != key_id(line.name, did, cosigner=True):
        return False
    if len(line.signature) != _TIME_BYTES + SIGNATURE_BYTES:
        return False
    time = int.from_bytes(line.signature[:_TIME_BYTES])
    try:
        verify(public_of(did), _cosigned(body, time), line.signature[_TIME_BYTES:])
    except BadSignatureError:
        return False
    return True


def _split(text: str) -> tuple[str, list[SignatureLine]]:
    if len(text) > NOTE_BYTES_MAX:
        raise NoteError(f"note: longer than {NOTE_BYTES_MAX} bytes")
    body, blank, signatures = text.rpartition("\n\n")
    if not blank or not signatures.endswith("\n"):
        raise NoteError("note: has no signatures after an empty line")
    lines = signatures[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"note: more than {SIGNATURES_MAX} signatures")
    return body + "\n", list(_lines(lines))


def _lines(lines: list[str]) -> Iterator[SignatureLine]:
    for text in lines:
        found = _LINE.fullmatch(text)
        data = from_base64(found[2]) if found else b""
        if not found or len(data) <= _KEY_ID_BYTES:
            raise NoteError("note: a signature line is malformed")
        yield SignatureLine(
            name=found[1], key_id=data[:_KEY_ID_BYTES], signature=data[_KEY_ID_BYTES:], text=text
        )


def _parse_body(body: str) -> Checkpoint:
    origin, *rest = body.split("\n")
    if len(rest) != 3 or rest[2] or not _NAME.fullmatch(origin) or not _NUMBER.fullmatch(rest[0]):  # noqa: PLR2004  (size, root, end)
        raise NoteError("checkpoint: must be the three lines origin, size and root")
    root = from_base64(rest[1])
    if len(root) != HASH_BYTES:
        raise NoteError("checkpoint: its root must be 32 bytes")
    return Checkpoint(origin=origin, size=int(rest[0]), root=Hash(root), body=body)
