"""Holds `consent/mondo.tsv` against a release of MONDO: `python tests/mondo_extract.py FILE`.

The file is a JSON object by code: {"label", "deprecated", "ancestors": {code: steps}}, the form
in which cellxgene-ontology-guide ships it. What is wrong is printed, and exit code 1.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consent.mondo import DISEASES


def compared(release: Mapping[str, Any]) -> list[str]:
    """Every code, label and step of the extract that the release does not have."""
    wrong = []
    for code, (label, parents) in DISEASES.items():
        term = release.get(code)
        if term is None or term["deprecated"]:
            wrong.append(f"{code} {label}: is not in the release, or obsolete")
            continue
        if term["label"] != label:
            wrong.append(f"{code}: is called {term['label']!r}, not {label!r}")
        wrong += [
            f"{code} {label}: is no kind of {parent}"
            for parent in parents
            if parent not in term["ancestors"]
        ]
    return wrong


if __name__ == "__main__":
    found = compared(json.loads(Path(sys.argv[1]).read_bytes()))
    print("\n".join(found) or f"all {len(DISEASES)} diseases stand as they are here")  # noqa: T201
    sys.exit(bool(found))
