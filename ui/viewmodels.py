"""From the hub's JSON to what a page shows: pure functions, ready for another front end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ui import wording

_MICRO: Final = 1_000_000
_PICO: Final = 1_000_000_000_000
_NANO: Final = 1_000_000_000
_STATES: Final = {
    "active": "Allowed",
    "suspended": "Paused",
    "revoked": "Stopped",
    "none": "Not decided yet",
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
    may_stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The readable part of a signed checkpoint."""

    origin: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PassportView:
    """A model's passport in words and tables."""

    epsilon: str
    delta: str
    mode: str
    promise: str
    metric_rows: list[dict[str, Any]]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node's health."""

    ok: bool
    headline: str
    part_rows: list[dict[str, Any]]


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


def as_json(value: object) -> str:
    """Readable JSON for a download."""
    return json.dumps(value, indent=1, ensure_ascii=False)  # noqa: TID251  (for people, not signed)


def consent_card(entry: Mapping[str, Any]) -> ConsentCard:
    """Words for one entry of `/v1/me/consents`."""
    state = str(entry.get("state", "none"))
    refused = entry.get("preset") == "refuse"
    choice = wording.PRESETS.get(str(entry.get("preset")), ("", ""))[1]
    since = entry.get("at")
    return ConsentCard(
        title=f"Record at {str(entry['site']).capitalize()} ({str(entry['pid'])[:6]}…)",
        state="Refused" if refused and state == "active" else _STATES.get(state, state),
        choice=choice,
        detail=f"since {day(int(since))}" if since else "",
        lines=[(str(label), str(value)) for label, value in entry.get("summary", [])],
        may_stop=state in {"active", "suspended"} and not refused,
    )


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


def use_rows(statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of uses from a hospital's signed statement."""
    document = statement.get("statement", statement)
    return [
        {
            "when": day(int(use["at"])),
            "what": use["what"],
            "study": f"{use['study_id']} v{use['version']}",
            "round": use.get("round"),
            "proof": str(use["document_sha256"])[:12],
        }
        for use in document["credentialSubject"]["uses"]
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
    return Checkpoint(origin=lines[0], size=int(lines[1]))


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
    rows = []
    for metric in said["metrics"]:
        row: dict[str, Any] = {"group": metric["group"], "people (noised)": metric["count_noised"]}
        for name, shown in (("auc", "AUC"), ("accuracy", "accuracy")):
            value, sd = metric.get(f"{name}_micro"), metric.get(f"{name}_sd_micro")
            row[shown] = None if value is None else round(value / _MICRO, 3)
            row[f"{shown} ± sd"] = None if sd is None else round(sd / _MICRO, 3)
        rows.append(row)
    names = (
        "study_id",
        "version",
        "study_sha256",
        "order_sha256",
        "record_sha256",
        "training_root",
    )
    return PassportView(
        epsilon=f"{said['epsilon_micro'] / _MICRO:.3f}",
        delta=f"{said['delta_pico'] / _PICO:.0e}",
        mode=said["adversary"].split(":")[0],
        promise=f"{wording.EPSILON} Relation: {said['relation']}; accountant: {said['accountant']}",
        metric_rows=rows,
        provenance_rows=[{"what": name, "value": str(said[name])} for name in names],
        intended_use=said["intended_use"],
    )


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


def node_status(now: Mapping[str, Any]) -> NodeView:
    """A node's health in words."""
    rows = [
        {"part": name, "state": part["code"], "since": clock(int(part["at"]))}
        for name, part in sorted(now["parts"].items())
    ]
    ailing = [row["part"] for row in rows if row["state"] != "ok"]
    if now["stopped"]:
        return NodeView(ok=False, headline="Stopped by your staff.", part_rows=rows)
    if ailing:
        return NodeView(ok=False, headline=f"Needs you: {', '.join(ailing)}.", part_rows=rows)
    return NodeView(ok=True, headline="Everything works.", part_rows=rows)


def check_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The preflight as a table."""
    return [
        {
            "check": name,
            "ok": "yes" if entry["ok"] else "no",
            "found": entry["found"],
            "fix": "" if entry["ok"] else entry.get("fix", ""),
        }
        for name, entry in report["checks"].items()
    ]


def approval_rows(approved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What this hospital signed."""
    return [
        {
            "study": f"{entry['study_id']} v{entry['version']}",
            "signed": day(int(entry["approved_at"])),
        }
        for entry in approved
    ]


def awaiting(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Studies that are open and not signed here."""
    signed = {(entry["study_id"], entry["version"]) for entry in said["approved"]}
    return [
        dict(study)
        for study in said["open"]
        if (study["study_id"], study["version"]) not in signed
        and study["state"] in {"proposed", "ready"}
    ]


def budget_rows(studies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every study has spent of each line, in zCDP rho."""
    return [
        {
            "study": f"{entry['study_id']} v{entry['version']}",
            "line": line,
            "spent rho": nano / _NANO,
        }
        for entry in studies
        for line, nano in entry["spend"].items()
    ]


def quality_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Completeness by field."""
    return [{"field": name, **counts} for name, counts in found["fields"].items()]
