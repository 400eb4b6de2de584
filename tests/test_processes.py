"""Each process loads only what it needs: no torch at the hub, no window at a node."""

import subprocess
import sys

import pytest

LOADS = {
    "hub": ("coop.hub.app", {"torch", "opacus", "opendp", "streamlit"}),
    "portal": ("ui.asgi", {"torch", "opacus", "flwr", "sqlalchemy", "onnxruntime"}),
    "node": ("federated.node", {"streamlit", "onnxruntime", "torch"}),
    "client": ("coop.client", {"torch", "flwr", "sqlalchemy", "streamlit", "fastapi"}),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_process_does_not_load_another_ones_libraries(name: str):
    module, foreign = LOADS[name]
    code = f"import sys, {module}; print(' '.join(sorted({foreign!r} & set(sys.modules))))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_any_heavy_library():
    heavy = {"torch", "flwr", "sqlalchemy", "fastapi"}
    code = f"import sys, coop.cli; print(len({heavy!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
