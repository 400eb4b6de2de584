"""Verifying a receipt, and a consent: from the desk that enrolled a key to the receipt for it.

Who may speak for the record is folded from the documents in the file by the same function as at
the hub and at the hospital (`consent.succession.take`). A file cannot show that it is complete:
what its holder left out is not seen here, and is what the hospital's own node is for.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from consent.chain import WIDENING, ConsentSignerError, check_speaker
from consent.speakers import Desks, Speaker, Speakers, speaker_of
from consent.succession import Said, take
from coop.canonical import Json
from coop.documents.consent import Consent, ConsentReceipt, Enrolment
from coop.documents.envelope import Opened
from coop.documents.people import PEOPLE
from coop.documents.provision import TIME_MAX
from coop.errors import CoopError
from coop.journal.trust import Trust
from coop.keys import iso
from coop.verify.bundles import (
    KINDS,
    Report,
    VerificationError,
    Work,
    facts_of,
    list_of,
    name_of,
    object_of,
    open_as,
)

_ABOUT_PEOPLE: Final[Mapping[str, type[Said]]] = {Enrolment.kind: Enrolment, **PEOPLE}
_BESIDE: Final = ("enrolment", "people", "receipt")
_AS: Final = {
    "self": "by the patient's own key",
    "custodial": "by the hospital with the key it holds for the patient",
    "demo": "by a simulated patient's key",
}


def verify_receipt(bundle: Mapping[str, Json], trust: Trust) -> Report:
    """Verify any receipt bundle: in the log, signed, and by whoever may say this."""
    work = Work(trust=trust)
    kind = str(bundle.get("kind"))
    if kind not in KINDS:
        raise VerificationError(f"kind: {kind!r} is no kind of document")
    if kind == Consent.kind:
        return verify_consent(bundle, trust)
    opened = work.logged(KINDS[kind][0], dict(bundle))
    return work.report("receipt", facts_of(opened, work))


def verify_consent(bundle: Mapping[str, Json], trust: Trust) -> Report:
    """Verify a consent: the registry's receipt, or the patient's own document.

    The patient's document may carry three more members: `enrolment` (the hospital's word that her
    key speaks for the record), `people` (receipt bundles of everything else that says who may) and
    `receipt` (the registry's receipt bundle for it). Steps: (1) what says who may speak is signed
    by whoever may say that, and stands in the log before the consent; (2) the consent is logged
    and signed by somebody who may say it; (3) the receipt names exactly this entry.
    """
    work = Work(trust=trust)
    if bundle.get("kind") == ConsentReceipt.kind:
        receipt = work.logged(ConsentReceipt, dict(bundle))
        if receipt.subject.index >= work.seen[-1].index:
            raise VerificationError("consent-receipt: logged before the consent it acknowledges")
        return work.report("consent", facts_of(receipt, work))
    plain = {name: value for name, value in bundle.items() if name not in _BESIDE}
    # (1)
    people = _people(work, bundle)
    speakers = _folded(work, people)
    # (2)
    may = set() if speakers is None else {speakers.key, *speakers.guardians}
    may |= {one.did for one in speakers.representatives} if speakers else set()
    consent = work.logged(Consent, plain, also=may)
    place = work.seen[-1]
    record = (consent.subject.pid, consent.subject.site)
    for index, opened in people:
        if (opened.subject.pid, opened.subject.site) != record:
            raise VerificationError(f"{opened.subject.kind}: for another record than the consent")
        if index >= place.index:
            raise VerificationError(f"{opened.subject.kind}: logged after the consent")
    facts = facts_of(consent, work) | _said_as(work, consent, speakers)
    # (3)
    if "receipt" in bundle:
        said = work.logged(ConsentReceipt, bundle["receipt"]).subject
        named = (said.consent_sha256, said.pid, said.event, said.index, said.salt)
        event = consent.subject
        if named != (consent.digest, event.pid, event.event, place.index, place.salt):
            raise VerificationError("consent-receipt: acknowledges another consent than this one")
        work.step("consent-receipt: names exactly this entry")
    return work.report("consent", {**facts, "index": place.index})


def _people(work: Work, bundle: Mapping[str, Json]) -> list[tuple[int, Opened[Said]]]:
    """The documents on who may speak with their log indices, in order; -1 for a bare enrolment."""
    if "enrolment" not in bundle:
        return []
    value = object_of(bundle["enrolment"], "enrolment")
    others = [object_of(one, "people") for one in list_of(bundle.get("people", []), "people")]
    if "document" not in value:
        if others:
            raise VerificationError("enrolment: beside others it needs its place in the log")
        opened = open_as(Enrolment, value, work.trust)
        work.step(f"enrolment: signed by {name_of(opened.issuer, work.trust)}")
        return [(-1, opened)]
    found = []
    for one in (value, *others):
        kind = _ABOUT_PEOPLE.get(str(one.get("kind")))
        if kind is None:
            raise VerificationError("people: holds something else")
        document = object_of(one.get("document"), "document")
        # Whether this signer may say it is decided by the fold of all.
        said: Opened[Said] = work.logged(kind, one, also={str(document.get("issuer"))})
        found.append((work.seen[-1].index, said))
    return sorted(found, key=lambda pair: pair[0])


def _folded(work: Work, people: Sequence[tuple[int, Opened[Said]]]) -> Speakers | None:
    state = None
    for _, opened in people:
        said = opened.subject
        try:
            # By its signer's own clock: when each house saw it, no file can show.
            state = take(state, opened, opened.at, _desks(work.trust, said.site))
        except CoopError as error:
            raise VerificationError(f"{said.kind}: {error.message}") from error
    return state


def _said_as(work: Work, consent: Opened[Consent], speakers: Speakers | None) -> dict[str, Json]:
    """As what the signer spoke.

    Raises:
        VerificationError: It may not say this.
    """
    event = consent.subject
    if speakers is None:  # `open_as` let the registry or the hospital restrict, and nobody else
        return {}
    desks = _desks(work.trust, event.site)
    speaker = speaker_of(speakers, consent.issuer, desks, event.representation)
    try:
        speaker = check_speaker(event, speaker)
    except ConsentSignerError as error:
        raise VerificationError(f"consent: {error.message}") from error
    spoke = {
        "representative": f"by a {_right(speakers, speaker)} for the patient",
        "guardian": "by a guardian of the patient's key",
    }.get(event.actor, _AS[speakers.custody])
    if event.actor in {"session", "registrar"}:
        spoke = f"by {name_of(consent.issuer, work.trust)} for whoever was entitled"
    work.step(f"consent: {event.event} {spoke}")
    if event.event in WIDENING and speaker.starts_at > consent.at:
        work.step(f"consent: the key was new; it counts from {iso(speaker.starts_at)}")
    if event.event in WIDENING and speaker.ends_at < TIME_MAX:
        work.step(f"consent: it ends with the representation, {iso(speaker.ends_at)}")
    return {"custody": speakers.custody, "actor": event.actor}


def _right(speakers: Speakers, speaker: Speaker) -> str:
    one = speakers.representative(speaker.representation)
    return one.role if one else "representative"


def _desks(trust: Trust, site: str) -> Desks:
    return Desks(registry=trust.hub, hospital=trust.sites.get(site))
