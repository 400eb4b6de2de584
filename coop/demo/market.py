"""Acts of the demo: questions and their fees, the split of the fees, a withdrawal that bites."""

import secrets
import time
from typing import Any, Final

from coop.canonical import document_digest
from coop.client import Client
from coop.demo.house import House
from coop.demo.learning import approve_everywhere, propose, study_file, train
from coop.demo.people import ADA_AT
from coop.documents.consent import request_uses
from coop.documents.study import MICRO
from coop.errors import UnavailableError
from coop.keys import SigningKey
from coop.money import NanoCredits, to_text

_WAIT_S: Final = 120.0
_NEXT_VERSION: Final = 2


def inference(house: House, facts: dict[str, Any]) -> None:
    """A point question to the released model, a cohort question to the hospitals."""
    said, model_id = facts["study"], facts["evaluation"]["model_id"]
    headers = {"Coop-Study": said["study_id"], "Coop-Purpose": said["purpose"]}
    body = {
        "inputs": [
            {"name": "age_years", "datatype": "FP64", "shape": [1], "data": [58.0]},
            {"name": "sex", "datatype": "BYTES", "shape": [1], "data": ["male"]},
            {"name": "chest_pain", "datatype": "BYTES", "shape": [1], "data": ["asymptomatic"]},
            {"name": "st_depression", "datatype": "FP64", "shape": [1], "data": [2.1]},
            {"name": "exercise_angina", "datatype": "BOOL", "shape": [1], "data": [True]},
        ]
    }
    path = f"/v2/models/{model_id}/infer"
    keyed = {**headers, "Idempotency-Key": secrets.token_hex(8)}
    answer = house.researcher_client.respond("POST", path, body, keyed)
    risk = answer.json()["outputs"][0]["data"][0]
    receipt = answer.headers["coop-receipt"]
    fee = int(answer.headers["coop-credits-charged"])
    house.narrator.say(f"point question: risk {risk} for {to_text(NanoCredits(fee))} credits")
    house.save("receipts/inference.json", house.receipt(receipt, mine=True))
    asked = {
        "kind": "cohort",
        "study_id": said["study_id"],
        "version": said["version"],
        "query": {
            "where": [{"field": "age_years", "operator": "at-least", "number": 50}],
            "release": "count-and-mean-risk",
            "model_id": model_id,
            "rho_nano": 1_000_000,
        },
    }
    job = house.researcher_client.post(
        "/v1/jobs", asked, headers={**headers, "Idempotency-Key": secrets.token_hex(8)}
    )
    deadline = time.monotonic() + _WAIT_S
    while job["state"] == "running" and time.monotonic() < deadline:
        job = house.researcher_client.get(f"/v1/jobs/{job['id']}", wait=20)
    result = house.researcher_client.get(f"/v1/jobs/{job['id']}/result")
    house.narrator.say(
        "cohort question (patients of 50 and older who permit it): "
        f"count {result['count']} ± {result['count_sd_micro'] / MICRO:.0f}, "
        f"mean risk {result['mean_risk_micro'] / MICRO:.3f}"
    )
    facts["inference"] = {
        "point": {"receipt": receipt, "risk": risk, "fee_nano": fee},
        "cohort": {"job": job["id"], **result},
    }
    house.check_file("receipt", "inference.json")


# --- credits --------------------------------------------------------------------------------------


def credits_act(house: House, facts: dict[str, Any]) -> None:
    """Close the window, recompute it from the published inputs, let Ada collect."""
    model_id = facts["evaluation"]["model_id"]
    with house.signed_in("kim") as staff:
        closed = staff.post(f"/v1/dividends/{model_id}:close")
    with house.public() as client:
        published = client.get(f"/v1/dividends/{model_id}")
    parts: dict[str, int] = {}
    for window in published["windows"]:
        for payee, nano in window["document"]["credentialSubject"]["parts"].items():
            kind = payee.split(":")[0]
            parts[kind] = parts.get(kind, 0) + int(nano)
    said = ", ".join(f"{kind} {to_text(NanoCredits(nano))}" for kind, nano in parts.items())
    house.narrator.say(f"the fees were split: {said}")
    recomputed = house.coop("dividends", "verify")
    checked = house.coop("ledger", "check")
    house.narrator.say("recomputed bit for bit from the published inputs; the ledger balances")
    with house.signed_in("ada") as ada:
        claimed = ada.post("/v1/me/credits:claim")
    house.narrator.say(f"Ada collected {to_text(NanoCredits(claimed['claimed_nano']))} credits")
    facts["credits"] = {
        "model_id": model_id,
        "windows": [window["digest"] for window in published["windows"]],
        "closed_now": len(closed["windows"]),
        "parts_nano": parts,
        "ada_claimed_nano": claimed["claimed_nano"],
        "recomputed": recomputed["ok"],
        "ledger": checked,
    }
    house.check_books("dividends verify")
    house.check_books("ledger check")


# --- withdrawal -----------------------------------------------------------------------------------


def withdrawal(house: House, facts: dict[str, Any]) -> None:
    """Stop without a key; the hospital's signed list; a new study version that leaves her out."""
    from coop.studyfile import load_study

    pid = facts["consent"]["ada"]["pid"]
    with house.signed_in("ada") as ada:
        receipt = ada.post(f"/v1/consents/{pid}/revoke")
        statement = _uses(house, ada, pid)
    uses = statement["credentialSubject"]["uses"]
    house.narrator.say(
        f"acknowledged; effective everywhere by {_clock(receipt['effective_by'])} UTC; "
        f"her hospital signed a list of {len(uses)} uses"
    )
    house.save("receipts/withdrawal.json", receipt["receipt"])
    house.save("receipts/uses.json", statement)
    fields = load_study(study_file())
    fields["version"] = _NEXT_VERSION
    fields["recipe"] = {**fields["recipe"], "rounds": 5, "average_last": 2}
    propose(house, fields)
    approve_everywhere(house, fields)
    done = train(house, fields["study_id"], _NEXT_VERSION)
    with house.signed_in("ada") as ada:
        after = _uses(house, ada, pid)
    later = [use for use in after["credentialSubject"]["uses"] if use["version"] == _NEXT_VERSION]
    if later:
        raise UnavailableError("Ada's record was used after she withdrew")
    house.narrator.say(
        "the hospital's newest signed list names no use in version 2: she was left out"
    )
    house.save("receipts/uses-after.json", after)
    facts["withdrawal"] = {
        "effective_by": receipt["effective_by"],
        "receipt": document_digest(receipt["receipt"]["document"]),
        "uses_before": len(uses),
        "uses_in_next_training": len(later),
        "training": done,
    }
    house.check_file("receipt", "withdrawal.json")


def _uses(house: House, ada: Client, pid: str) -> dict[str, Any]:
    """Her hospital's list, asked for with her own key."""
    key = SigningKey.load(house.folder / "keys" / "ada.key")
    signed = request_uses(key, ADA_AT, pid, int(time.time()))
    statement: dict[str, Any] = ada.get("/v1/me/uses", pid=pid, headers=signed)
    return statement


def _clock(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))
