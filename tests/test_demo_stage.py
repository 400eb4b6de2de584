"""The demo's folder: only its own is ever deleted, and never while its processes run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coop.demo.stage import MARKER, DemoFolderError, prepare

COOP = Path(sys.executable).parent / "coop"


def test_a_folder_without_the_marker_is_never_deleted(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoFolderError) as refusal:
        prepare(folder)
    assert refusal.value.code == "demo.folder-refused"
    assert (folder / "thesis.txt").read_text() == "years of work"
    command = [COOP, "demo", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "demo.folder-refused" in done.stderr
    assert (folder / "thesis.txt").exists()


def test_a_folder_with_the_marker_starts_fresh(tmp_path: Path):
    folder = tmp_path / "demo"
    prepare(folder).close()
    (folder / "old.txt").write_text("last week")
    prepare(folder)
    assert not (folder / "old.txt").exists()
    assert (folder / MARKER).exists()


def test_a_folder_whose_processes_still_run_is_refused(tmp_path: Path):
    stage = prepare(tmp_path / "demo")
    code = "import time; time.sleep(60)  # coop"
    child = stage.start("sleeper", [sys.executable, "-c", code], {})
    try:
        with pytest.raises(DemoFolderError):
            prepare(tmp_path / "demo")
        assert child.process.poll() is None
    finally:
        stage.close()
    assert child.process.poll() is not None
    prepare(tmp_path / "demo")


@pytest.mark.flow
def test_ctrl_c_stops_every_child(tmp_path: Path):
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        [COOP, "demo", "--no-serve", "--folder", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not (folder / "cleveland/local.url").exists() and time.monotonic() < deadline:
        assert demo.poll() is None
        time.sleep(0.2)
    children = [int(pid) for pid in (folder / MARKER).read_text().split()]
    assert len(children) >= 2
    os.killpg(demo.pid, signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in said
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listed.stdout
