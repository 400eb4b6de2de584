"""`coop study`: propose, list, show, train and cancel studies, with a researcher's own key."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from coop.cli.output import show
from coop.errors import CoopError, Kind, NotFoundError

if TYPE_CHECKING:
    from coop.client import Client

app = typer.Typer(add_completion=False, no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]
Version = Annotated[int | None, typer.Option(help="Its version; the newest by default.")]
_READING: Final = {
    "clear": "",
    "people": "PEOPLE MUST JUDGE what it is for; until a version says it, nothing is permitted\n",
    "unknown": "its purpose is none we know; no hospital will approve it\n",
}
_OPEN: Final = frozenset({"queued", "running"})


class NoApiKeyError(CoopError):
    """A researcher's command needs her API key."""

    code = "study.no-api-key"
    kind = Kind.UNAUTHENTICATED


class TrainingFailedError(CoopError):
    """The training run ended without a model."""

    code = "study.training-failed"
    kind = Kind.CONFLICT


@app.command()
def propose(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The study file.")
    ],
    key: Annotated[Path, typer.Option(help="Your own signing key.")] = Path("researcher.key"),
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key file first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign the study in FILE with your own key and propose it."""
    from coop.documents.envelope import issue
    from coop.documents.study import Study
    from coop.keys import SigningKey
    from coop.studyfile import load_study

    study = Study.model_validate(load_study(file))
    if new_key:
        SigningKey.generate().save(key)
    elif not key.exists():
        raise NotFoundError(f"key file {key} is missing; name yours with --key, or add --new-key")
    document = issue(study, SigningKey.load(key), int(time.time()))
    with _client(required=True) as client:
        answer = client.post("/v1/studies", {"document": document})
    text = (
        f"proposed {answer['study_id']} v{answer['version']}: {answer['digest']}\n"
        f"{_READING[answer['reading']]}"
        f"it is ready when {answer['quorum']} hospitals have approved it"
    )
    show(answer, as_json, text)


@app.command("list")
def listed(as_json: AsJson = False) -> None:
    """Every study with its state and who has approved it."""
    with _client() as client:
        answer = client.get("/v1/studies")
    lines = [
        f"{study['study_id']:24} v{study['version']:<3} {study['state']:10} "
        f"{len(study['approvals'])} of {study['quorum']} approvals  {study['title']}"
        for study in answer["studies"]
    ]
    show(answer, as_json, "\n".join(lines) or "no study yet; coop study propose FILE")


@app.command("show")
def shown(study_id: Id, version: Version = None, as_json: AsJson = False) -> None:
    """One study: what it asks, its budget, its approvals. Its signature is verified here."""
    with _client() as client:
        answer = client.get(f"/v1/studies/{study_id}", version=version)
        members = client.get("/v1/members/sites")["sites"]
    yes = {approval["site"] for approval in answer["approvals"]}
    answer["approval_missing"] = sorted({site["name"] for site in members} - yes)
    opened = _opened(answer["document"])
    study = opened.subject
    text = (
        f"{study.study_id} v{study.version} ({answer['state']}): {study.title}\n"
        f"{study.lay_summary}\n"
        f"by {study.proposer}, signed by {opened.issuer}\n"
        f"purpose {' '.join(_purposes(study))}; uses {', '.join(study.uses)}\n"
        f"{_READING[answer['reading']]}"
        f"privacy: {_epsilons(answer['epsilon'])}, "
        f"delta {study.budget.delta_pico / 1e12:g}, add/remove one patient\n"
        f"approved by {', '.join(a['site'] for a in answer['approvals']) or 'nobody yet'}; "
        f"{answer['quorum']} needed\n"
        f"approval missing: {', '.join(answer['approval_missing']) or 'nobody'}"
    )
    show(answer, as_json, text)


@app.command()
def train(
    study_id: Id,
    version: Version = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the rounds to the end.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Order the training of a ready study and follow it; exit 1 if no model comes of it."""
    from coop.cli.follow import follow

    body: dict[str, object] = {"study_id": study_id}
    if version is not None:
        body["version"] = version
    with _client(required=True) as client:
        run = client.post("/v1/rounds", body)["run"]
        if wait:
            try:
                run = follow(client, run, quiet=as_json)
            except KeyboardInterrupt:
                left = f"the hub goes on; `coop study cancel {study_id}` stops it"
                print(f"no longer followed: {left}", file=sys.stderr)
                raise
        if run["state"] == "finished":
            released = client.get("/v1/models")["models"]
            made = [m["model_id"] for m in released if m["order_sha256"] == run["order_sha256"]]
            run["model_id"] = made[0] if made else None
    text = f"{run['order_sha256']}: {run['state']}"
    if run.get("model_id"):
        text += f"\nmodel {run['model_id']}; coop model card {run['model_id']}"
    show(run, as_json, text)
    if run["state"] in {"failed", "cancelled"}:
        raise TrainingFailedError(f"run: {run['state']} ({run['error']})")


@app.command()
def cancel(study_id: Id, version: Version = None, as_json: AsJson = False) -> None:
    """Stop the study's training, or cancel the study if it is not training.

    What hospitals were charged in privacy stays charged; a study that was stopped is ready again.
    """
    with _client(required=True) as client:
        study = client.get(f"/v1/studies/{study_id}", version=version)
        if study["state"] == "training":
            runs = client.get("/v1/rounds", study_id=study_id)["runs"]
            mine = [r for r in runs if r["version"] == study["version"] and r["state"] in _OPEN]
            stopped = [client.delete(f"/v1/rounds/{run['order_sha256']}") for run in mine]
            facts: dict[str, Any] = {"study_id": study_id, "stopped": stopped}
            show(facts, as_json, f"stopped {len(stopped)} training run(s) of {study_id}")
            return
        number = study["version"]
        answer = client.delete(f"/v1/studies/{study_id}?version={number}")
    show(answer, as_json, f"{study_id} v{number} is {answer['state']}")


def _client(*, required: bool = False) -> "Client":
    from coop.client import Client
    from coop.settings import Settings

    settings = Settings()
    token = settings.api_key.get_secret_value() if settings.api_key else None
    if token is None and required:
        raise NoApiKeyError("COOP_API_KEY: set it to your API key (docs/quickstart.md)")
    return Client(settings.hub_url, settings.ca_file, token=token)


def _opened(document: dict[str, Any]) -> Any:  # noqa: ANN401  (its type would load what `--help` need not)
    from coop.documents.envelope import open_document
    from coop.documents.study import Study

    return open_document(Study, document, issuers=None)


def _purposes(study: Any) -> list[str]:  # noqa: ANN401  (a Study; its type would load too much)
    return [study.purpose, *([study.disease] if study.disease else []), *study.further_purposes]


def _epsilons(cost: dict[str, int] | None) -> str:
    if cost is None:
        return "a budget that cannot be split as it says"
    return (
        f"training and evaluation epsilon {cost['training_and_evaluation_micro'] / 1e6:.3f}, "
        f"cohort questions epsilon {cost['cohort_questions_micro'] / 1e6:.3f}, "
        f"together epsilon {cost['together_micro'] / 1e6:.3f}"
    )
