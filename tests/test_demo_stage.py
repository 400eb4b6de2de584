"""The demo's folder: only its own is ever deleted, and never while its processes run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from coop.demo import epilogue
from coop.demo import house as demo_house
from coop.demo.house import House
from coop.demo.identity import Provider
from coop.demo.narrator import Narrator
from coop.demo.stage import MARKER, DemoFolderError, free_port, prepare
from coop.errors import UnavailableError

COOP = Path(sys.executable).parent / "coop"


class PrintedError(Exception):
    """The portal's address was printed, and the portal answered in that moment."""


class Visitor(Narrator):
    """Goes to every address the moment it is printed."""

    def plain(self, text: str) -> None:
        if "portal: " in text:
            origin = text.split("portal: ")[1].split(maxsplit=1)[0]
            assert httpx.get(origin, trust_env=False).is_success
            raise PrintedError


def house(folder: Path) -> House:
    """A demo's house before anything in it started."""
    provider = Provider(
        issuer=f"http://127.0.0.1:{free_port()}/idp",
        client_id=demo_house.CLIENT_ID,
        client_secret="a secret",
        personas={},
    )
    return House(
        stage=prepare(folder),
        narrator=Visitor(quiet_stdout=True),
        provider=provider,
        client_secret=provider.client_secret,
        hub_port=free_port(),
    )


def test_the_portals_address_is_printed_when_it_answers(tmp_path: Path):
    home = house(tmp_path / "demo")
    try:
        with pytest.raises(PrintedError):
            epilogue.keep_serving(home)
    finally:
        home.close()


def test_a_portal_that_never_answers_is_an_error_that_names_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = house(tmp_path / "demo")
    monkeypatch.setattr(demo_house, "_START_S", 0.3)
    with pytest.raises(UnavailableError, match=f"portal did not start .*{home.folder}/logs"):
        home.await_portal(f"http://localhost:{free_port()}")


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
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_however_it_is_told_to_stop_no_child_outlives_it(tmp_path: Path, told: signal.Signals):
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        [COOP, "demo", "--no-serve", "--folder", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # As a shell starts it in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 90
    while not (folder / "cleveland/local.url").exists() and time.monotonic() < deadline:
        assert demo.poll() is None
        time.sleep(0.2)
    children = [int(pid) for pid in (folder / MARKER).read_text().split()]
    assert len(children) >= 2
    os.kill(demo.pid, told)  # not its children: they must be stopped by it
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in said
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listed.stdout
