"""A hub, its log and three hospitals with fixed keys: what the kernel's tests speak about."""

from dataclasses import dataclass, field

from coop.canonical import sha256
from coop.db import Database
from coop.documents.consent import Consent, ConsentReceipt, Enrolment
from coop.documents.envelope import issue
from coop.documents.provision import Policy, Provision
from coop.journal import note
from coop.journal.store import Journal
from coop.journal.trust import Trust
from coop.keys import SigningKey

NOW = 1_790_000_000
PID = "a" * 26
SALT = "5a" * 32


def key(name: str) -> SigningKey:
    """The same key for the same name, in tests only."""
    return SigningKey(sha256(f"test key {name}".encode()))


HUB, LOG, PATIENT = key("hub"), key("log"), key("patient")
SITES = {name: key(name) for name in ("budapest", "cleveland", "zurich")}
DIDS = {name: site.did for name, site in SITES.items()}
TRUST = Trust(hub=HUB.did, log=LOG.did, origin="hub.test/log", sites=DIDS, k=2)


@dataclass
class Clock:
    """A clock that the test moves."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now


@dataclass
class World:
    """A journal in a database."""

    database: Database
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.journal = Journal(self.database, LOG, TRUST.origin, self.clock)

    def record(self, kind: str, document: dict[str, object]) -> str:
        """Log one document in a unit of work of its own; its digest."""
        with self.database.unit_of_work() as connection:
            return self.journal.record(connection, kind, document).digest

    def witness(self, *names: str) -> None:
        """Let these hospitals cosign the newest checkpoint."""
        for name in names:
            with self.database.unit_of_work() as connection:
                text = self.journal.checkpoint(connection)
                signed = note.cosign(text, name=name, key=SITES[name], now=self.clock.now)
                self.journal.add_cosignature(connection, name, DIDS[name], signed)

    def bundle(self, digest: str) -> dict[str, object]:
        """The receipt bundle of a logged document."""
        with self.database.reading() as connection:
            return self.journal.receipt(connection, digest, sites=DIDS)


def consent_receipt(number: int = 0, *, by: SigningKey = HUB, **said: object) -> dict[str, object]:
    """A small document that the hub signs."""
    values = {
        "pid": PID,
        "site": "cleveland",
        "consent_sha256": f"{number:064x}",
        "event": "grant",
        "index": 0,
        "salt": SALT,
        "effective_by": NOW + 60,
    }
    subject = ConsentReceipt.model_validate({**values, **said})
    return issue(subject, by, NOW, id=f"urn:uuid:00000000-0000-4000-8000-{number:012x}")


def enrolment(*, by: SigningKey = SITES["cleveland"], pid: str = PID) -> dict[str, object]:
    """The hospital's word that PATIENT speaks for `pid`."""
    subject = Enrolment(
        site="cleveland",
        pid=pid,
        key=PATIENT.did,
        method="desk",
        custody="self",
        code_id="cleveland.aaaaaaaa",
    )
    return issue(subject, by, NOW)


def consent(event: str = "grant", *, by: SigningKey = PATIENT) -> dict[str, object]:
    """The patient's first word, or a restriction by someone entitled."""
    policy = Policy(provision=Provision(type="permit")) if event == "grant" else None
    subject = Consent.model_validate(
        {
            "pid": PID,
            "site": "cleveland",
            "domain": "research",
            "sequence": 1,
            "event": event,
            "policy": policy,
        }
    )
    return issue(subject, by, NOW)
