"""What a hospital's desk signs: who represents whom, paper forms, erasures, emergencies.

These belong to the group in `coop.cli.hospital`, which is loaded through this module.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coop.cli.hospital import HERE, Json, State, _hub, _open
from coop.cli.imports import app
from coop.cli.output import day, instant, show
from coop.errors import CoopError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from coop.client import Client
    from coop.documents.provision import Policy
    from federated.site import Site

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
        typer.Option(
            help="It ends as this day begins, like 2031-05-04: of a minor, when she comes of age."
        ),
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

    now = int(time.time())
    ends = 0 if end else instant(until, "--until", now=now)
    site = _open(state)
    if end:
        known = Mirror(site, _hub(site)).speakers()
        signed = representation.end(site, record_key, did, known, now=now)
    else:
        signed = [
            representation.represent(
                site,
                record_key,
                (did, _role(role)),
                (now, ends),
                _sha256(document, "--document"),
                now=now,
            )
        ]
    # Durable here already: what the hub does not take now, the running node sends.
    with _hub(site) as hub:
        answers = representation.send(site, hub, now=now)
    site.close()
    refused = [one["problem"]["code"] for one in answers if one["problem"]]
    told = "ended, at once" if end else f"may decide until {day(ends)}"
    text = f"{did} {told}" + (f"; the hub refused: {', '.join(refused)}" if refused else "")
    show({"documents": signed, "refused": refused}, as_json, text)
    raise typer.Exit(1 if refused else 0)


@app.command()
def recoveries(state: State = HERE, as_json: Json = False) -> None:
    """Patients to write to: a new key speaks for their record, and may allow something soon.

    Tell each by letter that her key was replaced, and that she can stop the new one until then.
    """
    from federated import desk
    from federated.mirror import Mirror

    site, now = _open(state), int(time.time())
    with _hub(site) as hub:
        waiting = desk.recoveries(site, Mirror(site, hub).speakers(), now)
    site.close()
    lines = [
        f"{one['record']}: new key since {day(int(str(one['since'])))}, waits until "
        f"{day(int(str(one['waits_until'])))}"
        for one in waiting
    ]
    show({"waiting": waiting}, as_json, "\n".join(lines) or "no key was replaced lately")


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


@app.command()
def propose(  # noqa: PLR0913, PLR0917  (one per option of the command)
    record_key: Record,
    preset: Annotated[str, typer.Option(help="What you propose, as in `coop patient consent`.")],
    data_class: Annotated[str, typer.Option(help="The kind of data.")] = "cardiology",
    disease: Annotated[str | None, typer.Option(help="MONDO code, for disease-only.")] = None,
    study: Annotated[str | None, typer.Option(help="Study id, for this-study.")] = None,
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Prepare a decision for a patient; nothing is allowed until she signs one herself."""
    from consent.policy import preset as ready_made
    from coop.documents.consent import Notice

    policy = ready_made(preset, data_class=data_class, disease=disease, study_id=study)

    def parts(_site: "Site", hub: "Client") -> dict[str, object]:
        told = hub.get("/v1/notices:current")["notice"]
        return {"policy": policy, "notice": Notice.model_validate(told)}

    _as_hospital(record_key, "propose", parts, state, as_json=as_json)


@app.command()
def deceased(record_key: Record, state: State = HERE, as_json: Json = False) -> None:
    """Report a death: what the patient chose for it happens; if she chose nothing, all stops."""
    _as_hospital(record_key, "deceased", lambda _site, _hub: {}, state, as_json=as_json)


@app.command()
def void(
    record_key: Record,
    reason: Annotated[str, typer.Option(help="What went wrong with the recording; not health.")],
    registrar: Annotated[str, typer.Option(help="Your name; only a digest leaves this house.")],
    second: Annotated[str, typer.Option(help="Who else has seen it: another person.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Mark what is recorded for a patient as entered in error: it allows nothing from now on."""
    from federated import custody

    def parts(site: "Site", _hub: "Client") -> dict[str, object]:
        return {"correction": custody.correction(site, reason, registrar, second)}

    _as_hospital(record_key, "void", parts, state, as_json=as_json)


@app.command()
def erase(
    record: Annotated[str, typer.Argument(help="The patient's record number, or her pid.")],
    reason: Annotated[str, typer.Option(help="Why, as she asked; stays at this hospital.")],
    registrar: Annotated[str, typer.Option(help="Your name; only a digest leaves this house.")],
    second: Annotated[str, typer.Option(help="Who else has seen it: another person.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Erase all the cooperative holds of a patient, at the hub and here; she is out for good.

    Proofs of others stay. Let her claim her credits and take her list of uses first.
    """
    from federated import erasure
    from federated.mirror import Mirror

    site, now = _open(state), int(time.time())
    begun = erasure.begin(site, record, reason, (registrar, second), now=now)
    text, waits = "erased, here and at the hub; no enrolment or import brings it back", None
    try:
        with _hub(site) as hub:
            erasure.send(site, hub, Mirror(site, hub), now=now)
    except CoopError as error:
        waits = error.code
        text = f"denied here from now on, not erased yet ({waits}); the running node goes on"
    site.close()
    show({**begun, "erased": waits is None, "waits": waits}, as_json, text)
    raise typer.Exit(0 if waits is None else 1)


@app.command("emergency")
def break_glass(
    record_key: Record,
    model: Annotated[str, typer.Option(help="A released model whose study you approved.")],
    clinician: Annotated[str, typer.Option(help="Who treats the patient; stays at the hospital.")],
    reason: Annotated[str, typer.Option(help="Why without asking, in a sentence; stays here.")],
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Break the glass: score one patient for her treatment now. She is told, and it is judged."""
    from federated import emergency

    site, now = _open(state), int(time.time())
    with _hub(site) as hub:
        score = emergency.break_glass(site, hub, record_key, model, (clinician, reason), now=now)
        emergency.send(site, hub, now=now)
    site.close()
    by = score.document["credentialSubject"]["review_by"]  # type: ignore[index]  # our own document
    show(
        {"risk": score.risk, "document": score.document},
        as_json,
        f"risk {score.risk:.3f}; for research only, not a medical device\n"
        f"somebody else must judge this by {day(int(str(by)))}; the patient sees it on her list",
    )


@app.command()
def review(
    digest: Annotated[
        str | None, typer.Argument(help="Which act; without it, all are listed.")
    ] = None,
    reviewer: Annotated[str, typer.Option(help="Your name; you did not do it yourself.")] = "",
    verdict: Annotated[str, typer.Option(help="justified or not-justified.")] = "",
    state: State = HERE,
    as_json: Json = False,
) -> None:
    """Judge an act of break-glass within 72 hours, or list them."""
    from federated import emergency

    site, now = _open(state), int(time.time())
    if digest is None:
        with site.database.reading() as connection:
            listed = emergency.acts(connection, now)
        site.close()
        lines = [
            f"{act['digest']} {day(act['at'])} {act['clinician']}: {act['verdict'] or 'to judge'}"
            for act in listed
        ]
        show({"acts": listed}, as_json, "\n".join(lines) or "the glass was never broken here")
        return
    if verdict not in {"justified", "not-justified"}:
        raise typer.BadParameter("must be justified or not-justified", param_hint="--verdict")
    document = emergency.review(site, digest, reviewer, verdict, now)  # type: ignore[arg-type]  # checked
    with _hub(site) as hub:
        emergency.send(site, hub, now=now)
    site.close()
    show({"document": document}, as_json, f"{digest}: {verdict}")


def _as_hospital(
    record_key: str,
    event: Any,  # noqa: ANN401  (one of three)
    parts: "Callable[[Site, Client], dict[str, object]]",
    state: Path,
    *,
    as_json: bool,
) -> None:
    from federated import custody
    from federated.mirror import Mirror

    site = _open(state)
    with _hub(site) as hub:
        mirror = Mirror(site, hub)
        mirror.sync()
        pid = site.pid_of(record_key)
        standing = mirror.standings().get(pid)
        said = parts(site, hub)
        document = custody.as_hospital(site, pid, standing, event, said, now=int(time.time()))
        (result,) = hub.post("/v1/consents", {"documents": [document]})["results"]
    site.close()
    custody.raise_if_refused(result)
    facts = {
        "pid": pid,
        "document": document,
        "receipt": result["receipt"],
        "effective_by": result["effective_by"],
    }
    show(facts, as_json, f"{event} recorded for {pid}, by {day(result['effective_by'])} everywhere")


def _role(text: str | None) -> Any:  # noqa: ANN401  (one of the four, checked)
    if text not in {"parent", "guardian", "proxy", "executor"}:
        raise typer.BadParameter("must be parent, guardian, proxy or executor", param_hint="--role")
    return text


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
