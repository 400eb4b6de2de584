"""Documentation that cannot lie: everything public is described, and what it says to run exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import reference_pages
import typer.main

from coop.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DESIGNED = """
demo; hub init; hub run; hub status; hub backup; hub restore; hospital invite; hospital join;
hospital import csv; hospital import fhir; hospital import omop; hospital enrol; hospital doctor;
hospital dry-run; hospital approve; hospital run; hospital status; hospital backup;
hospital restore; patient new; patient consent; patient withdraw; patient receipts;
patient statement; study propose; study list; study show; study train; study cancel; model list;
model card; model verify; model export; infer; cohort; usage; ledger check; ledger statement;
ledger export; dividends verify; verify receipt; verify consent; verify log; verify passport;
verify round; simulate; audit privacy; portal; doctor
"""


def resolve(words: list[str]) -> click.Command:
    command: click.Command = typer.main.get_command(app)
    for word in words:
        assert isinstance(command, click.Group), f"{' '.join(words)}: {word} is no subcommand"
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"coop {' '.join(words)} does not exist"
        command = found
    return command


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_the_reference_page_says_what_the_code_says_today(name: str):
    written = (reference_pages.FOLDER / f"{name}.md").read_text()
    assert written == reference_pages.PAGES[name](), "run `make fix`"


def test_every_command_of_the_design_exists():
    for line in DESIGNED.split(";"):
        resolve(line.split())


def every_command_written() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            found += [
                (str(page.relative_to(ROOT)), line.strip())
                for line in block.splitlines()
                if re.match(r"\s*coop [a-z]", line)
            ]
    return found


def test_every_command_written_in_the_docs_is_one_that_exists():
    written = every_command_written()
    assert written
    for page, line in written:
        words = shlex.split(line.split("#")[0])[1:]
        command: click.Command = typer.main.get_command(app)
        while words and isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words[0])
            if found is None:
                break
            command, words = found, words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {option for parameter in command.params for option in parameter.secondary_opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{page}: {line!r} has an unknown {word}"


def test_every_make_target_written_in_the_docs_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z%-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
            assert target in targets or target.startswith("bench-"), f"{page.name}: make {target}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} → {target}"


def test_files_named_in_the_docs_exist():
    """`coop/…`, `federated/…`, `tests/…`: a tour that names a file that moved misleads."""
    pattern = re.compile(
        r"`((?:coop|consent|federated|inference_gateway|ui|tests|docs|examples)/[\w./-]+\.\w+)`"
    )
    for page in PAGES:
        if "reference" in page.parts:
            continue
        for name in pattern.findall(page.read_text()):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


def test_the_help_of_every_group_prints():
    for words in (["--help"], ["hub", "--help"], ["hospital", "--help"], ["verify", "--help"]):
        command = [str(Path(sys.executable).parent / "coop"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "Usage" in done.stdout
