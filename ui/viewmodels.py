"""From the hub's JSON to what a page shows: pure functions, ready for another front end."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from coop.documents.consent import UseRequest, use_request_header
from coop.documents.envelope import for_signer, with_signature
from ui import wording

_MICRO: Final = 1_000_000
_PICO: Final = 1_000_000_000_000
_NANO: Final = 1_000_000_000
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]()#+\-.!:$|<>~])")
_STATES: Final = {
    "active": "Allowed",
    "suspended": "Paused",
    "revoked": "Stopped",
    "none": "Not decided yet",
    "proposed": "Proposed by your hospital",
    "rejected": "Declined",
    "entered-in-error": "Recorded in error",
    "expired": "Over",
    "waiting": "Waiting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentCard:
    """One record's consent in words."""

    title: str
    state: str
    choice: str
    detail: str
    lines: list[tuple[str, str]]
    """What the choice says, as label and value."""
    lines_title: str
    decided: bool
    may_stop: bool
    may_decide: bool
    """Whether what comes next is a decision: none is in force."""
    may_decline: bool
    objected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The readable part of a signed checkpoint."""

    origin: str
    size: int
    signers: list[str]
    """Whose signatures it carries, as it says itself; `coop verify log` checks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassportView:
    """A model's passport in words and tables."""

    epsilon: str
    """Of training and evaluation."""
    cohort_epsilon: str
    together_epsilon: str
    delta: str
    mode: str
    promise: str
    metric_rows: list[dict[str, Any]]
    auc_rows: list[dict[str, Any]]
    provenance_rows: list[dict[str, Any]]
    intended_use: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerView:
    """One inference."""

    risk: str
    cost: str
    receipt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsView:
    """A member's credits."""

    collected: str
    waiting: str
    may_claim: bool
    rows: list[dict[str, Any]]


def clock(seconds: int) -> str:
    """UTC time of day with its zone."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%H:%M:%S UTC")


def day(seconds: int) -> str:
    """UTC date and time."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def credits_text(nano: int) -> str:
    """Credits with up to nine decimals, no float in between."""
    whole, rest = divmod(abs(nano), _NANO)
    decimals = f"{rest:09d}".rstrip("0")
    return f"{'-' if nano < 0 else ''}{whole}{'.' + decimals if decimals else ''}"


def plain(text: str) -> str:
    """Text that others wrote, with every sign escaped that Markdown would act on."""
    return _MARKUP.sub(r"\\\1", text)


def as_json(value: object) -> str:
    """Readable JSON for a download."""
    return json.dumps(value, indent=1, ensure_ascii=False)  # noqa: TID251  (for people, not signed)


def consent_card(entry: Mapping[str, Any]) -> ConsentCard:
    """Words for one entry of `/v1/me/consents`."""
    state = str(entry.get("state", "none"))
    refused = entry.get("preset") == "refuse"
    choice = wording.PRESETS.get(str(entry.get("preset")), ("", ""))[1]
    since = entry.get("at")
    in_force = state == "active" and not entry.get("objected")
    return ConsentCard(
        title=f"Record at {str(entry['site']).capitalize()} ({str(entry['pid'])[:6]}…)",
        state=_state(entry),
        choice=choice if in_force else "",
        detail=f"since {day(int(since))} · log entry {entry.get('log_index')}" if since else "",
        lines=[(str(label), str(value)) for label, value in entry.get("summary", [])],
        lines_title=_lines_title(state),
        decided=entry.get("sequence", 1) > 0 and state != "none",
        may_stop=state in {"active", "suspended", "waiting"} and not refused,
        may_decide=state not in {"active", "suspended", "waiting"},
        may_decline=state == "proposed",
        objected=bool(entry.get("objected")),
    )


def _state(entry: Mapping[str, Any]) -> str:
    if entry.get("objected"):
        return wording.OBJECTED
    state = str(entry.get("state", "none"))
    if state == "active" and entry.get("preset") == "refuse":
        return "Refused"
    return _STATES.get(state, state)


def _lines_title(state: str) -> str:
    titles = {"active": wording.MAY_DO, "waiting": wording.MAY_DO, "proposed": wording.PROPOSED}
    return titles.get(state, wording.MIGHT_DO)


def history_rows(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was decided about one record, newest first."""
    return [
        {
            "when": day(int(event["at"])),
            "what": wording.EVENTS.get(str(event["event"]), str(event["event"])),
            "by": event["actor"],
            "log entry": event["log_index"],
        }
        for event in reversed(events)
    ]


def below_title(markdown: str) -> str:
    """A notice with its headline one level lower: the page has its own."""
    return markdown.replace("# ", "## ", 1) if markdown.startswith("# ") else markdown


def event_for(entry: Mapping[str, Any]) -> str:
    """The event a fresh decision is: the first and every one after a stop is a grant."""
    return "amend" if entry.get("state") == "active" else "grant"


def join_state(state: str) -> str:
    """What became of a code."""
    return {
        "enrolled": "Your hospital confirmed the code.",
        "refused": "Your hospital did not accept this code. Ask the desk for a new one.",
        "pending": "Your hospital has not answered yet. Come back later; nothing is lost.",
    }.get(state, "This code is not known.")


def receipt_index(done: Mapping[str, Any]) -> int:
    """The log entry of a consent receipt."""
    subject = done["receipt"]["document"]["credentialSubject"]
    return int(subject["index"])


def use_request(entry: Mapping[str, Any], now: int) -> dict[str, Any]:
    """The unsigned request for her list of uses, with its proof options, for the signer."""
    subject = UseRequest(site=entry["site"], pid=entry["pid"])
    document, proof = for_signer(subject, issuer=entry["did"], now=now)
    return {**document, "proof": proof}


def signed_request(asking: Mapping[str, Any], did: str, signature: str) -> dict[str, str]:
    """The header that takes the request to the hub, once her browser has signed it."""
    document = {name: part for name, part in asking.items() if name != "proof"}
    return use_request_header(with_signature(document, asking["proof"], did, signature))


def use_rows(statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of uses from a hospital's signed statement."""
    document = statement.get("statement", statement)
    return [
        {
            "when": day(int(use["at"])),
            "what": wording.USES.get(str(use["what"]), str(use["what"])),
            "study": f"{use['study_id']} v{use['version']}",
            "round": str(use.get("round") or "-"),
            "proof": str(use["document_sha256"])[:12],
        }
        for use in document["credentialSubject"]["uses"]
    ]


def study_use_rows(
    statement: Mapping[str, Any], models: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Who asked, what for, how often her record was used or kept out, and what came of it."""
    document = statement.get("statement", statement)
    return [
        {
            "study": f"{said['title']} (v{said['version']})",
            "by": said["organisation"] + (wording.COMPANY if said["commercial"] else ""),
            "used": f"{said['used']} times",
            "kept out, as you wish": f"{said['refused']} times",
            "models": ", ".join(
                str(model["model_id"])
                for model in models
                if (model.get("study_id"), model.get("version"))
                == (said["study_id"], said["version"])
            )
            or "none",
        }
        for said in document["credentialSubject"].get("studies", [])
    ]


def credits_view(mine: Mapping[str, Any]) -> CreditsView | None:
    """A member's credits; None while no choice is stored."""
    if not mine.get("shown", True):
        return None
    waiting = int(mine.get("waiting_nano", 0))
    return CreditsView(
        collected=credits_text(int(mine.get("collected_nano", 0))),
        waiting=credits_text(waiting),
        may_claim=waiting > 0,
        rows=[
            {"when": day(int(row["at"])), "what": row["what"], "credits": credits_text(row["nano"])}
            for row in mine.get("statement", [])
        ],
    )


def checkpoint(note: str) -> Checkpoint:
    """Origin and size of a checkpoint (C2SP: the first two lines)."""
    lines = note.splitlines()
    signers = [line.split()[1] for line in lines if line.startswith("— ")]
    return Checkpoint(origin=lines[0], size=int(lines[1]), signers=signers)


def study_rows(studies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The register of studies."""
    return [
        {
            "study": f"{study['study_id']} v{study['version']}",
            "title": study.get("title", ""),
            "state": study["state"],
            "hospitals": len(study.get("approvals", [])),
        }
        for study in studies
    ]


def model_rows(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The register of models."""
    return [
        {
            "model": model["model_id"],
            "study": f"{model['study_id']} v{model['version']}",
            "state": model.get("state", ""),
        }
        for model in models
    ]


def dividend_rows(dividends: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Who received what in closed windows, summed."""
    sums: dict[str, int] = {}
    for window in dividends.get("windows", []):
        parts = window["document"]["credentialSubject"]["parts"]
        for payee, nano in parts.items():
            kind = str(payee).split(":", maxsplit=1)[0].replace("pool", "patients")
            sums[kind] = sums.get(kind, 0) + int(nano)
    return [{"to": kind, "credits": nano / _NANO} for kind, nano in sums.items()]


def subject(bundle_or_document: Mapping[str, Any]) -> dict[str, Any]:
    """The subject of a signed document, bare or in a bundle."""
    document = bundle_or_document.get("document", bundle_or_document)
    return dict(document["credentialSubject"])


def passport(card: Mapping[str, Any]) -> PassportView:
    """A model's passport for the card page."""
    said = subject(card["passport"])
    rows = [
        {
            "group": metric["group"],
            "people (noised)": metric["count_noised"],
            "AUC ± sd": _measured(metric, "auc"),
            "accuracy ± sd": _measured(metric, "accuracy"),
        }
        for metric in said["metrics"]
    ]
    known = [metric for metric in said["metrics"] if metric.get("auc_micro") is not None]
    names = (
        "study_id",
        "version",
        "study_sha256",
        "order_sha256",
        "record_sha256",
        "training_root",
    )
    factor = f"{math.exp(said['together_epsilon_micro'] / _MICRO):.1f}"
    return PassportView(
        epsilon=f"{said['epsilon_micro'] / _MICRO:.3f}",
        cohort_epsilon=f"{said['cohort_epsilon_micro'] / _MICRO:.3f}",
        together_epsilon=f"{said['together_epsilon_micro'] / _MICRO:.3f}",
        delta=f"{said['delta_pico'] / _PICO:.0e}",
        mode=said["adversary"].split(":")[0],
        promise=(
            f"{wording.EPSILON_OF_STUDY.format(factor=factor)} "
            f"Relation: {said['relation']}; accountant: {said['accountant']}"
        ),
        metric_rows=rows,
        auc_rows=[
            {"group": metric["group"], "AUC": round(metric["auc_micro"] / _MICRO, 3)}
            for metric in known
        ],
        provenance_rows=[{"what": name, "value": str(said[name])} for name in names],
        intended_use=said["intended_use"],
    )


def _measured(metric: Mapping[str, Any], name: str) -> str:
    value, sd = metric.get(f"{name}_micro"), metric.get(f"{name}_sd_micro")
    if value is None:
        return "too few"
    return f"{value / _MICRO:.3f}" + ("" if sd is None else f" ± {sd / _MICRO:.3f}")


def features(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The features a model reads, as its card declares them."""
    return [dict(feature) for feature in card["features"]["features"]]


def inference_request(
    described: Mapping[str, Any], values: Mapping[str, float | str | bool | None]
) -> dict[str, Any]:
    """An Open Inference Protocol v2 request for one row; a value left out is missing."""
    inputs = []
    for tensor in described["inputs"]:
        value = values.get(tensor["name"])
        if value is None:
            continue
        inputs.append(
            {
                "name": tensor["name"],
                "datatype": tensor["datatype"],
                "shape": [1],
                "data": [float(value) if tensor["datatype"] == "FP64" else value],
            }
        )
    return {"inputs": inputs}


def inference_headers(card: Mapping[str, Any]) -> dict[str, str]:
    """The study and the purpose under which the question is asked."""
    said = subject(card["passport"])
    return {"Coop-Study": str(said["study_id"]), "Coop-Purpose": str(said["purpose"])}


def answer(body: Mapping[str, Any], headers: Mapping[str, str]) -> AnswerView:
    """One inference in words."""
    return AnswerView(
        risk=f"{body['outputs'][0]['data'][0]:.3f}",
        cost=credits_text(int(headers.get("coop-credits-charged", "0"))),
        receipt=headers.get("coop-receipt", ""),
    )
