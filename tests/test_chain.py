"""A consent chain: every widening is the patient's, every event follows the one before."""

import pytest
from budget import budget
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consent.chain import (
    ConsentChainError,
    ConsentSignerError,
    apply,
    cosigners_needed,
    heads_digest,
)
from consent.decide import Standing, State
from consent.policy import PolicyError, preset
from consent.speakers import Desks, Speakers, speaker_of
from coop.documents.consent import Consent
from coop.documents.envelope import Opened, issue, open_document
from coop.documents.provision import Policy, Provision
from coop.errors import CoopError
from coop.keys import SigningKey

PATIENT, HUB, SITE, STRANGER = (SigningKey(bytes([n]) * 32) for n in range(1, 5))
PID = "a" * 26
DESKS = Desks(registry=HUB.did, hospital=SITE.did)
OWN_KEY = Speakers(
    key=PATIENT.did,
    custody="self",
    since=0,
    head="0" * 64,
    enrolled_at=0,
    enrolments=("0" * 64,),
)
ACTORS = {
    PATIENT.did: "patient",
    HUB.did: "session",
    SITE.did: "registrar",
    STRANGER.did: "patient",
}
MODEL = {
    ("none", "grant"): "active",
    ("revoked", "grant"): "active",
    ("active", "amend"): "active",
    ("active", "suspend"): "suspended",
    ("active", "revoke"): "revoked",
    ("suspended", "resume"): "active",
    ("suspended", "revoke"): "revoked",
}


def event(
    name: str, standing: Standing | None, key: SigningKey = PATIENT, **changes: object
) -> Opened[Consent]:
    subject = {
        "pid": PID,
        "site": "zurich",
        "domain": "research",
        "sequence": standing.sequence + 1 if standing else 1,
        "previous": standing.head_digest if standing else None,
        "event": name,
        "policy": preset("all-research") if name in {"grant", "amend"} else None,
        "actor": ACTORS[key.did],
    } | changes
    return open_document(Consent, issue(Consent(**subject), key, 1_800_000_000), issuers=None)


def folded(standing: Standing | None, opened: Opened[Consent], index: int = 0) -> Standing:
    speaker = speaker_of(OWN_KEY, opened.issuer, DESKS, opened.subject.representation)
    return apply(standing, opened, speaker=speaker, log_index=index)


class ConsentChain(RuleBasedStateMachine):
    """Any event by anybody at any time, against a model of seven lines."""

    def __init__(self) -> None:
        super().__init__()
        self.standing: Standing | None = None
        self.state, self.index, self.widened = "none", 0, -1

    @rule(
        name=st.sampled_from(["grant", "amend", "revoke", "suspend", "resume"]),
        key=st.sampled_from([PATIENT, PATIENT, HUB, SITE, STRANGER]),
    )
    def happen(self, name: str, key: SigningKey) -> None:
        self.index += 1
        restricts = name in {"revoke", "suspend"} and key in (HUB, SITE)
        allowed = (key is PATIENT or restricts) and (self.state, name) in MODEL
        opened = event(name, self.standing, key)
        try:
            after = folded(self.standing, opened, self.index)
        except CoopError:
            assert not allowed
            return
        assert allowed
        self.standing, self.state = after, MODEL[self.state, name]
        if not restricts and name in {"grant", "amend", "resume"}:
            self.widened = self.index

    @rule(name=st.sampled_from(["grant", "revoke"]), shift=st.sampled_from([-1, 1, 5]))
    def out_of_order(self, name: str, shift: int) -> None:
        sequence = (self.standing.sequence if self.standing else 0) + 1 + shift
        if sequence < 1:
            return
        with pytest.raises(ConsentChainError):
            folded(self.standing, event(name, self.standing, sequence=sequence))

    @rule()
    def beside_the_chain(self) -> None:
        with pytest.raises(ConsentChainError):
            folded(self.standing, event("grant", self.standing, previous="f" * 64))

    @invariant()
    def agrees(self) -> None:
        if self.standing is not None:
            assert self.standing.state == self.state
            assert self.standing.widened_index == self.widened


TestConsentChain = ConsentChain.TestCase
TestConsentChain.settings = settings(
    max_examples=budget(25, 500), stateful_step_count=budget(12, 40), deadline=None
)


def test_nobody_but_the_patient_widens():
    for key in (HUB, SITE, STRANGER):
        for actor in ("patient", "session", "registrar"):
            with pytest.raises(ConsentSignerError):
                folded(None, event("grant", None, key, actor=actor))


def test_the_patient_signs_as_herself_and_nobody_else_does():
    granted = folded(None, event("grant", None))
    with pytest.raises(ConsentSignerError):
        folded(granted, event("revoke", granted, actor="session"))
    with pytest.raises(ConsentSignerError):
        folded(granted, event("revoke", granted, HUB, actor="patient"))
    assert folded(granted, event("revoke", granted, HUB, actor="registrar")).state is State.REVOKED


def test_a_policy_stands_exactly_where_it_must():
    granted = folded(None, event("grant", None))
    with pytest.raises(ConsentChainError):
        folded(None, event("grant", None, policy=None))
    with pytest.raises(ConsentChainError):
        folded(granted, event("suspend", granted, policy=preset("refuse")))
    malformed = Policy(provision=Provision(type="permit", purposes=["x"]))
    with pytest.raises(PolicyError):
        folded(None, event("grant", None, policy=malformed))


def test_a_restriction_keeps_the_policy_and_where_it_was_given():
    granted = folded(None, event("grant", None), 7)
    paused = folded(granted, event("suspend", granted, SITE), 9)
    assert (paused.policy, paused.widened_index, paused.log_index) == (granted.policy, 7, 9)
    assert folded(paused, event("resume", paused), 11).widened_index == 11


def test_the_heads_digest_depends_on_every_pid_and_head_and_on_no_order():
    heads = {"b" * 26: "1" * 64, "a" * 26: "2" * 64}
    assert heads_digest(heads) == heads_digest(dict(reversed(heads.items())))
    assert heads_digest(heads) != heads_digest({"b" * 26: "1" * 64})
    assert heads_digest(heads) != heads_digest({"b" * 26: "2" * 64, "a" * 26: "1" * 64})
    assert len(heads_digest({})) == 64


def test_two_others_cosign_or_the_only_other_or_nobody():
    assert [cosigners_needed(n) for n in (0, 1, 2, 3, 4, 50)] == [0, 0, 1, 2, 2, 2]
