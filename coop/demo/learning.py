"""Acts of the demo: a study is proposed and approved, a model trained, evaluated and released."""

import time
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from coop.canonical import document_digest
from coop.client import Client
from coop.demo.house import House
from coop.demo.measure import cpu_seconds
from coop.documents.envelope import issue
from coop.documents.study import MICRO, Study
from coop.errors import UnavailableError
from coop.keys import SigningKey
from coop.money import from_text

_WAIT_S: Final = 120.0


def study(house: House, facts: dict[str, Any]) -> None:
    """The study file becomes a signed document; each hospital's staff approves it at its node."""
    from coop.studyfile import load_study

    researcher(house)
    fields = load_study(study_file())
    digest = propose(house, fields)
    house.narrator.say(f"{fields['study_id']} v{fields['version']}: {fields['title']}")
    facts["study"] = {
        "study_id": fields["study_id"],
        "version": fields["version"],
        "purpose": fields["purpose"],
        "digest": digest,
        "approvals": approve_everywhere(house, fields),
    }
    house.save("receipts/study.json", house.receipt(digest))
    house.check_file("receipt", "study.json")


def researcher(house: House) -> None:
    """Mei gets a signing key, an API key and, from the cooperative's staff, credits."""
    key = SigningKey.generate()
    key.save(house.folder / "keys/mei.key")
    with house.signed_in("mei") as session:
        api_key = session.post("/v1/api-keys", {"label": "demo"})["key"]
        account = session.get("/v1/whoami")["subject"]
    house.researcher = Client(house.hub_url, house.ca_file, token=api_key)
    with house.signed_in("kim") as staff:
        staff.post(
            "/v1/ledger/issue",
            {"account_id": int(account), "amount_nano": from_text("100"), "key": "demo-credits"},
        )


def study_file() -> Path:
    """The bundled study file."""
    return Path(str(files("coop.demo").joinpath("heart.yaml")))


def propose(house: House, fields: dict[str, Any]) -> str:
    """Sign and post a study version; its digest."""
    key = SigningKey.load(house.folder / "keys/mei.key")
    document = issue(Study.model_validate(fields), key, int(time.time()))
    return str(house.researcher_client.post("/v1/studies", {"document": document})["digest"])


def approve_everywhere(house: House, fields: dict[str, Any]) -> dict[str, str]:
    """Every hospital's staff reads and signs; digests by site."""
    for hospital in house.hospitals.values():
        hospital.node.post(
            "/local/v1/approvals",
            {"study_id": fields["study_id"], "version": fields["version"], "epsilon_cap": "1"},
        )
    with house.public() as client:
        shown = client.get(f"/v1/studies/{fields['study_id']}", version=fields["version"])
    house.narrator.say(
        f"approved by {', '.join(entry['site'] for entry in shown['approvals'])}; "
        f"state: {shown['state']}"
    )
    return {entry["site"]: entry["digest"] for entry in shown["approvals"]}


# --- training -------------------------------------------------------------------------------------


def training(house: House, facts: dict[str, Any]) -> None:
    """Twenty rounds; the budget is debited at each hospital before noise is drawn."""
    said = facts["study"]
    done = train(house, said["study_id"], said["version"])
    facts["training"] = done
    record = done["records"][0]
    house.save("receipts/round-record.json", house.receipt(record))
    house.check_file("receipt", "round-record.json")


def train(house: House, study_id: str, version: int) -> dict[str, Any]:
    """Order a training and follow it to its end."""
    cpu = cpu_seconds()
    begun = time.monotonic()
    body = {"study_id": study_id, "version": version}
    order = house.researcher_client.post("/v1/rounds", body)["run"]
    digest = order["order_sha256"]
    at: list[float] = []
    with house.narrator.progress() as bar:
        task = bar.add_task("rounds", total=int(order["rounds"]), note="")
        while True:
            now = house.researcher_client.get(f"/v1/rounds/{digest}")
            if len(at) <= int(now["round"]):
                at += [time.monotonic() - begun] * (int(now["round"]) + 1 - len(at))
            bar.update(
                task, completed=min(int(now["round"]), int(order["rounds"])), note=now["phase"]
            )
            if now["state"] in {"finished", "failed", "cancelled"}:
                break
            house.stage.check()
            time.sleep(0.2)
    if now["state"] != "finished":
        raise UnavailableError(f"training {now['state']}: {now.get('error')}")
    seconds = time.monotonic() - begun
    between = [later - earlier for earlier, later in pairwise(at[1:])]
    messages = sum(len(record["credentialSubject"]["accepted"]) for record in now["records"])
    spent = cpu_seconds() - cpu
    house.narrator.say(
        f"{order['rounds']} rounds and one evaluation in {seconds:.0f} s "
        f"(median {median(between):.1f} s a round), {messages} answers accepted, "
        f"{spent / max(messages, 1):.2f} CPU-s an answer over all processes"
    )
    return {
        "order_sha256": digest,
        "rounds": order["rounds"],
        "records": [document_digest(record) for record in now["records"]],
        "answers": messages,
        "seconds": round(seconds, 1),
        "median_round_seconds": round(median(between), 2) if between else None,
        "cpu_seconds_per_answer": round(spent / max(messages, 1), 3),
        "first_model_after_seconds": round(house.narrator.elapsed(), 1),
    }


# --- evaluation -----------------------------------------------------------------------------------


def evaluation(house: House, facts: dict[str, Any]) -> None:
    """The passport's noised evaluation beside references that production could not compute."""
    model = released(house, facts["training"]["order_sha256"])
    passport = model["passport"]["document"]["credentialSubject"]
    facts["training"]["epsilon_micro"] = passport["epsilon_micro"]
    facts["training"]["delta_pico"] = passport["delta_pico"]
    rows = {metric["group"]: metric for metric in passport["metrics"]}
    house.narrator.say(
        f"{model['model_id']}: training and evaluation ε "
        f"{passport['epsilon_micro'] / MICRO:.3f}, cohort questions ε "
        f"{passport['cohort_epsilon_micro'] / MICRO:.3f}, together ε "
        f"{passport['together_epsilon_micro'] / MICRO:.3f}; δ "
        f"{passport['delta_pico'] / 1e12:.0e}, {passport['relation']}, {passport['accountant']}"
    )
    for group, metric in rows.items():
        house.narrator.say(
            f"{group:8} AUC {_with_sd(metric, 'auc')}, "
            f"accuracy {_with_sd(metric, 'accuracy')} (noised)"
        )
    references = _references(house)
    for name in ("local_only", "pooled_non_private"):
        figures = references["references"][name]
        house.narrator.say(
            f"reference {name} (not possible in production): "
            f"AUC {figures['auc_pooled']['mean']:.3f}"
        )
    facts["evaluation"] = {
        "model_id": model["model_id"],
        "passport": model["passport_sha256"],
        "metrics": rows,
        "references": references["references"],
        "simulated_auc": references["metrics"]["auc_pooled"],
    }
    with house.public() as client:
        bundle = client.get(f"/v1/models/{model['model_id']}/bundle")
    house.save("receipts/passport.json", bundle)
    house.check_file("passport", "passport.json")


def released(house: House, order_sha256: str) -> dict[str, Any]:
    """The model a training released; waits for the release."""
    deadline = time.monotonic() + _WAIT_S
    with house.public() as client:
        while time.monotonic() < deadline:
            for model in client.get("/v1/models")["models"]:
                if model["order_sha256"] == order_sha256:
                    found: dict[str, Any] = client.get(f"/v1/models/{model['model_id']}")
                    return found
            time.sleep(0.2)
    raise UnavailableError("the model was not released in time")


def _with_sd(metric: dict[str, Any], name: str) -> str:
    value, sd = metric.get(f"{name}_micro"), metric.get(f"{name}_sd_micro")
    if value is None:
        return "not measurable under this noise"
    return f"{value / MICRO:.3f} ± {(sd or 0) / MICRO:.3f}"


def _references(house: House) -> dict[str, Any]:
    sites = []
    for name in house.hospitals:
        sites += ["--site", f"{name}={files('federated').joinpath(f'data/{name}.csv')}"]
    return house.coop("simulate", str(study_file()), *sites)
