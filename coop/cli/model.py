"""`coop model`: list released models, read a card, verify and export one.

Exit 0: done, or verified. Exit 1: refused, failed, or not verified. Exit 2: wrong usage.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from coop.cli.output import show

if TYPE_CHECKING:
    from coop.client import Client
    from coop.journal.trust import Trust
    from coop.verify import Report

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Released models.")

PASSPORT_FILE: Final = "passport.json"
_ARTEFACTS: Final = ("model.safetensors", "model.onnx", "io.json")
_FILE_BYTES_MAX: Final = 64 * 1024 * 1024  # a model of 100 000 columns is 400 kB
_MICRO: Final = 1_000_000
_PICO: Final = 1_000_000_000_000

_Id = Annotated[str, typer.Argument(metavar="ID", help="The model's id.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List every released model."""
    with _client() as client:
        answer = client.get("/v1/models")
    lines = [
        f"{model['model_id']:40} {model['state']:9} {model['title']}" for model in answer["models"]
    ]
    show(answer, as_json, "\n".join(lines) or "no model is released yet")


@app.command()
def card(model_id: _Id, as_json: _Json = False) -> None:
    """Show what a model is for, how well it does, and what it cost in privacy."""
    with _client() as client:
        answer = client.get(f"/v1/models/{model_id}")
    show(answer, as_json, _card_text(answer))


@app.command()
def verify(
    which: Annotated[
        str, typer.Argument(metavar="PATH|ID", help="An exported folder, or a model's id.")
    ],
    trust: Annotated[
        Path | None,
        typer.Option("--trust", metavar="FILE", help="Keys to trust; default COOP_TRUST_FILE."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Verify passport, log proof and every file; offline if a folder is given."""
    trusted = _trusted(trust)
    folder = Path(which)
    bundle, files = _read(folder) if folder.is_dir() else _fetch(which)
    report = verified(bundle, files, trusted)
    lines = report.lines()
    show(report.to_json(), as_json, "\n".join(lines))


@app.command()
def export(
    model_id: _Id,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Default: a folder named ID.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Save a model's passport, files and card into a new folder that `coop model verify` checks."""
    from coop.canonical import jcs
    from coop.errors import ConflictError
    from coop.model_card import FILE, model_card

    folder = out or Path(model_id)
    if folder.exists():
        raise ConflictError(f"{folder}: exists; name another folder with --out")
    bundle, files = _fetch(model_id)
    with _client() as client:
        readable = model_card(client.get(f"/v1/models/{model_id}"))
    folder.mkdir(parents=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    (folder / FILE).write_text(readable)
    # Last: a folder without a passport is an interrupted export and does not verify.
    (folder / PASSPORT_FILE).write_bytes(jcs(bundle))
    written = [*files, FILE, PASSPORT_FILE]
    facts = {"model_id": model_id, "folder": str(folder), "files": written}
    show(facts, as_json, f"{folder}: {', '.join(written)}")


def verified(bundle: Mapping[str, Any], files: Mapping[str, bytes], trust: "Trust") -> "Report":
    """The report of a passport bundle with all its files.

    Steps: (1) the passport is logged and signed by the hub, and names exactly these bytes;
    (2) no file is missing; (3) the graph computes what the weights say.

    Raises:
        CoopError: Any step fails.
    """
    from coop.artefacts import check_parity, reads
    from coop.verify import VerificationError, verify_passport

    # (2) first: `verify_passport` lets a file be absent, this command does not.
    if set(files) != set(_ARTEFACTS):
        raise VerificationError(f"model: needs exactly the files {', '.join(_ARTEFACTS)}")
    # (1)
    report = verify_passport(bundle, trust, files)
    # (3)
    check_parity(*reads(files["io.json"]), files["model.safetensors"], files["model.onnx"])
    return report


def _card_text(card: Mapping[str, Any]) -> str:
    said = card["passport"]["document"]["credentialSubject"]
    lines = [
        f"{card['model_id']}  ({card['state']})",
        card["title"],
        "",
        card["lay_summary"],
        "",
        _privacy(said),
        *(f"         {line}" for line in said["mechanism"]),
        *(f"{metric['group']:12} {_metric(metric)}" for metric in said["metrics"]),
        *_fairness(said.get("fairness")),
        f"reads:   {', '.join(feature['name'] for feature in card['features']['features'])}",
        "earns:   " + ", ".join(f"{site} {n}" for site, n in said["hospital_weights"].items()),
        _left(card["withdrawals"]),
        said["intended_use"],
    ]
    return "\n".join(lines)


def _fairness(said: Mapping[str, Any] | None) -> list[str]:
    """How the subgroups stand to the floor that the hospitals approved, if there is one."""
    if said is None:
        return []
    words = {
        "passed": "every subgroup is above it",
        "uncertain": "the noise hides whether every subgroup is above it",
        "below": f"below it: {', '.join(said['below'])}; the model answers nothing",
    }[said["verdict"]]
    return [f"fair:    least AUC of a subgroup {said['floor_micro'] / _MICRO:.2f}: {words}"]


def _left(found: Mapping[str, Any]) -> str:
    """How many of those who permitted it have withdrawn, and what that does."""
    rule = {
        "keep": "it stays, under its privacy bound",
        "retrain": f"at {found['percent']} % it must be trained anew",
        "retire": f"at {found['percent']} % it is retired",
    }[found["policy"]]
    return (
        f"left:    {found['withdrawn']} of the {found['permitted']} patients who permitted its "
        f"study have withdrawn since; rounds 1 to {found['rounds']} may have used their "
        f"records; {rule}"
    )


def _privacy(said: Mapping[str, Any]) -> str:
    return (
        f"privacy: training and evaluation epsilon {said['epsilon_micro'] / _MICRO:.3f} "
        f"(training alone {said['training_epsilon_micro'] / _MICRO:.3f}), "
        f"cohort questions {said['cohort_epsilon_micro'] / _MICRO:.3f}, "
        f"together {said['together_epsilon_micro'] / _MICRO:.3f}, "
        f"delta {said['delta_pico'] / _PICO:.0e}, {said['relation']}, {said['accountant']}"
    )


def _metric(metric: Mapping[str, Any]) -> str:
    parts = []
    for name in ("auc", "accuracy", "brier", "calibration"):
        value, sd = metric.get(f"{name}_micro"), metric.get(f"{name}_sd_micro")
        if value is not None:
            parts.append(f"{name} {value / _MICRO:.3f} ± {(sd or 0) / _MICRO:.3f}")
    return f"{', '.join(parts) or 'not measurable under this noise'} (noised)"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    from coop.canonical import jcs, parse_object
    from coop.errors import InvalidInputError, NotFoundError

    paths = {name: folder / name for name in (*_ARTEFACTS, PASSPORT_FILE)}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise NotFoundError(f"{folder}: lacks {', '.join(missing)}; export the model again")
    if any(path.stat().st_size > _FILE_BYTES_MAX for path in paths.values()):
        raise InvalidInputError(f"{folder}: a file is larger than {_FILE_BYTES_MAX} bytes")
    data = {name: path.read_bytes() for name, path in paths.items()}
    passport = data.pop(PASSPORT_FILE)
    bundle = parse_object(passport)
    # One form only, so that a file with any byte changed is another file.
    if jcs(bundle) != passport:
        raise InvalidInputError(f"{PASSPORT_FILE}: not in the form that export writes")
    return bundle, data


def _fetch(model_id: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    path = f"/v1/models/{model_id}"
    with _client() as client:
        files = {name: client.get_bytes(f"{path}/artefacts/{name}") for name in _ARTEFACTS}
        return client.get(f"{path}/bundle"), files


def _trusted(path: Path | None) -> "Trust":
    from coop.journal.trust import NoTrustFileError, Trust
    from coop.settings import Settings

    found = path or Settings().trust_file
    if found is None:
        raise NoTrustFileError("no keys to trust: pass --trust FILE or set COOP_TRUST_FILE")
    return Trust.load(found)


def _client() -> "Client":
    from coop.client import Client
    from coop.settings import Settings

    settings = Settings()
    token = settings.api_key.get_secret_value() if settings.api_key else None
    return Client(settings.hub_url, settings.ca_file, token=token)
