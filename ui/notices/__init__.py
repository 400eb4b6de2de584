"""What a patient is told before she decides: one exact file per language and version.

The file's SHA-256 stands in the consent she signs, so nobody can later claim other words. A changed
word is a new version; the old files stay, for whoever signed under them.
"""

import hashlib
from importlib.resources import files
from typing import Final

LANGUAGE: Final = "en"
VERSION: Final = "2"


def notice_text() -> str:
    """The wording in force, as it is shown."""
    return _content().decode()


def notice() -> dict[str, str]:
    """What the consent event says about the wording shown (`coop.documents.consent.Notice`)."""
    return {
        "uri": f"urn:coop:notice:{LANGUAGE}-{VERSION}",
        "language": LANGUAGE,
        "version": VERSION,
        "sha256": hashlib.sha256(_content()).hexdigest(),
    }


def _content() -> bytes:
    return files(__name__).joinpath(f"{LANGUAGE}-{VERSION}.md").read_bytes()
