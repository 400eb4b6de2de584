"""Diseases: a pinned extract of the MONDO ontology, and what stands above each of them.

`mondo.tsv` lies beside this module and is read once, like code: release, licence and how it was
made stand in its first lines. A disease outside it has nothing above it but disease research.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from pkgutil import get_data
from typing import Final

from coop.errors import InvariantError

RELEASE: Final = "v2026-05-05"
SHA256: Final = "d964712cc1ca39dd5297e1d5997456758e2a4c53b59e4376690faae23d9fd63a"
"""Of `mondo.tsv`: two parties with the same digest agree on what is below what."""
_CODE_DIGITS: Final = 7


def is_disease(code: str) -> bool:
    """Whether `code` is a well-formed MONDO code."""
    prefix, _, digits = code.partition(":")
    return (
        prefix == "MONDO" and len(digits) == _CODE_DIGITS and digits.isascii() and digits.isdigit()
    )


def above(disease: str) -> frozenset[str]:
    """The disease itself and every disease it is a kind of, as far as the extract knows."""
    return _ABOVE.get(disease) or frozenset({disease})


def _read(table: bytes) -> dict[str, tuple[str, tuple[str, ...]]]:
    lines = [line for line in table.decode().splitlines() if not line.startswith("#")]
    found = {}
    for line in lines[1:]:
        code, label, parents = line.split("\t")
        found[code] = (label, tuple(parents.split()))
    return found


def _table() -> bytes:
    table = get_data(__package__ or "consent", "mondo.tsv")
    if table is None:
        raise InvariantError("mondo.tsv: missing from the installed package")
    return table


DISEASES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = _read(_table())
"""By code: MONDO's label and the codes of the nearest diseases above."""


def _closed(diseases: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}

    def close(code: str) -> frozenset[str]:
        if code not in found:
            found[code] = frozenset({code}).union(*map(close, diseases[code][1]))
        return found[code]

    for code in diseases:
        close(code)
    return found


_ABOVE: Final = _closed(DISEASES)
