"""The bundled records of four real hospitals (UCI Heart Disease, 1988, CC BY 4.0)."""

import hashlib
from pathlib import Path
from typing import Final

import orjson

from coop.errors import InvariantError

FOLDER: Final = Path(__file__).parent
SITES: Final = ("cleveland", "budapest", "zurich", "longbeach")
ATTRIBUTION: Final = (FOLDER / "ATTRIBUTION").read_text()
"""Print it wherever the data ships."""


def csv_of(site: str) -> Path:
    """The tidy file of one of the four `SITES`."""
    return FOLDER / f"{site}.csv"


def is_bundled(path: Path, site: str) -> bool:
    """Whether `path` holds exactly the bundled records of `site`."""
    if site not in SITES:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == _recorded(site)


def split() -> dict[str, dict[str, list[str]]]:
    """FLamby's fixed split: site → `train` and `test` → patient numbers (740 in all)."""
    document: dict[str, dict[str, dict[str, list[str]]]] = orjson.loads(
        (FOLDER / "split.json").read_bytes()
    )
    return document["sites"]


def _recorded(site: str) -> str:
    provenance = orjson.loads((FOLDER / "provenance.json").read_bytes())
    for entry in provenance["outputs"]:
        if entry["file"] == f"{site}.csv":
            return str(entry["sha256"])
    raise InvariantError(f"provenance.json lacks {site}")
