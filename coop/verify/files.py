"""Files as they were written: a byte that says nothing must not be changed unseen either."""

import json
from typing import ClassVar, Final

from coop.canonical import Json, parse_object
from coop.errors import InvalidInputError, Kind
from coop.journal import note
from coop.journal.receipts import parse_proof

_INDENTS: Final = (None, 1, 2)  # on one line, as our commands write it; for people, as jq does

_FORMS: Final = [(indent, escaped) for indent in _INDENTS for escaped in (False, True)]


class RewrittenFileError(InvalidInputError):
    """The file was changed after it was written: it says the same, in other bytes."""

    code: ClassVar[str] = "verify.rewritten"
    kind: ClassVar[Kind] = Kind.FORBIDDEN


def read_file(data: bytes, bytes_max: int) -> dict[str, Json]:
    """The JSON object in a file of exactly the bytes that some common writer writes.

    The forms: on one line, or indented by one or two spaces; text beyond ASCII as it is, or
    escaped; a line break at the end or none. Any other space, escape or order of digits is refused:
    so no byte can be changed without a verifier noticing, whether it means something or not.

    Raises:
        NotCanonicalError: It is no strict JSON.
        RewrittenFileError: It is written in none of these forms.
    """
    value = parse_object(data, bytes_max=bytes_max)
    text = data.removesuffix(b"\n")
    # Most files are in the first form, so the others are hardly ever written.
    if not any(text == _written(value, indent, escaped) for indent, escaped in _FORMS):
        raise RewrittenFileError("file: is not as it was written; get it anew from where it came")
    return value


def checkpoint_in(data: bytes, bytes_max: int) -> str:
    """The signed checkpoint in a file: alone, in a `.tlog-proof`, a receipt, or an exported log.

    Raises:
        NoteError: There is none.
    """
    if not data.lstrip().startswith(b"{"):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise note.NoteError("checkpoint: the file is not UTF-8 text") from error
        return parse_proof(text).checkpoint if text.startswith("c2sp.org/tlog-proof@") else text
    value = read_file(data, bytes_max)
    if isinstance(value.get("proof"), str):
        return parse_proof(str(value["proof"])).checkpoint
    if isinstance(value.get("checkpoint"), str):
        return str(value["checkpoint"])
    raise note.NoteError("checkpoint: the file holds none")


def _written(value: Json, indent: int | None, escaped: bool) -> bytes:  # noqa: FBT001  (one of two, from a list)
    compact = (",", ":") if indent is None else None
    # Not to be hashed or signed, only to be compared with what lies there.
    text = json.dumps(value, indent=indent, separators=compact, ensure_ascii=escaped)  # noqa: TID251
    return text.encode()
