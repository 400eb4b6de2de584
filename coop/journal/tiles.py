"""The log's public files (c2sp.org/tlog-tiles): paths, and how leaves lie in an entry bundle.

Core: pure, no I/O.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coop.errors import InvalidInputError, NotFoundError

TILE_WIDTH: Final = 256
_LEVEL_MAX: Final = 7  # 2^(8·8) leaves
_PATH: Final = re.compile(
    r"(?P<level>entries|[0-9]{1,2})/(?P<number>(x[0-9]{3}/)*[0-9]{3})(\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_LEAF_BYTES_MAX: Final = 65_535  # its length is a uint16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """`width` consecutive hashes of one level, or entries if `level` is None."""

    level: int | None
    number: int
    width: int

    @property
    def start(self) -> int:
        """Index of the first hash or entry."""
        return self.number * TILE_WIDTH


def parse_path(path: str) -> Tile:
    """The tile that a path below `/tile/` names (`0/x001/x234/067.p/5`, `entries/000`).

    Raises:
        NotFoundError: No tile has this path.
    """
    found = _PATH.fullmatch(path)
    level = None if found is None or found["level"] == "entries" else int(found["level"])
    number = int(found["number"].replace("/", "").replace("x", "")) if found else 0
    width = int(found["width"] or TILE_WIDTH) if found else 0
    plain = Tile(level=level, number=number, width=width)
    too_much = width > TILE_WIDTH or (level or 0) > _LEVEL_MAX
    if found is None or too_much or path_of(plain) not in (path, f"{path}.p/{TILE_WIDTH}"):
        raise NotFoundError("tile: there is no such tile")
    return plain


def path_of(tile: Tile) -> str:
    """The path of a tile below `/tile/`."""
    digits = str(tile.number)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    partial = "" if tile.width == TILE_WIDTH else f".p/{tile.width}"
    return f"{'entries' if tile.level is None else tile.level}/{number}{partial}"


def entry_bundle(leaves: Sequence[bytes], tile: Tile) -> bytes:
    """The bytes of an entry tile: every leaf behind its length in two bytes.

    Raises:
        NotFoundError: The log has not grown so far.
    """
    if len(leaves) != tile.width:
        raise NotFoundError("tile: the log has not grown so far")
    if any(len(leaf) > _LEAF_BYTES_MAX for leaf in leaves):
        raise InvalidInputError("leaf: longer than a tile can hold")
    return b"".join(len(leaf).to_bytes(2) + leaf for leaf in leaves)
