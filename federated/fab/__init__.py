"""The Flower app bundle that names us to Flower: one `pyproject.toml`, no code.

Flower wants a bundle for every run. Ours says only which app it is; a hospital's executor compares
its digest with the approved one and never unpacks it, because the app itself is installed.
"""

import hashlib
import io
import zipfile
from functools import cache
from importlib.resources import files
from typing import Final

_NAMES: Final = ("pyproject.toml",)
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the digest depends on content alone


@cache
def fab_bytes() -> bytes:
    """The bundle; the same bytes on every machine (stored, never compressed)."""
    content = {name: files(__package__).joinpath(name).read_bytes() for name in _NAMES}
    manifest = "\n".join(
        f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}"
        for name, data in content.items()
    )
    content[".info/CONTENT"] = manifest.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            bundle.writestr(entry, data)
    return buffer.getvalue()


@cache
def fab_hash() -> str:
    """Hex SHA-256 of `fab_bytes()`: stands in approvals, orders and allow-lists."""
    return hashlib.sha256(fab_bytes()).hexdigest()
