"""`coop doctor`: what this machine has, lacks, and how to mend it."""

import json
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import typer

app = typer.Typer(add_completion=False)

_PACKAGES = {
    "flwr": "hub and node",
    "torch": "node",
    "opacus": "node",
    "opendp": "node",
    "onnxruntime": "hub",
    "streamlit": "portal",
}
_PROGRAMS = {
    "initdb": "PostgreSQL tests (also found under /usr/lib/postgresql)",
    "chromium": "the browser test",
    "go": "the foreign log verifier in the tests",
    "hledger": "the foreign ledger verifier in the tests",
}


@app.callback(invoke_without_command=True)
def doctor(*, as_json: bool = typer.Option(False, "--json", help="One JSON document.")) -> None:
    """Say what this machine has and lacks; exit 1 if a required part is missing."""
    found: dict[str, dict[str, str | bool]] = {
        "python": {
            "ok": sys.version_info >= (3, 11),
            "found": platform.python_version(),
            "for": "all",
        }
    }
    for name, purpose in _PACKAGES.items():
        try:
            found[name] = {"ok": True, "found": version(name), "for": purpose}
        except PackageNotFoundError:
            fix = f"pip install 'health-data-coop[{purpose.split()[0].replace('portal', 'ui')}]'"
            found[name] = {"ok": False, "found": "missing", "for": purpose, "fix": fix}
    for name, purpose in _PROGRAMS.items():
        place = shutil.which(name)
        found[name] = {"ok": True, "found": place or "not installed", "for": f"{purpose}; optional"}
    healthy = all(entry["ok"] for entry in found.values())
    if as_json:
        print(json.dumps({"ok": healthy, "checks": found}))  # noqa: TID251  (for people, not signed)
    else:
        for name, entry in found.items():
            mark = "ok  " if entry["ok"] else "FAIL"
            print(f"{mark} {name:12} {entry['found']:24} {entry['for']}")
            if "fix" in entry:
                print(f"     fix: {entry['fix']}")
    raise typer.Exit(0 if healthy else 1)
