"""Outside witnesses (c2sp.org/tlog-witness): what is said to one and what it may answer.

Core: pure, no I/O.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self
from urllib.parse import urlsplit

from coop.errors import InvalidInputError
from coop.journal import note

WITNESSES_MAX: Final = 32
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\n?")


class WitnessesFileError(InvalidInputError):
    """The file of outside witnesses does not hold what it must hold."""

    code: ClassVar[str] = "witness.file"


class WitnessAnswerError(InvalidInputError):
    """An outside witness answered with something that is no cosignature of hers."""

    code: ClassVar[str] = "witness.answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """An outside witness: her name in notes, her key, and where she takes checkpoints."""

    name: str
    did: str
    url: str

    @property
    def vkey(self) -> str:
        """Her verifier key, for foreign tools."""
        return note.vkey(self.name, self.did, cosigner=True)

    @classmethod
    def of_line(cls, line: str) -> Self:
        """Read `VKEY URL`.

        Raises:
            WitnessesFileError: It is neither, or the URL would send in the clear.
        """
        parts = line.split()
        try:
            name, did = note.open_vkey(parts[0])
            url = urlsplit(parts[1].rstrip("/"))
            safe = url.scheme == "https" or (url.scheme, url.hostname in _LOOPBACK) == (
                "http",
                True,
            )
        except (IndexError, ValueError, InvalidInputError) as error:
            raise WitnessesFileError("witnesses: each line is a verifier key and a URL") from error
        if len(parts) != 2 or not url.hostname or not safe or url.query or url.fragment:  # noqa: PLR2004  (key, URL)
            raise WitnessesFileError("witnesses: the URL must be https://, or of this machine")
        return cls(name=name, did=did, url=url.geturl())


def witnesses_of(text: str) -> list[Witness]:
    """The witnesses in a file: one a line, `#` begins a remark.

    Raises:
        WitnessesFileError: A line is none, or a name stands twice.
    """
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    found = [Witness.of_line(line) for line in lines if line and not line.startswith("#")]
    if len({one.name for one in found}) != len(found) or len(found) > WITNESSES_MAX:
        raise WitnessesFileError(f"witnesses: at most {WITNESSES_MAX}, each named once")
    return found


def request_text(old: int, proof: Sequence[bytes], checkpoint: str) -> str:
    """The body of `/add-checkpoint`: the size she has seen, the proof from there, the note."""
    lines = [f"old {old}", *(note.to_base64(part) for part in proof), "", checkpoint]
    return "\n".join(lines)


def cosignature_in(answer: str, checkpoint: str, witness: Witness) -> str:
    """Her line in an answer of 200, verified over exactly the checkpoint she was sent.

    Raises:
        WitnessAnswerError: There is none.
    """
    try:
        line = note.cosignature_line(checkpoint + answer, name=witness.name, did=witness.did)
    except note.NoteError as error:
        raise WitnessAnswerError(f"witness: {error.message}") from error
    if line is None:
        raise WitnessAnswerError("witness: the answer holds no cosignature of hers")
    return line


def size_in(answer: str) -> int:
    """The size she has seen, in an answer of 409.

    Raises:
        WitnessAnswerError: It holds no size.
    """
    found = _SIZE.fullmatch(answer)
    if found is None:
        raise WitnessAnswerError("witness: 409 without the size she has seen")
    return int(found[1])
