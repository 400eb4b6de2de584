"""N of M patients consented: rows that hide every single answer and open their sum alone.

Each patient's answer is committed to in a row of her own (`consent.proofs.bits`), bound to the
log, its size, the hospital, the study and the row's place. The sum of all commitments is N·G + R·H;
N and R are published, so anybody adds up, and no other N fits.

The blinding of a row comes from the patient's own newest signed word: whoever holds that document
finds her row and reads how she was counted, and nobody else does. Rows stand in the order of their
commitments, so the place says nothing and no row stands twice.

It proves the arithmetic. That the answers are the true ones no proof can know: each patient checks
hers (`place_of`), and the hospital, which holds every document, can check all.

Core: pure; whoever counts hands in the randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha512
from itertools import pairwise
from typing import NamedTuple

from consent.proofs import bits, ristretto
from consent.proofs.bits import ROW_BYTES, Random
from consent.proofs.ristretto import G, GroupError, H, Point, Scalar
from coop.canonical import encode
from coop.errors import InvalidInputError, Kind

_TAG = b"coop/tally/v1"
_BLINDING = b"coop/tally/blinding/v1"


class TallyError(InvalidInputError):
    """The rows do not add up to what the tally says."""

    code = "proofs.tally"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a tally counts; every proof in it is bound to all of this."""

    log: str
    """did of the log's key."""
    origin: str
    log_size: int
    root: str
    """Hex root of the log at that size."""
    site: str
    study_sha256: str
    action: str
    at: int

    def context(self) -> bytes:
        """The bytes that proofs are bound to."""
        return encode(
            _TAG,
            {
                "log": self.log,
                "origin": self.origin,
                "log_size": self.log_size,
                "root": self.root,
                "site": self.site,
                "study": self.study_sha256,
                "action": self.action,
                "at": self.at,
            },
        )


class Answer(NamedTuple):
    """How one patient is counted."""

    body: bytes
    """Canonical bytes of her newest signed event."""
    permits: bool


class Counted(NamedTuple):
    """A tally's rows and the opening of their sum."""

    rows: bytes
    consented: int
    blinding: Scalar


class Place(NamedTuple):
    """Where a patient stands in a tally, and as what."""

    row: int
    counted: bool


def count(about: About, answers: Sequence[Answer], random: Random) -> Counted:
    """The rows of these answers, and their sum opened."""
    context = about.context()
    hidden = []
    for answer in answers:
        blinding = _blinding(context, answer.body)
        bit = int(answer.permits)
        hidden.append((bits.commitment(bit, blinding), bit, blinding))
    hidden.sort()
    total = ristretto.scalar_of(0)
    rows = []
    for index, (_, bit, blinding) in enumerate(hidden):
        rows.append(bits.prove(context, index, bit, blinding, random))
        total = ristretto.plus(total, blinding)
    return Counted(b"".join(rows), sum(bit for _, bit, _ in hidden), total)


def check(about: About, rows: bytes, *, patients: int, consented: int, blinding: bytes) -> None:
    """Return if `rows` are those of `patients` different people of whom `consented` permit.

    Steps: (1) so many rows, each once; (2) each proves that it holds yes or no, here and at its
    place; (3) the sum of all opens to `consented`.

    Raises:
        TallyError: (1) or (3) fails.
        BitProofError: (2) fails.
    """
    # (1)
    if patients < 1 or len(rows) != patients * ROW_BYTES or not 0 <= consented <= patients:
        raise TallyError(f"tally: must have {ROW_BYTES} bytes for each of its patients")
    parts = _parts(rows)
    commitments = [bits.commitment_of(part) for part in parts]
    if any(left >= right for left, right in pairwise(commitments)):
        raise TallyError("tally: rows must ascend; one stands twice or in another's place")
    # (2)
    context = about.context()
    points = [bits.check(context, index, part) for index, part in enumerate(parts)]
    # (3)
    try:
        opened = _opening(consented, ristretto.scalar(blinding))
        total = points[0]
        for one in points[1:]:
            total = ristretto.add(total, one)
    except GroupError as error:
        raise TallyError(f"tally: {error.message}") from error
    if total != opened:
        raise TallyError(f"tally: the rows do not add up to {consented} of {patients}")


def place_of(about: About, rows: bytes, body: bytes) -> Place | None:
    """Where the patient with this newest signed word stands and how she was counted.

    None if she does not: she has signed since, or was left out.
    """
    blinding = _blinding(about.context(), body)
    found = {bytes(bits.commitment(bit, blinding)): bool(bit) for bit in (0, 1)}
    for index, part in enumerate(_parts(rows)):
        committed = bits.commitment_of(part)
        if committed in found:
            return Place(index, found[committed])
    return None


def _parts(rows: bytes) -> list[bytes]:
    return [rows[at : at + ROW_BYTES] for at in range(0, len(rows), ROW_BYTES)]


def _blinding(context: bytes, body: bytes) -> Scalar:
    # Her document holds a random id and a signature: who has not seen it cannot guess the blinding.
    # Bound to the context, so that rows of two tallies cannot be compared.
    parts = (_BLINDING, context, body)
    hashed = sha512(b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    return ristretto.reduced(hashed.digest())


def _opening(consented: int, blinding: Scalar) -> Point:
    hidden = ristretto.multiple(blinding, H)
    if consented == 0:  # a product with zero would be the identity, which is refused
        return hidden
    return ristretto.add(ristretto.multiple(ristretto.scalar_of(consented), G), hidden)
