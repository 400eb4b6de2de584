"""Who may speak for a record: keys with pre-rotation, recovery, people who decide for her.

The machine drives the one fold that hub, node and verifier share, with signed documents, against a
model of a few lines.
"""

from collections.abc import Mapping

import pytest
from budget import budget
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consent.speakers import Desks, Speakers, speaker_of
from consent.succession import (
    REPRESENTATIVES_MAX,
    WAIT_S,
    KeyChainError,
    SpeakerRefusedError,
    take,
)
from coop.documents.consent import Enrolment
from coop.documents.envelope import issue as sign
from coop.documents.envelope import open_document, unsigned
from coop.documents.people import Authority, KeyEvent, Representation, RepresentationEnd, committed
from coop.errors import CoopError
from coop.keys import SigningKey

PID, SITE, NOON = "a" * 26, "zurich", 1_800_000_000
HUB, HOSPITAL, STRANGER = (SigningKey.generate() for _ in range(3))
KEYS = [SigningKey.generate() for _ in range(24)]
GUARDIANS = [SigningKey.generate() for _ in range(3)]
PROXY = SigningKey.generate()
DESKS = Desks(registry=HUB.did, hospital=HOSPITAL.did)
PAPER = Authority(kind="court-order", document_sha256="0" * 64)


def fold(state: Speakers | None, subject, key: SigningKey, at: int) -> Speakers:
    """The state after this document, signed by this key and seen at this time."""
    opened = open_document(type(subject), sign(subject, key, at), issuers=None)
    return take(state, opened, at, DESKS)


def enrolment(key: SigningKey, following: SigningKey | None = None, **changes) -> Enrolment:
    said = {
        "site": SITE, "pid": PID, "key": key.did, "method": "desk", "custody": "self",
        "code_id": "zurich.1", "guardians": [one.did for one in GUARDIANS], "threshold": 2,
        "next_key_sha256": committed(following.did) if following else None,
    }  # fmt: skip
    return Enrolment(**{**said, **changes})


def event(state: Speakers, kind: str, key: SigningKey | None = None, **changes) -> KeyEvent:
    said = {
        "pid": PID, "site": SITE, "sequence": state.sequence + 1, "previous": state.head,
        "event": kind, "key": None if key is None else key.did,
    }  # fmt: skip
    return KeyEvent(**{**said, **changes})


def representation(did: str, since: int, until: int, role: str = "guardian", **changes):
    said = {"pid": PID, "site": SITE, "did": did, "role": role, "authority": PAPER,
            "valid_from": since, "valid_until": until}  # fmt: skip
    return Representation(**{**said, **changes})


def begun(following: SigningKey | None = KEYS[1]) -> Speakers:
    return fold(None, enrolment(KEYS[0], following), HOSPITAL, NOON)


def gives(state: Speakers, did: str, at: int, representation: str | None = None) -> bool:
    found = speaker_of(state, did, DESKS, representation)
    return found is not None and found.gives(at)


# -- the machine -----------------------------------------------------------------------------------


class Succession(RuleBasedStateMachine):
    """The model: which key speaks, from when it widens, whether the record is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.state = begun()
        self.at, self.used = NOON, 1
        self.key, self.next = KEYS[0], KEYS[1]
        self.widens_from, self.closed = 0, False
        self.votes: dict[str, str] = {}

    def attempt(self, subject, key: SigningKey) -> bool:
        """Whether the document counts; what does not leaves everything as it was."""
        before = self.state
        try:
            self.state = fold(before, subject, key, self.at)
        except CoopError:
            assert self.state == before
            return False
        return True

    def fresh(self) -> SigningKey:
        self.used = min(self.used + 1, len(KEYS) - 1)
        return KEYS[self.used]

    @rule(seconds=st.sampled_from([1, 3600, WAIT_S - 1, WAIT_S]))
    def time_passes(self, seconds: int) -> None:
        self.at += seconds

    @rule(signer=st.sampled_from(["next", "current", "stranger"]))
    def somebody_rotates(self, signer: str) -> None:
        key = {"next": self.next, "current": self.key, "stranger": STRANGER}[signer]
        following = self.fresh()
        said = event(self.state, "rotate", self.next, next_key_sha256=committed(following.did))
        counts = signer == "next" and not self.closed and self.next is not self.key
        assert self.attempt(said, key) is counts
        if counts:
            self.key, self.next, self.votes = self.next, following, {}

    @rule(guardian=st.integers(0, 3), which=st.integers(0, 1))
    def a_guardian_votes(self, guardian: int, which: int) -> None:
        signer = STRANGER if guardian == 3 else GUARDIANS[guardian]
        wanted, following = KEYS[-2 - which], self.next
        said = event(self.state, "recover", wanted, next_key_sha256=committed(following.did))
        counts = guardian < 3 and not self.closed and wanted is not self.key
        assert self.attempt(said, signer) is counts
        if not counts:
            return
        self.votes[signer.did] = wanted.did
        if list(self.votes.values()).count(wanted.did) >= 2:
            self.key, self.votes, self.widens_from = wanted, {}, self.at + WAIT_S

    @rule(signer=st.sampled_from(["key", "hub", "hospital", "guardian", "stranger"]))
    def somebody_closes_the_record(self, signer: str) -> None:
        key = {"key": self.key, "hub": HUB, "hospital": HOSPITAL, "guardian": GUARDIANS[0],
               "stranger": STRANGER}[signer]  # fmt: skip
        counts = signer != "stranger" and not self.closed
        assert self.attempt(event(self.state, "revoke-all"), key) is counts
        self.closed = self.closed or counts
        self.votes = {} if counts else self.votes

    @rule(signer=st.sampled_from([HOSPITAL, HUB]))
    def a_key_is_enrolled_anew(self, signer: SigningKey) -> None:
        self.at += 1
        key, following = self.fresh(), self.fresh()
        by_hospital = signer is HOSPITAL
        assert self.attempt(enrolment(key, following), signer) is by_hospital
        if by_hospital:
            self.key, self.next, self.closed, self.votes = key, following, False, {}
            self.widens_from = self.at + WAIT_S

    @invariant()
    def the_fold_says_what_the_model_says(self) -> None:
        state = self.state
        assert state.key == self.key.did
        assert state.closed is self.closed
        for at in (self.at, self.widens_from - 1, self.widens_from):
            assert gives(state, self.key.did, at) is (not self.closed and at >= self.widens_from)
        # Restricting is always open to her key, her guardians and both desks, and to no stranger.
        for key in (self.key, *GUARDIANS, HUB, HOSPITAL):
            assert speaker_of(state, key.did, DESKS) is not None
        assert speaker_of(state, STRANGER.did, DESKS) is None
        assert not any(gives(state, key.did, self.at) for key in (*GUARDIANS, HUB, HOSPITAL))
        assert Speakers.of_text(state.to_text()) == state


Succession.TestCase.settings = settings(
    max_examples=budget(15, 300), stateful_step_count=budget(15, 40), deadline=None
)
TestSuccession = Succession.TestCase


# -- keys ------------------------------------------------------------------------------------------


def test_a_stolen_key_cannot_give_the_record_another_key():
    state = begun()
    for thief in (KEYS[0], STRANGER):
        with pytest.raises(SpeakerRefusedError):
            fold(state, event(state, "rotate", STRANGER), thief, NOON)
    # What was not committed to before is refused even from its own holder.
    with pytest.raises(SpeakerRefusedError):
        fold(state, event(state, "rotate", KEYS[5]), KEYS[5], NOON)
    assert fold(state, event(state, "rotate", KEYS[1]), KEYS[1], NOON).key == KEYS[1].did
    without = begun(None)
    with pytest.raises(SpeakerRefusedError):
        fold(without, event(without, "rotate", KEYS[1]), KEYS[1], NOON)


def test_a_rotation_widens_at_once_and_a_recovery_after_seven_days_to_the_second():
    state = begun()
    rotated = fold(state, event(state, "rotate", KEYS[1]), KEYS[1], NOON)
    assert gives(rotated, KEYS[1].did, NOON)
    for guardian in GUARDIANS[:2]:
        state = fold(state, event(state, "recover", KEYS[5]), guardian, NOON)
    assert state.key == KEYS[5].did
    assert not gives(state, KEYS[5].did, NOON + WAIT_S - 1)
    assert gives(state, KEYS[5].did, NOON + WAIT_S)
    assert speaker_of(state, KEYS[5].did, DESKS) is not None  # restricting does not wait
    assert WAIT_S == 7 * 86_400


def test_one_guardian_is_not_enough_and_voting_twice_is_one_vote():
    state = begun()
    for _ in range(3):
        state = fold(state, event(state, "recover", KEYS[5]), GUARDIANS[0], NOON)
    assert state.key == KEYS[0].did
    state = fold(state, event(state, "recover", KEYS[6]), GUARDIANS[1], NOON)
    assert state.key == KEYS[0].did  # two guardians, two keys
    assert fold(state, event(state, "recover", KEYS[5]), GUARDIANS[2], NOON).key == KEYS[5].did


def test_who_is_replaced_while_the_new_key_waits_can_close_the_record():
    state = begun()
    for guardian in GUARDIANS[:2]:
        state = fold(state, event(state, "recover", KEYS[5]), guardian, NOON)
    closed = fold(state, event(state, "revoke-all"), KEYS[0], NOON + 1)
    assert closed.closed
    for key in (KEYS[0], KEYS[5]):
        assert not gives(closed, key.did, NOON + 2 * WAIT_S)
    with pytest.raises(KeyChainError):
        fold(closed, event(closed, "rotate", KEYS[6]), KEYS[6], NOON + 2)


def test_an_event_that_does_not_follow_the_newest_is_refused():
    state = begun()
    for changes in ({"sequence": 2}, {"previous": "0" * 64}):
        with pytest.raises(KeyChainError):
            fold(state, event(state, "rotate", KEYS[1], **changes), KEYS[1], NOON)


def test_an_enrolment_shown_again_brings_no_old_key_back():
    first = sign(enrolment(KEYS[0]), HOSPITAL, NOON)
    second = sign(enrolment(KEYS[5]), HOSPITAL, NOON + 1)
    state = None
    for document in (first, second, first):
        opened = open_document(Enrolment, document, issuers=None)
        state = take(state, opened, NOON + 2, DESKS)
    assert state.key == KEYS[5].did


# -- people ----------------------------------------------------------------------------------------


def named(state: Speakers, subject: Representation, key: SigningKey, at: int = NOON):
    """The state with a representative, and the digest of the representation."""
    after = fold(state, subject, key, at)
    return after, after.representatives[-1].digest


def test_a_parents_word_ends_with_the_second_of_majority():
    majority = NOON + 1000
    state, digest = named(begun(), representation(PROXY.did, NOON, majority, "parent"), HOSPITAL)
    assert gives(state, PROXY.did, majority - 1, digest)
    assert not gives(state, PROXY.did, majority, digest)
    assert not gives(state, PROXY.did, NOON - 1, digest)
    assert not gives(state, PROXY.did, NOON)  # not without saying under which right
    assert not state.speaks(PROXY.did, majority)


def test_a_hospital_names_people_with_a_paper_and_a_patient_only_a_proxy():
    state = begun()
    with pytest.raises(SpeakerRefusedError):
        fold(state, representation(PROXY.did, 0, NOON, authority=None), HOSPITAL, NOON)
    for role in ("parent", "guardian", "executor"):
        with pytest.raises(SpeakerRefusedError):
            fold(state, representation(PROXY.did, 0, NOON, role, authority=None), KEYS[0], NOON)
    for signer in (HUB, STRANGER, GUARDIANS[0]):
        with pytest.raises(SpeakerRefusedError):
            fold(state, representation(PROXY.did, 0, NOON, "proxy"), signer, NOON)
    said = representation(PROXY.did, NOON, NOON + 9, "proxy", authority=None)
    after, digest = named(state, said, KEYS[0])
    assert gives(after, PROXY.did, NOON, digest)
    own = representation(KEYS[0].did, NOON, NOON + 9, "proxy", authority=None)
    with pytest.raises(SpeakerRefusedError):
        fold(state, own, KEYS[0], NOON)


def test_an_executor_restricts_and_never_widens():
    state, digest = named(begun(), representation(PROXY.did, NOON, NOON + 99, "executor"), HOSPITAL)
    assert speaker_of(state, PROXY.did, DESKS, digest) is not None
    assert not gives(state, PROXY.did, NOON, digest)


def test_a_recovered_key_cannot_widen_through_a_proxy_before_its_seven_days():
    state = begun()
    for guardian in GUARDIANS[:2]:
        state = fold(state, event(state, "recover", KEYS[5]), guardian, NOON)
    said = representation(PROXY.did, NOON, NOON + 2 * WAIT_S, "proxy", authority=None)
    state, digest = named(state, said, KEYS[5])
    assert not gives(state, PROXY.did, NOON + WAIT_S - 1, digest)
    assert gives(state, PROXY.did, NOON + WAIT_S, digest)


def test_a_right_is_ended_by_whoever_is_entitled_and_stays_ended():
    said = representation(PROXY.did, NOON, NOON + 99)
    for signer in (KEYS[0], PROXY, HUB, HOSPITAL):
        state, digest = named(begun(), said, HOSPITAL)
        end = RepresentationEnd(pid=PID, site=SITE, representation_sha256=digest)
        with pytest.raises(SpeakerRefusedError):
            fold(state, end, STRANGER, NOON)
        ended = fold(state, end, signer, NOON)
        assert speaker_of(ended, PROXY.did, DESKS, digest) is None
        assert fold(ended, end, signer, NOON) is ended
    with pytest.raises(SpeakerRefusedError):
        fold(begun(), end, HOSPITAL, NOON)


def test_whom_a_lost_key_named_speaks_no_more_and_what_he_gave_ends():
    """A thief's proxy must not outlive the key he came with."""
    for closing in (True, False):
        state = begun()
        said = representation(PROXY.did, NOON, NOON + 10**8, "proxy", authority=None)
        state, digest = named(state, said, KEYS[0])
        assert gives(state, PROXY.did, NOON + 1, digest)
        if closing:
            state = fold(state, event(state, "revoke-all"), HOSPITAL, NOON + 2)
        state = fold(state, enrolment(KEYS[5]), HOSPITAL, NOON + 3)
        assert speaker_of(state, PROXY.did, DESKS, digest) is None
        assert state.representative(digest).ended


def test_ended_representatives_do_not_bar_the_hospitals_guardian():
    state = begun()
    for key in (SigningKey.generate() for _ in range(REPRESENTATIVES_MAX)):
        said = representation(key.did, NOON, NOON + 9, "proxy", authority=None)
        state = fold(state, said, KEYS[0], NOON)
    with pytest.raises(CoopError, match="at most"):
        fold(state, representation(PROXY.did, NOON, NOON + 9), HOSPITAL, NOON)
    for one in state.representatives:
        end = RepresentationEnd(pid=PID, site=SITE, representation_sha256=one.digest)
        state = fold(state, end, HOSPITAL, NOON + 1)
    state, digest = named(state, representation(PROXY.did, NOON, NOON + 9), HOSPITAL)
    assert gives(state, PROXY.did, NOON + 2, digest)


def test_a_custodial_key_names_nobody():
    state = fold(None, enrolment(KEYS[0], custody="custodial"), HOSPITAL, NOON)
    assert speaker_of(state, KEYS[0].did, DESKS).role == "custodian"
    said = representation(PROXY.did, NOON, NOON + 9, "proxy", authority=None)
    with pytest.raises(SpeakerRefusedError):
        fold(state, said, KEYS[0], NOON)


def test_nobody_speaks_for_a_record_without_an_enrolment_of_its_hospital():
    state = begun()
    with pytest.raises(SpeakerRefusedError):
        fold(None, event(state, "revoke-all"), HOSPITAL, NOON)
    for signer in (HUB, STRANGER, KEYS[0]):
        with pytest.raises(SpeakerRefusedError):
            fold(None, enrolment(KEYS[0]), signer, NOON)
    assert speaker_of(None, KEYS[0].did, DESKS) is None


def test_a_document_altered_after_it_was_signed_is_no_document():
    state = begun()
    subject = event(state, "rotate", KEYS[1])
    document = sign(subject, KEYS[1], NOON)
    said: Mapping = document["credentialSubject"]
    for name, value in (("pid", "b" * 26), ("site", "basel"), ("sequence", 2)):
        altered = {**document, "credentialSubject": {**said, name: value}}
        with pytest.raises(CoopError):
            open_document(KeyEvent, altered, issuers=None)
    bare = unsigned(subject, issuer=KEYS[1].did, now=NOON)
    with pytest.raises(CoopError):
        open_document(KeyEvent, bare, issuers=None)
