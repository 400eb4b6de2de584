"""Envelopes: a document opens only as what it was signed as, by whom it must be, whole."""

import pytest
from small_world import HUB, NOW, PATIENT, PID, SITES, consent, consent_receipt, enrolment

from coop.canonical import DOCUMENT_BYTES_MAX, document_digest, jcs, parse_object
from coop.documents.consent import Consent, ConsentReceipt, Enrolment
from coop.documents.envelope import WrongDocumentError, issue, open_document, unsigned
from coop.keys import BadSignatureError, sign_document


def test_a_document_opens_as_what_it_was_signed_as():
    document = consent_receipt(3)
    opened = open_document(ConsentReceipt, document, issuers={HUB.did})
    assert opened.subject.pid == PID
    assert (opened.issuer, opened.at, opened.id) == (HUB.did, NOW, document["id"])
    assert opened.digest == document_digest(document)
    assert opened.document == document


def test_a_document_never_opens_as_another_kind():
    with pytest.raises(WrongDocumentError, match="not a enrolment document"):
        open_document(Enrolment, consent_receipt(), issuers=None)


def test_the_same_members_signed_for_another_kind_do_not_open():
    bare = unsigned(
        open_document(Enrolment, enrolment(), issuers=None).subject, issuer=HUB.did, now=NOW
    )
    other = sign_document({**bare, "@context": consent()["@context"]}, HUB, created=NOW)
    with pytest.raises(WrongDocumentError):
        open_document(Enrolment, other, issuers=None)
    with pytest.raises(WrongDocumentError):
        open_document(Consent, other, issuers=None)


def test_only_a_named_issuer_may_say_it():
    document = enrolment()
    assert open_document(Enrolment, document, issuers={SITES["cleveland"].did}).subject.pid == PID
    with pytest.raises(WrongDocumentError, match="may not issue"):
        open_document(Enrolment, document, issuers={HUB.did})
    with pytest.raises(WrongDocumentError, match="may not issue"):
        open_document(Enrolment, document, issuers=[])


def test_a_changed_subject_fails_its_signature():
    document = consent_receipt()
    subject = {**document["credentialSubject"], "index": 1}
    with pytest.raises(BadSignatureError):
        open_document(ConsentReceipt, {**document, "credentialSubject": subject}, issuers=None)


@pytest.mark.parametrize(
    "name", ["@context", "type", "id", "issuer", "validFrom", "credentialSubject", "proof"]
)
def test_a_missing_or_unknown_member_is_refused(name):
    document = consent_receipt()
    less = {known: value for known, value in document.items() if known != name}
    with pytest.raises(WrongDocumentError):
        open_document(ConsentReceipt, less, issuers=None)
    with pytest.raises(WrongDocumentError):
        open_document(ConsentReceipt, {**document, "name": "x"}, issuers=None)


@pytest.mark.parametrize(
    "change", [{"pid": "short"}, {"index": "0"}, {"index": None}, {"more": 1}, {"index": True}]
)
def test_a_signed_subject_of_a_wrong_shape_is_refused_and_the_field_named(change):
    good = open_document(ConsentReceipt, consent_receipt(), issuers=None).subject
    bare = unsigned(good, issuer=HUB.did, now=NOW)
    subject = {**bare["credentialSubject"], **change}
    document = sign_document({**bare, "credentialSubject": subject}, HUB, created=NOW)
    with pytest.raises(WrongDocumentError, match=next(iter(change))):
        open_document(ConsentReceipt, document, issuers=None)


@pytest.mark.parametrize(
    "text",
    [
        "2026-09-21",
        "2026-09-21T14:13:20+01:00",
        "2026-09-21T14:13:20.5Z",
        "2026-9-21T14:13:20Z",
        "",
    ],
)
def test_a_time_has_one_form(text):
    bare = unsigned(
        open_document(ConsentReceipt, consent_receipt(), issuers=None).subject,
        issuer=HUB.did,
        now=NOW,
    )
    document = sign_document({**bare, "validFrom": text}, HUB, created=NOW)
    with pytest.raises(WrongDocumentError, match="validFrom"):
        open_document(ConsentReceipt, document, issuers=None)


def test_a_signer_elsewhere_makes_the_same_document():
    subject = open_document(Consent, consent(), issuers={PATIENT.did}).subject
    bare = unsigned(subject, issuer=PATIENT.did, now=NOW, id="urn:uuid:1")
    assert sign_document(bare, PATIENT, created=NOW) == issue(
        subject, PATIENT, NOW, id="urn:uuid:1"
    )


def test_two_documents_are_never_the_same_by_accident():
    subject = open_document(Consent, consent(), issuers=None).subject
    assert issue(subject, PATIENT, NOW)["id"] != issue(subject, PATIENT, NOW)["id"]


def test_what_no_reader_could_read_back_does_not_open():
    subject = open_document(Enrolment, enrolment(), issuers=None).subject
    longest = DOCUMENT_BYTES_MAX - len(jcs(issue(subject, SITES["cleveland"], NOW, id="")))
    fits = issue(subject, SITES["cleveland"], NOW, id="x" * (longest - 2))
    assert parse_object(jcs(open_document(Enrolment, fits, issuers=None).document))
    long = issue(subject, SITES["cleveland"], NOW, id="x" * (longest + 200))
    with pytest.raises(WrongDocumentError, match="longer"):
        open_document(Enrolment, long, issuers=None)
