"""`coop patient consent|withdraw|suspend|resume|object`: what somebody signs, and is told before.

The commands belong to the group in `coop.cli.patient`. Whoever is recorded to decide for somebody
uses the same ones with a key of their own; each event says so.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from coop.cli.output import day, last_second, micro, show
from coop.cli.patient import (
    HERE,
    AsJson,
    ConsentRefusedError,
    KeyFile,
    Record,
    TrustFile,
    app,
    hub_client,
    load_key,
    raise_if_refused,
    record_of,
    trusted,
)

if TYPE_CHECKING:
    from coop.client import Client
    from coop.documents.consent import Notice
    from coop.documents.provision import Policy
    from coop.journal.trust import Trust
    from coop.keys import SigningKey

__all__ = ["app"]

_MOVED_ON: Final = "consent.chain"
_GRANTED: Final = frozenset({"active", "expired", "waiting"})
_TRIES: Final = 3  # the chain may grow between reading and signing (a suspension at the desk)
_Asked = Literal["decide", "withdraw", "suspend", "resume", "object", "lift"]
_DECIDED: Final[Mapping[_Asked, frozenset[str]]] = {
    "withdraw": _GRANTED | {"suspended"},
    "suspend": _GRANTED - {"expired"},
    "resume": frozenset({"suspended"}),
}
"""In which states of a consent there is something to do."""


@dataclass(frozen=True, slots=True)
class _Choice:
    asked: _Asked
    policy: "Policy | None" = None
    on_death: Literal["stop", "continue"] | None = None


@app.command()
def consent(  # noqa: PLR0913, PLR0917  (one per option of the command)
    preset: Annotated[
        str,
        typer.Option(
            help="all-research, with-companies, no-companies, train-only, disease-only, "
            "this-study or refuse."
        ),
    ],
    key: KeyFile = HERE,
    data_class: Annotated[str, typer.Option(help="The kind of data.")] = "cardiology",
    disease: Annotated[str | None, typer.Option(help="MONDO code, for disease-only.")] = None,
    study: Annotated[str | None, typer.Option(help="Study id, for this-study.")] = None,
    epsilon_cap: Annotated[
        str | None, typer.Option(help="Your own limit of privacy cost per study, like 0.5.")
    ] = None,
    min_cohort: Annotated[
        int | None, typer.Option(min=1, help="Only in studies of at least so many people.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="The last day it holds, like 2031-05-04; else no last day.")
    ] = None,
    on_death: Annotated[
        str | None, typer.Option(help="Once you have died: stop (the default) or continue.")
    ] = None,
    record: Record = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Decide: sign a policy for your record. A later decision replaces an earlier one."""
    from consent.policy import check
    from consent.policy import preset as ready_made
    from coop.documents.provision import TIME_MAX

    if on_death not in {None, "stop", "continue"}:
        raise typer.BadParameter("must be stop or continue", param_hint="--on-death")
    policy = ready_made(
        preset,
        data_class=data_class,
        disease=disease,
        study_id=study,
        epsilon_cap_micro=micro(epsilon_cap),
        end=TIME_MAX if until is None else last_second(until, "--until", now=int(time.time())),
    ).model_copy(update={"min_cohort": min_cohort})
    check(policy)
    choice = _Choice("decide", policy, on_death)  # type: ignore[arg-type]  # checked above
    _decide(key, record, trust, choice, as_json=as_json)


@app.command("object")
def object_to_all(
    key: KeyFile = HERE,
    lift: Annotated[bool, typer.Option("--lift", help="End the objection instead.")] = False,
    record: Record = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Object to all research with your record, whatever else you allow; or end that with --lift."""
    _decide(key, record, trust, _Choice("lift" if lift else "object"), as_json=as_json)


@app.command()
def withdraw(
    key: KeyFile = HERE, record: Record = None, trust: TrustFile = None, as_json: AsJson = False
) -> None:
    """Withdraw: from a minute from now on, nothing new uses your record."""
    _decide(key, record, trust, _Choice("withdraw"), as_json=as_json)


@app.command()
def suspend(
    key: KeyFile = HERE, record: Record = None, trust: TrustFile = None, as_json: AsJson = False
) -> None:
    """Pause your consent: from a minute from now on nothing uses your record, until you resume."""
    _decide(key, record, trust, _Choice("suspend"), as_json=as_json)


@app.command()
def resume(
    key: KeyFile = HERE, record: Record = None, trust: TrustFile = None, as_json: AsJson = False
) -> None:
    """End a pause: what you allowed before it holds again, unchanged."""
    _decide(key, record, trust, _Choice("resume"), as_json=as_json)


def told_before(client: "Client", *, quiet: bool) -> "Notice":
    """What she is told before she signs, shown; her signature is bound to exactly these words."""
    from coop.canonical import sha256
    from coop.documents.consent import Notice

    found = client.get("/v1/notices:current")
    if sha256(found["text"].encode()).hex() != found["notice"]["sha256"]:
        raise ConsentRefusedError("notice: its digest is not that of the words shown")
    if not quiet:
        print(found["text"])
    return Notice.model_validate(found["notice"])


def acting(client: "Client", signing: "SigningKey", standing: Mapping[str, Any]) -> dict[str, str]:
    """The members of an event that say who speaks: none for the record's own key.

    Args:
        client: To the hub, as the signer.
        signing: Hers.
        standing: Of the record, as the hub tells it.
    """
    if standing["did"] == signing.did:
        return {}
    records = client.get("/v1/me/keys")["records"]
    mine = [
        one["digest"]
        for record in records
        if record["pid"] == standing["pid"]
        for one in record["representatives"]
        if one["did"] == signing.did and one["in_force"]
    ]
    return {"actor": "representative", "representation": mine[0]} if mine else {}


def _decide(
    key_file: Path,
    record: str | None,
    trust: Path | None,
    choice: _Choice,
    *,
    as_json: bool,
) -> None:
    pinned = trusted(trust)
    signing = load_key(key_file)
    with hub_client(signing) as client:
        pid, _ = record_of(client, record)
        gives = choice.policy is not None or choice.asked == "resume"
        notice = told_before(client, quiet=as_json) if gives else None
        found = _submitted(client, signing, pid, choice, notice)
    if found is None:
        facts: dict[str, Any] = {"pid": pid, "event": None}
        show(facts, as_json, "nothing to do: it is so already")
        return
    document, result = found
    facts = {
        "pid": pid,
        "event": document["credentialSubject"]["event"],
        "effective_by": result["effective_by"],
        "fresh": result["fresh"],
        "receipt": result["receipt"],
        **_checked(result["receipt"], document, pinned),
    }
    text = (
        f"{facts['event']} recorded at entry {facts['index']}, in force everywhere by "
        f"{day(facts['effective_by'])}\n"
        f"receipt: {'verified' if facts['verified'] else 'NOT VERIFIED'}"
    )
    show(facts, as_json, text)


def _submitted(
    client: "Client", signing: "SigningKey", pid: str, choice: _Choice, notice: "Notice | None"
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The event that was sent and the registry's answer; None when there is nothing to do."""
    problem: Mapping[str, Any] | None = None
    for _ in range(_TRIES):
        standing = client.get(f"/v1/consents/{pid}")
        speaks = acting(client, signing, standing)
        document = _event(signing, standing, choice, notice, speaks)
        if document is None:
            return None
        result = client.post("/v1/consents", {"documents": [document]})["results"][0]
        problem = result.get("problem")
        if problem is None:
            return document, result
        if problem["code"] != _MOVED_ON:
            break
    raise_if_refused(problem)
    return None


def _event(
    signing: "SigningKey",
    standing: Mapping[str, Any],
    choice: _Choice,
    notice: "Notice | None",
    speaks: dict[str, str],
) -> dict[str, Any] | None:
    """The next event of the chain, signed; None when there is nothing to do."""
    from coop.documents.consent import Consent
    from coop.documents.envelope import issue

    event: str = choice.asked
    if event in {"object", "lift"}:
        if standing["objected"] == (event == "object"):
            return None
    elif event == "decide":
        if standing["state"] == "suspended":
            raise ConsentRefusedError("consent: it is paused; coop patient resume, or withdraw")
        event = "amend" if standing["state"] in _GRANTED else "grant"
    elif standing["state"] not in _DECIDED[choice.asked]:
        return None
    subject = Consent(
        pid=standing["pid"],
        site=standing["site"],
        domain="research",
        sequence=standing["sequence"] + 1,
        previous=standing["head_sha256"],
        event="revoke" if event == "withdraw" else event,  # type: ignore[arg-type]  # Consent checks it
        policy=choice.policy,
        on_death=choice.on_death,
        notice=notice,
        **speaks,  # type: ignore[arg-type]  # Consent checks it
    )
    return dict(issue(subject, signing, int(time.time())))


def _checked(
    bundle: Mapping[str, Any], document: Mapping[str, Any], pinned: "Trust | None"
) -> dict[str, Any]:
    """Whether the receipt acknowledges exactly this event, under the pinned keys."""
    from coop.canonical import document_digest
    from coop.verify import verify_consent

    said = bundle["document"]["credentialSubject"]
    if said["consent_sha256"] != document_digest(document):
        raise ConsentRefusedError("receipt: it acknowledges another event than the one sent")
    if pinned is None:
        return {"index": said["index"], "verified": False, "witnessed": False}
    report = verify_consent(bundle, pinned)
    return {"index": said["index"], "verified": True, "witnessed": report.witnessed}
