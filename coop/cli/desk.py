"""`coop hospital represent` and `capture`: what the desk signs for patients who do not sign here.

These belong to the group in `coop.cli.hospital`, which is loaded through this module.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coop.cli.hospital import HERE, Json, State, _hub, _open, app
from coop.cli.output import day, show
from coop.errors import InvalidInputError

if TYPE_CHECKING:
    from coop.documents.provision import Policy

__all__ = ["app"]

Record = Annotated[str, typer.Argument(help="The patient's record number.")]


@app.command()
def represent(  # noqa: PLR0913, PLR0917  (one per option of the command)
    record_key: Record,
    did: Annotated[str, typer.Option(help="The representative's own key, did:key:…")],
    role: Annotated[
        str | None, typer.Option(help="parent, guardian, proxy or executor; not with --end.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="The day it ends, like 2031-05-04; of a minor, when she comes of age."),
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="The paper you saw; only its SHA-256 is recorded.")
    ] = None,
    end: Annotated[
        bool, typer.Option("--end", help="End this representative's right, at once.")
    ] = False,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Record who may decide for a patient, and until when; or end it with --end."""
    from federated import representation
    from federated.mirror import Mirror

    site, now = _open(state), int(time.time())
    if end:
        known = Mirror(site, _hub(site)).speakers()
        signed = representation.end(site, record_key, did, known, now=now)
    else:
        signed = [
            representation.represent(
                site,
                record_key,
                (did, _role(role)),
                (now, _seconds(until)),
                _sha256(document, "--document"),
                now=now,
            )
        ]
    # Durable here already: what the hub does not take now, the running node sends.
    with _hub(site) as hub:
        answers = representation.send(site, hub, now=now)
    site.close()
    refused = [one["problem"]["code"] for one in answers if one["problem"]]
    told = "ended, at once" if end else f"may decide until {day(_seconds(until))}"
    text = f"{did} {told}" + (f"; the hub refused: {', '.join(refused)}" if refused else "")
    show({"documents": signed, "refused": refused}, as_json, text)
    raise typer.Exit(1 if refused else 0)


@app.command()
def capture(  # noqa: PLR0913, PLR0917  (one per option of the command)
    record_key: Record,
    paper: Annotated[Path, typer.Option(help="The scanned form; only its SHA-256 is recorded.")],
    registrar: Annotated[
        str, typer.Option(help="Your name; what leaves this house is a digest only it can open.")
    ],
    language: Annotated[str, typer.Option(help="Language of the form, like de or pt-BR.")],
    preset: Annotated[
        str | None, typer.Option(help="What the form allows, as in `coop patient consent`.")
    ] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="The form says to stop instead.")
    ] = False,
    data_class: Annotated[str, typer.Option(help="The kind of data.")] = "cardiology",
    disease: Annotated[str | None, typer.Option(help="MONDO code, for disease-only.")] = None,
    study: Annotated[str | None, typer.Option(help="Study id, for this-study.")] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Sign what a patient decided on paper, with the key this hospital holds for her."""
    from consent.policy import preset as ready_made
    from federated import custody
    from federated.mirror import Mirror

    if (preset is None) == (not withdraw):
        raise typer.BadParameter("say --preset or --withdraw", param_hint="--preset")
    policy: Policy | None = None
    if preset is not None:
        policy = ready_made(preset, data_class=data_class, disease=disease, study_id=study)
    site = _open(state)
    form = custody.Form(
        paper_sha256=_sha256(paper, "--paper"), registrar=registrar, language=language
    )
    with _hub(site) as hub:
        mirror = Mirror(site, hub)
        mirror.sync()
        pid = site.pid_of(record_key)
        known = (mirror.speakers().get(pid), mirror.standings().get(pid))
        event = custody.capture(site, pid, known, (policy, form), now=int(time.time()))
        (result,) = hub.post("/v1/consents", {"documents": [event]})["results"]
    site.close()
    custody.raise_if_refused(result)
    facts: dict[str, Any] = {
        "pid": pid,
        "document": event,
        "receipt": result["receipt"],
        "effective_by": result["effective_by"],
    }
    text = (
        f"{'stopped' if withdraw else 'recorded'} for {pid} with the key this hospital holds; "
        f"in force everywhere by {day(result['effective_by'])}"
    )
    show(facts, as_json, text)


def _role(text: str | None) -> Any:  # noqa: ANN401  (one of the four, checked)
    if text not in {"parent", "guardian", "proxy", "executor"}:
        raise typer.BadParameter("must be parent, guardian, proxy or executor", param_hint="--role")
    return text


def _seconds(text: str | None) -> int:
    """UTC seconds of a day (its first instant) or of a time with its zone."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError as error:
        raise typer.BadParameter(
            "must be a day like 2031-05-04, or a time like 2031-05-04T10:00:00+02:00",
            param_hint="--until",
        ) from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _sha256(path: Path | None, option: str) -> str:
    from coop.canonical import sha256
    from federated.custody import PAPER_BYTES_MAX

    if path is None:
        raise typer.BadParameter("name the file", param_hint=option)
    try:
        if path.stat().st_size > PAPER_BYTES_MAX:
            raise InvalidInputError(f"{option}: longer than {PAPER_BYTES_MAX} bytes; scan it anew")
        return sha256(path.read_bytes()).hex()
    except OSError as error:
        raise InvalidInputError(f"{option}: {path} cannot be read") from error
