"""The end of the story: the offline audit, the figures, and serving the portal if asked."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

from coop.demo.house import House, program, shown
from coop.demo.learning import released

_MIB = 2**20


def audit(house: House, facts: dict[str, Any]) -> None:
    """Verify everything the run left behind with nothing but files and pinned keys."""
    from coop import verify
    from coop.db import Database
    from coop.journal.trust import Trust
    from coop.ledger_check import check
    from coop.settings import Settings

    database = Database(Settings(state=house.folder / "hub").database())
    trust = Trust.load(house.trust_file)
    with house.public() as client:
        export = client.get("/v1/log/export")
    house.save("receipts/log.json", export)
    verify.verify_log(export, trust)
    checked = 0
    for path in sorted((house.folder / "receipts").glob("*.json")):
        bundle = json.loads(path.read_text())
        if path.name == "passport.json":
            verify.verify_passport(bundle, trust)
        elif "salt" in bundle:
            verify.verify_receipt(bundle, trust)
        else:
            continue  # the log and the hospitals' bare statements are not receipts
        checked += 1
    rounds = 0
    for done in (facts["training"], facts["withdrawal"]["training"]):
        with house.public() as client:
            base = f"/v1/rounds/{done['order_sha256']}/chains"
            chains = [client.get(f"{base}/{number + 1}") for number in range(len(done["records"]))]
        for chain in chains:
            verify.verify_round(chain, trust)
        rounds += len(chains)
        house.save(f"receipts/round-{done['rounds']}.json", chains[-1])
    model = released(house, facts["training"]["order_sha256"])
    house.coop("model", "export", model["model_id"], "--out", str(house.folder / "model"))
    house.coop("model", "verify", str(house.folder / "model"))
    with database.reading() as connection:
        check(connection)
    database.close()
    facts["audit"] = {
        "log_size": len(export["entries"]),
        "receipts": checked,
        "rounds": rounds,
        "model_id": model["model_id"],
        "ok": True,
    }
    house.narrator.say(
        f"log of {len(export['entries'])} entries rebuilt, {checked} receipts and {rounds} rounds "
        "verified back to the study and every hospital's approval; the ledger balances"
    )
    house.check_file("log", "log.json")
    trust_file = shown(house.trust_file)
    house.narrator.check(
        f"{program()} model verify {shown(house.folder / 'model')} --trust {trust_file}"
    )
    house.check_file("round", "round-20.json")


def close(house: House, facts: dict[str, Any]) -> None:
    """Say what it took, and keep the facts."""
    house.save("demo.json", facts)
    seconds, measured = facts["seconds"], facts["measured"]
    first = facts["training"]["first_model_after_seconds"]
    house.narrator.plain(
        f"\nfirst model after {first:.0f} s, all after {seconds['all']:.0f} s, "
        f"peak memory of all processes {measured['peak_memory_bytes'] / _MIB:.0f} MiB, "
        f"{measured['cpu_seconds']:.0f} CPU-s"
    )


def keep_serving(house: House) -> None:
    """Serve the portal until Ctrl-C; print the address, the passphrases and unused codes."""
    origin = house.portal_url
    environment = {
        **house.environment(),
        "COOP_PORTAL_PORT": str(house.portal_port),
        "COOP_PORTAL_URL": origin,
    }
    command = [str(Path(sys.executable).parent / "coop"), "portal"]
    house.stage.start("portal", command, environment)
    house.await_portal(origin)
    say = house.narrator.plain
    say(f"\nportal: {origin}   (Ctrl-C stops everything)")
    for persona in house.provider.personas.values():
        who = f"{persona.name:4} ({', '.join(persona.roles)})"
        say(f"  sign in as {who}: passphrase {persona.passphrase}")
    recovery = shown(house.folder / "keys" / "ada-recovery.json")
    say(f"  ada's recovery file, under the same passphrase: {recovery}")
    facts = json.loads((house.folder / "demo.json").read_text())
    for site, codes in facts["codes_left"].items():
        say(f"  un-enrolled at {site}: {'  '.join(codes)}")
    for hospital in house.hospitals.values():
        console = f"{program()} portal --hospital --state {shown(hospital.folder)}"
        say(f"  console of {hospital.name}: {console}")
    waiting = threading.Event()
    while not waiting.wait(1.0):
        house.stage.check()
