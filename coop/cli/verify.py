"""`coop verify`: check receipts, consents, passports, rounds and the whole log, offline.

Exit 0: everything verified; what too few hospitals have cosigned so far is said to be waiting, and
`--json` has `witnessed: false`. Exit 1: it did not verify, or no trust file was given. Exit 2:
wrong usage.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from coop.canonical import Json
from coop.cli.output import show
from coop.errors import CoopError, InvalidInputError
from coop.journal.receipts import foreign_form
from coop.verify import (
    HIDDEN,
    NoTrustFileError,
    Report,
    Trust,
    checkpoint_in,
    read_file,
    verify_cohort,
    verify_consent,
    verify_entry,
    verify_growth,
    verify_hidden,
    verify_log,
    verify_passport,
    verify_receipt,
    verify_round,
    verify_tally,
    verify_withheld,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Verify documents offline.")

_FILE_BYTES_MAX: Final = 268_435_456  # a log of a million entries is 180 MB
_ARTEFACTS: Final = ("model.safetensors", "model.onnx", "io.json")

_File = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The file to verify.")
]
_TrustFile = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", help="Keys to trust; default COOP_TRUST_FILE."),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@app.command()
def receipt(
    file: _File,
    tlog_proof: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write the C2SP .tlog-proof here and its leaf to OUT.leaf, for foreign tools.",
        ),
    ] = None,
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Verify any receipt bundle: logged, signed, and by whoever may say this.

    Of a `.tlog-proof`, whose leaf lies beside it in FILE.leaf: that it is logged.
    """

    def verified() -> Report:
        keys, data = _trusted(trust), _bytes(file)
        if data.startswith(b"c2sp.org/tlog-proof@"):
            return verify_entry(data, _bytes(file.with_name(f"{file.name}.leaf")), keys)
        bundle = _read(file)
        report = verify_receipt(bundle, keys)
        if tlog_proof is not None:
            leaf, proof = foreign_form(bundle)
            tlog_proof.write_bytes(proof)
            tlog_proof.with_name(f"{tlog_proof.name}.leaf").write_bytes(leaf)
        return report

    _show(verified, as_json)


@app.command()
def consent(
    file: _File,
    opening: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="What opens a hidden receipt."
        ),
    ] = None,
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Verify a consent and the registry's receipt for it, or a hidden receipt of one."""

    def verified() -> Report:
        given = _read(file)
        if opening is not None or given.get("kind") == HIDDEN:
            opened = None if opening is None else _read(opening)
            return verify_hidden(given, _trusted(trust), opened)
        return verify_consent(given, _trusted(trust))

    _show(verified, as_json)


@app.command()
def log(
    file: _File = Path("log.json"),
    older: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="OLD",
            exists=True,
            dir_okay=False,
            help="An older checkpoint, .tlog-proof, receipt or log: nothing before it changed.",
        ),
    ] = None,
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Verify a whole exported log: every leaf, the root, the signatures; with --from, its past."""

    def verified() -> Report:
        export, keys = _read(file), _trusted(trust)
        if older is None:
            return verify_log(export, keys)
        return verify_growth(export, checkpoint_in(_bytes(older), _FILE_BYTES_MAX), keys)

    _show(verified, as_json)


@app.command()
def passport(file: _File, trust: _TrustFile = None, as_json: _Json = False) -> None:
    """Verify a model's passport, and the model's files that lie beside it."""
    _show(lambda: verify_passport(_read(file), _trusted(trust), _beside(file)), as_json)


@app.command("round")
def training_round(file: _File, trust: _TrustFile = None, as_json: _Json = False) -> None:
    """Verify a training round: the chain from the study to the hub's record."""
    _show(lambda: verify_round(_read(file), _trusted(trust)), as_json)


@app.command()
def tally(
    file: _File,
    mine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Your newest consent: find your row."
        ),
    ] = None,
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Verify that N of M patients permit a study: every row, and their sum."""
    own = None if mine is None else _read(mine)
    _show(lambda: verify_tally(_read(file), _trusted(trust), own), as_json)


@app.command()
def withheld(
    receipt: Annotated[
        Path,
        typer.Argument(metavar="RECEIPT", exists=True, dir_okay=False, help="The patient's."),
    ],
    evidence: Annotated[
        Path,
        typer.Argument(metavar="EVIDENCE", exists=True, dir_okay=False, help="The hospital's."),
    ],
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Convict the hub of having withheld what a patient said; exit 1 if nothing shows that."""
    _show(lambda: verify_withheld(_read(receipt), _read(evidence), _trusted(trust)), as_json)


@app.command()
def cohort(
    file: _File,
    openings: Annotated[
        int, typer.Option(metavar="K", min=1, help="How many members you asked for.")
    ] = 300,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="NOTE",
            exists=True,
            dir_okay=False,
            help="The checkpoint you chose and gave the hospital.",
        ),
    ] = None,
    trust: _TrustFile = None,
    as_json: _Json = False,
) -> None:
    """Verify what a hospital opened of a round's cohort: whoever was named had permitted it."""

    def verified() -> Report:
        keys = _trusted(trust)
        chosen = None if checkpoint is None else checkpoint_in(_bytes(checkpoint), _FILE_BYTES_MAX)
        return verify_cohort(_read(file), keys, members=openings, checkpoint=chosen)

    _show(verified, as_json)


def _trusted(path: Path | None) -> Trust:
    if path is None:
        from coop.settings import Settings

        path = Settings().trust_file
    if path is None:
        raise NoTrustFileError("no keys to trust: pass --trust FILE or set COOP_TRUST_FILE")
    return Trust.load(path)


def _read(file: Path) -> dict[str, Json]:
    return read_file(_bytes(file), _FILE_BYTES_MAX)


def _bytes(file: Path) -> bytes:
    if file.stat().st_size > _FILE_BYTES_MAX:
        raise InvalidInputError(f"{file.name}: larger than {_FILE_BYTES_MAX} bytes")
    return file.read_bytes()


def _beside(file: Path) -> Mapping[str, bytes]:
    found = [file.parent / name for name in _ARTEFACTS]
    return {path.name: path.read_bytes() for path in found if path.is_file()}


def _show(verify: Callable[[], Report], as_json: bool) -> None:
    try:
        report = verify()
    except CoopError as error:
        if as_json:
            said = {"ok": False, "code": error.code, "message": error.message}
            show(said, as_json, "")
        print(str(error), file=sys.stderr)
        raise typer.Exit(1) from error
    show(report.to_json(), as_json, "\n".join(report.lines()))
