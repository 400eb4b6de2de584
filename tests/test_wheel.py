"""What a user installs is the wheel: it runs from another folder, without this checkout."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second environment with the wheel; third-party packages are shared to save minutes."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    environment = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    # A path line adds the folder behind the wheel's own, and runs none of its .pth files: the
    # editable install of this checkout is not seen.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(folder.glob("*.whl"))
    into = ["install", "--no-deps", "--ignore-installed", "--prefix", str(environment), str(wheel)]
    subprocess.run([*pip, *into], check=True)
    return environment


def run(installed: Path, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [installed / "bin/coop", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_runs_and_it_brings_its_data(installed: Path, tmp_path: Path):
    code = "import federated, json; print(federated.__file__)"
    found = subprocess.run(
        [installed / "bin/python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in found.stdout
    data = Path(found.stdout.strip()).parent / "data"
    sites = [f"--site={name}={data / name}.csv" for name in ("cleveland", "zurich")]
    study = data.parent.parent / "coop/demo/heart.yaml"
    said = json.loads(run(installed, tmp_path, "simulate", str(study), *sites, "--json"))
    assert said["runs"] == 5
    assert 0.5 < said["metrics"]["auc_pooled"]["mean"] <= 1


def test_a_hub_is_made_by_the_wheel(installed: Path, tmp_path: Path):
    made = json.loads(
        run(
            installed,
            tmp_path,
            "hub",
            "init",
            "--legal-mode",
            "strictest",
            "--state",
            "hub",
            "--json",
        )
    )
    assert (tmp_path / "hub/tls/ca.crt").exists()
    assert made["hub"].startswith("did:key:z6Mk")
    assert json.loads(run(installed, tmp_path, "doctor", "--json"))["ok"]
