"""The published vectors that lie beside the checkout, where they are."""

from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent.parent.parent / "shared" / "vectors"
OWN = Path(__file__).parent / "vectors"


def published(name: str) -> Path:
    """The folder of published vectors `name`; the test is skipped where it is absent."""
    folder = _FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"the published vectors {name} do not lie beside this checkout")
    return folder
