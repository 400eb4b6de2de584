"""Acts of the demo: hospitals answer codes, patients make keys and sign what they choose."""

import time
from typing import Any, Final

from coop.demo.house import House, program, shown
from coop.demo.people import Person, people
from coop.demo.recovery import recovery_file
from coop.documents.consent import Consent, Notice
from coop.documents.envelope import issue
from coop.enrolment import redemption
from coop.errors import UnavailableError

_WAIT_S: Final = 120.0
_BATCH: Final = 500


def hospitals(house: House) -> dict[str, Any]:
    """Who takes part, as the hub's public page says it."""
    with house.public() as client:
        members = client.get("/v1/members/sites")["sites"]
    house.narrator.say(f"{len(members)} hospitals, each a process with its own key and database")
    house.narrator.check(f"{program()} hub status --state {shown(house.folder / 'hub')}")
    return {entry["name"]: {"did": entry["did"]} for entry in members}


def enrol(house: House, facts: dict[str, Any]) -> None:
    """Codes at the desks, keys on the patients' side, signatures under a stated policy."""
    everyone: list[tuple[Person, str]] = []
    codes_left: dict[str, list[str]] = {}
    for hospital in house.hospitals.values():
        codes = hospital.node.post(
            "/local/v1/enrolments", {"records": hospital.records, "method": "demo"}
        )["codes"]
        persons = list(people(hospital.name, hospital.records))
        enrolled = {person.record_key for person in persons}
        codes_left[hospital.name] = [
            codes[record] for record in hospital.records if record not in enrolled
        ]
        everyone += [(person, codes[person.record_key]) for person in persons]
    pids = redeem(house, everyone)
    receipts = grant(house, [person for person, _code in everyone], pids)
    ada = everyone[0][0]  # the first patient of Cleveland's file
    keys = house.folder / "keys"
    keys.mkdir(mode=0o700)
    ada.key.save(keys / "ada.key")
    seed = bytes.fromhex((keys / "ada.key").read_text())
    passphrase = house.provider.personas["ada"].passphrase
    house.save("keys/ada-recovery.json", recovery_file(ada.key, seed, passphrase))
    choices: dict[str, int] = {}
    for person, _code in everyone:
        choices[person.preset] = choices.get(person.preset, 0) + 1
    facts["consent"] = {
        "patients": sum(len(hospital.records) for hospital in house.hospitals.values()),
        "enrolled": len(everyone),
        "choices": choices,
        "ada": {"pid": pids[ada.key.did], "receipt": receipts[0]["receipt"]},
    }
    facts["codes_left"] = codes_left
    said = ", ".join(f"{count} {name}" for name, count in sorted(choices.items()))
    house.narrator.say(f"{len(everyone)} patients enrolled and signed (custody: demo): {said}")
    allowed = "; ".join(f"{label[0].lower()}{label[1:]} {value}" for label, value in _words(ada))
    house.narrator.say(f"Ada signed: {allowed}")
    house.save("receipts/consent.json", receipts[0]["receipt"])
    house.check_file("consent", "consent.json")


def _words(person: Person) -> list[list[str]]:
    from consent.policy import preset, summary

    return summary(preset(person.preset))


def redeem(house: House, everyone: list[tuple[Person, str]]) -> dict[str, str]:
    """Send every redemption; wait until the hospitals have answered; pids by did."""
    bodies = [redemption(code, person.key) for person, code in everyone]
    pids: dict[str, str] = {}
    # Ada redeems while signed in, so that her account and her record belong together.
    with house.signed_in("ada") as ada:
        ada.post("/v1/enrolments:redeem", {"redemptions": bodies[:1]})
    deadline = time.monotonic() + _WAIT_S
    with house.public() as client, house.narrator.progress() as bar:
        task = bar.add_task("hospitals check codes", total=len(bodies), note="")
        waiting = bodies
        while waiting:
            pending = []
            for start in range(0, len(waiting), _BATCH):
                batch = waiting[start : start + _BATCH]
                results = client.post("/v1/enrolments:redeem", {"redemptions": batch})["results"]
                for body, result in zip(batch, results, strict=True):
                    if result["problem"]:
                        raise UnavailableError(f"a redemption was refused: {result['problem']}")
                    if result["pid"] is None:
                        pending.append(body)
                    else:
                        pids[str(body["did"])] = str(result["pid"])
            bar.update(task, completed=len(pids))
            waiting = pending
            if time.monotonic() > deadline:
                raise UnavailableError("the hospitals did not answer every code in time")
            time.sleep(0.2 if waiting else 0)
    return pids


def grant(house: House, persons: list[Person], pids: dict[str, str]) -> list[dict[str, Any]]:
    """Each signs her own choice, as her first decision; the registry's answer to each.

    Args:
        house: Where the registry is.
        persons: Who decides.
        pids: By did (`redeem`).
    """
    from consent.policy import preset

    with house.public() as client:
        notice = Notice.model_validate(client.get("/v1/notices:current")["notice"])
    now = int(time.time())
    documents = [
        issue(
            Consent(
                pid=pids[person.key.did],
                site=person.site,
                domain="research",
                sequence=1,
                event="grant",
                policy=preset(person.preset),
                notice=notice,
            ),
            person.key,
            now,
        )
        for person in persons
    ]
    return submit(house, documents)


def submit(house: House, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send signed events to the registry; its answer to each."""
    results: list[dict[str, Any]] = []
    with house.public() as client, house.narrator.progress() as bar:
        task = bar.add_task("signatures into the log", total=len(documents), note="")
        for start in range(0, len(documents), _BATCH):
            batch = documents[start : start + _BATCH]
            results += client.post("/v1/consents", {"documents": batch})["results"]
            bar.update(task, completed=len(results))
    refused = [result["problem"] for result in results if result["problem"]]
    if refused:
        raise UnavailableError(f"{len(refused)} consents were refused: {refused[0]}")
    return results
