"""A model's card as other platforms read it: Markdown under YAML, in the form of Hugging Face.

Everything in it is taken from the signed passport and its study, and it says so: the card is for
readers, the passport beside it is what verifies. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

FILE: Final = "README.md"
_MICRO: Final = 1_000_000
_PICO: Final = 1_000_000_000_000
_FIGURES: Final = {
    "AUC": "auc",
    "accuracy": "accuracy",
    "Brier score": "brier",
    "predicted minus observed": "calibration",
}
_EPSILONS: Final = {
    "training": "training_epsilon_micro",
    "training and evaluation": "epsilon_micro",
    "with every question to the hospitals": "together_epsilon_micro",
}


def model_card(said: Mapping[str, Any]) -> str:
    """The text of `README.md`.

    Args:
        said: What `GET /v1/models/{id}` answers: title, lay_summary, features, state, passport,
            withdrawals.

    Source: huggingface.co/docs/hub/model-cards (metadata, model-index).
    """
    passport = said["passport"]["document"]["credentialSubject"]
    front = yaml.safe_dump(_metadata(passport), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_text(said, passport)}"


def _metadata(passport: Mapping[str, Any]) -> dict[str, Any]:
    """What machines read; only figures that were measured, each with the noise it carries."""
    measured = [
        {
            "type": kind,
            "name": f"{kind} ({metric['group']}), noised",
            "value": metric[f"{field}_micro"] / _MICRO,
            "args": {"sd_of_the_noise": (metric.get(f"{field}_sd_micro") or 0) / _MICRO},
        }
        for metric in passport["metrics"]
        for field, kind in (("auc", "roc_auc"), ("accuracy", "accuracy"), ("brier", "brier_score"))
        if metric.get(f"{field}_micro") is not None
    ]
    results = {
        "task": {"type": "tabular-classification"},
        "dataset": {
            "type": "private",
            "name": f"patients of {len(passport['hospital_weights'])} hospitals, held out",
        },
        "metrics": measured,
    }
    return {
        "library_name": "onnx",
        "pipeline_tag": "tabular-classification",
        "license": "other",
        "license_name": "by-study",
        "tags": ["federated-learning", "differential-privacy", "health", "not-for-clinical-use"],
        **({"model-index": [{"name": passport["model_id"], "results": [results]}]} if measured
           else {}),
    }  # fmt: skip


def _text(said: Mapping[str, Any], passport: Mapping[str, Any]) -> str:
    features = said["features"]["features"]
    delta = f"{passport['delta_pico'] / _PICO:.0e}"
    sections = {
        f"# {said['title']}": said["lay_summary"],
        "## Intended use": f"{passport['intended_use']} Purpose: {passport['purpose']}; "
        f"{'commercial' if passport['commercial'] else 'not commercial'}. State: {said['state']}.",
        "## Privacy": _table(
            ("what", "epsilon", "delta"),
            [
                (what, f"{passport[name] / _MICRO:.3f}", delta)
                for what, name in _EPSILONS.items()
            ],
        )
        + f"\n\nPer patient, {passport['relation']}; {passport['accountant']}; "
        f"{passport['adversary']}. " + "; ".join(passport["mechanism"]) + ".",
        "## Evaluation": "On patients who did not train it, from counts with noise; ± is the "
        "noise's own standard deviation. A dash: not measurable under this noise.\n\n"
        + _table(
            ("group", "about how many", *_FIGURES),
            [
                (m["group"], str(m["count_noised"]), *(_figure(m, f) for f in _FIGURES.values()))
                for m in passport["metrics"]
            ],
        ),
        **_fairness(passport.get("fairness")),
        "## What it reads": _table(
            ("field", "kind", "unit or values"),
            [
                (f["name"], f["kind"], str(f.get("unit") or ", ".join(f.get("values", [])) or "-"))
                for f in features
            ],
        ),
        "## Where it comes from": _table(
            ("hospital", "patients who permitted the study"),
            [(site, str(count)) for site, count in sorted(passport["hospital_weights"].items())],
        )
        + f"\n\nStudy {passport['study_id']} version {passport['version']} "
        f"(`{passport['study_sha256']}`), order `{passport['order_sha256']}`, last round "
        f"`{passport['record_sha256']}`.",
        "## How to check": "This card is no proof; `passport.json` beside it is. With the keys you "
        "pinned, `coop model verify FOLDER` checks the passport, its place in the public log, and "
        "that these files are the ones it names.",
    }  # fmt: skip
    return "\n\n".join(f"{heading}\n\n{body}" for heading, body in sections.items()) + "\n"


def _fairness(said: Mapping[str, Any] | None) -> dict[str, str]:
    if said is None:
        return {}
    words = {
        "passed": "every subgroup is surely above it",
        "uncertain": "under the noise nobody can say whether every subgroup is above it",
        "below": f"surely below it: {', '.join(said['below'])}; the model answers nothing",
    }[said["verdict"]]
    least = f"{said['floor_micro'] / _MICRO:.2f}"
    return {"## Fairness": f"Least AUC of a subgroup by every approval: {least}; {words}."}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _figure(metric: Mapping[str, Any], name: str) -> str:
    value = metric.get(f"{name}_micro")
    if value is None:
        return "-"
    return f"{value / _MICRO:.3f} ± {(metric.get(f'{name}_sd_micro') or 0) / _MICRO:.3f}"
