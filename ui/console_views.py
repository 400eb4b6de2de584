"""From the node's JSON to what the hospital's console shows: pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ui.viewmodels import clock, day

_NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node's health."""

    ok: bool
    headline: str
    part_rows: list[dict[str, Any]]


def node_status(now: Mapping[str, Any]) -> NodeView:
    """A node's health in words."""
    rows = [
        {"part": name, "state": part["code"], "last seen": clock(int(part["at"]))}
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


def set_aside_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Documents of the log that staff set aside."""
    return [
        {
            "when": day(int(act["at"])),
            "log entry": act["log_index"],
            "record": act["pid"] or "none",
            "did not verify": act["code"],
            "reason": act["reason"],
            "document": act["document_sha256"],
        }
        for act in report["set_aside"]
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


def recovery_rows(waiting: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Whose key was replaced, and until when she can stop the new one."""
    return [
        {
            "record": str(one["record"]),
            "new key since": day(int(one["since"])),
            "allows nothing until": day(int(one["waits_until"])),
        }
        for one in waiting
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


def review_rows(review: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures of a study that a hospital reads before it signs."""
    study, plan = review["study"], review.get("plan", {})
    shown = {
        "title": study["title"],
        "asked by": f"{study['proposer']} ({'for' if study['commercial'] else 'not for'} profit)",
        "purpose": " ".join(
            [study["purpose"], study.get("disease", ""), *study.get("further_purposes", [])]
        ),
        "uses": ", ".join(study["uses"]),
        "data": f"{study['data_class']}: {', '.join(review['fields'])}",
        "ethics": study["ethics_reference"],
        **_epsilons(review),
        "rounds": str(plan.get("rounds", "")),
        "ends": day(int(study["expires"])),
        "software": review["software"],
        "witnesses": ", ".join(review["witnesses"]),
    }
    return [{"what": name, "value": value} for name, value in shown.items() if value]


def _epsilons(review: Mapping[str, Any]) -> dict[str, str]:
    """What the study costs a patient; empty where its plan is impossible."""
    if "epsilon" not in review:
        return {}
    cost = review["epsilon"]
    return {
        "training and evaluation ε": cost["training_and_evaluation"],
        "cohort questions ε": cost["cohort_questions"],
        "together ε (your limit holds this)": f"{cost['together']} (δ {review['delta']})",
    }


def budget_rows(entry: Mapping[str, Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What one study has spent of each line of its plan, in zCDP rho."""
    planned = {
        "training": int(plan["rounds"]) * int(plan["rho_round_nano"]),
        "evaluation": int(plan["rho_evaluation_nano"]),
        "reserve": int(plan["rho_reserve_nano"]),
        "cohort": int(plan["cohort_rho_nano"]),
    } if plan else {}  # fmt: skip
    return [
        {
            "study": f"{entry['study_id']} v{entry['version']}",
            "line": line,
            "spent rho": f"{nano / _NANO:.6f}",
            "planned rho": f"{planned[line] / _NANO:.6f}" if line in planned else "not known",
            "left": f"{100 - 100 * nano // planned[line]} %" if planned.get(line) else "",
        }
        for line, nano in entry["spend"].items()
    ]


def coverage_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """How many patients let one study use their record."""
    return {
        "study": f"{entry['study_id']} v{entry['version']}",
        "allowed": entry.get("permit", 0),
        "not allowed": entry.get("deny", 0) + entry.get("abstain", 0),
        "not decided": entry.get("undecided", 0),
    }


def quality_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Completeness by field."""
    return [{"field": name, **counts} for name, counts in found["fields"].items()]
