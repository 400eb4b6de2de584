"""A consent chain: every widening is the patient's, every event follows the one before."""

import pytest
from budget import budget
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError

from consent.chain import (
    ConsentChainError,
    ConsentSignerError,
    apply,
    cosigners_needed,
    heads_digest,
)
from consent.decide import Request, Standing, State, decide
from consent.policy import PolicyError, preset
from consent.speakers import Desks, Speakers, speaker_of
from coop.documents.consent import Consent, Correction
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
BEGINNINGS = ("none", "revoked", "rejected", "entered-in-error")
MODEL = {
    **{(state, "propose"): "proposed" for state in BEGINNINGS},
    **{(state, "grant"): "active" for state in (*BEGINNINGS, "proposed")},
    **{
        (state, "void"): "entered-in-error"
        for state in ("proposed", "rejected", "active", "suspended", "revoked")
    },
    ("proposed", "reject"): "rejected",
    ("active", "amend"): "active",
    ("active", "suspend"): "suspended",
    ("active", "revoke"): "revoked",
    ("suspended", "resume"): "active",
    ("suspended", "revoke"): "revoked",
}


CHOICES = ("train-only", "all-research", "with-companies")
"""Each permits what the one before permits, and more."""
EVENTS = ("grant", "amend", "resume", "lift", "suspend", "revoke", "reject", "object")
OF_THE_HOSPITAL = ("propose", "void", "deceased")
TAKING = {"suspend", "revoke", "reject", "object"}
CORRECTION = Correction(reason="another patient's form", registrar="1" * 64, second="2" * 64)


QUESTION = Request(
    action="train-federated",
    purpose="DUO:0000006",
    data_class="cardiology",
    study_id="heart",
    organisation="University",
    commercial=False,
    at=1_800_000_000,
)


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
        "policy": preset("all-research") if name in {"grant", "amend", "propose"} else None,
        "correction": CORRECTION if name == "void" else None,
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
        self.state, self.index, self.given = "none", 0, -1
        self.objected, self.on_death, self.choice = False, "stop", 0
        self.dead = False

    def _next(self, name: str) -> tuple[str, bool] | None:
        """State and objection after an event, None if it cannot happen."""
        widens = name in {"grant", "amend", "resume", "lift"}
        if self.dead and (widens or name in {"deceased", "propose"}):
            return None
        if name in {"object", "lift"}:
            return (self.state, not self.objected) if self.objected == (name == "lift") else None
        if name == "deceased":
            if self.state not in {"active", "suspended"}:
                still = {"revoked": "revoked", "rejected": "rejected", "proposed": "rejected"}
                after = still.get(self.state)
                return None if after is None else (after, self.objected)
            return (self.state if self.on_death == "continue" else "revoked"), self.objected
        after = MODEL.get((self.state, name))
        return None if after is None else (after, self.objected)

    @rule(
        name=st.sampled_from([*EVENTS, *OF_THE_HOSPITAL]),
        key=st.sampled_from([PATIENT, PATIENT, HUB, SITE, SITE, STRANGER]),
        on_death=st.sampled_from(["stop", "continue", None]),
        choice=st.integers(0, len(CHOICES) - 1),
    )
    def happen(self, name: str, key: SigningKey, on_death: str | None, choice: int) -> None:
        self.index += 1
        chosen = {}
        if name in {"grant", "amend"}:
            chosen = {"on_death": on_death, "policy": preset(CHOICES[choice])}
        entitled = {
            PATIENT: name not in OF_THE_HOSPITAL,
            HUB: name in TAKING,
            SITE: name in TAKING or name in OF_THE_HOSPITAL,
            STRANGER: False,
        }[key]
        wanted = self._next(name) if entitled else None
        opened = event(name, self.standing, key, **chosen)
        try:
            after = folded(self.standing, opened, self.index)
        except CoopError:
            assert wanted is None
            return
        assert wanted is not None
        self.standing, (self.state, self.objected) = after, wanted
        if name in {"deceased", "void"}:
            self.dead = name == "deceased"
            self.on_death = "stop"  # of a standing whose death was reported, nothing is chosen
        longer = self.on_death == "stop" and on_death == "continue"
        narrower = name == "amend" and choice <= self.choice and not longer and not self.objected
        if chosen:
            self.on_death, self.choice = on_death or "stop", choice
        if name in {"grant", "amend", "resume", "lift"} and not narrower:
            self.given = self.index

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
            assert self.standing.objected == self.objected
            if self.state == "active":
                assert self.standing.widened_index == self.given
            permits = decide(self.standing, QUESTION).permits
            assert permits == (self.state == "active" and not self.objected)


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


def test_a_change_that_only_takes_away_needs_no_new_witness():
    """The grant it leaves in force was witnessed; a change that gives anything was not yet."""
    granted = folded(None, event("grant", None), 7)
    for policy, on_death, index in (
        ("train-only", None, 7),
        ("all-research", None, 7),
        ("with-companies", None, 9),
        ("train-only", "continue", 9),
    ):
        changed = event("amend", granted, policy=preset(policy), on_death=on_death)
        after = folded(granted, changed, 9)
        assert (after.widened_index, after.log_index) == (index, 9)
        assert after.policy == preset(policy)
    objected = folded(granted, event("object", granted), 8)
    hidden = folded(objected, event("amend", objected, policy=preset("train-only")), 9)
    assert hidden.widened_index == 9


def test_only_the_hospital_prepares_and_corrects_and_neither_gives_anything():
    for name in OF_THE_HOSPITAL:
        granted = None if name == "propose" else folded(None, event("grant", None))
        for key in (PATIENT, HUB, STRANGER):
            with pytest.raises(ConsentSignerError):
                folded(granted, event(name, granted, key))
    proposed = folded(None, event("propose", None, SITE))
    assert (proposed.state, decide(proposed, QUESTION).reasons) == (
        State.PROPOSED,
        ("consent.proposed",),
    )
    declined = folded(proposed, event("reject", proposed, HUB))
    assert folded(declined, event("grant", declined)).state is State.ACTIVE


def test_after_a_reported_death_nothing_is_given_until_that_is_corrected():
    for before in ("grant", "revoke", "reject"):
        standing = folded(None, event("grant", None))
        if before == "revoke":
            standing = folded(standing, event("revoke", standing))
        if before == "reject":
            standing = folded(None, event("propose", None, SITE))
        dead = folded(standing, event("deceased", standing, SITE))
        assert not decide(dead, QUESTION).permits
        for name in ("grant", "amend", "resume", "lift"):
            with pytest.raises(ConsentChainError):
                folded(dead, event(name, dead))
        corrected = folded(dead, event("void", dead, SITE))
        assert decide(folded(corrected, event("grant", corrected)), QUESTION).permits


def test_an_objection_dominates_whatever_is_allowed_beside_it():
    objected = folded(None, event("object", None, HUB), 3)
    granted = folded(objected, event("grant", objected), 5)
    assert decide(granted, QUESTION).reasons == ("consent.objected",)
    with pytest.raises(ConsentSignerError):
        folded(granted, event("lift", granted, HUB))
    lifted = folded(granted, event("lift", granted), 9)
    assert decide(lifted, QUESTION).permits
    # The witnesses must have seen the end of the objection, not only the grant.
    assert lifted.widened_index == 9


def test_what_she_chose_for_her_death_happens_and_stopping_is_the_default():
    for chosen, after in ((None, State.REVOKED), ("stop", State.REVOKED)):
        granted = folded(None, event("grant", None, on_death=chosen))
        assert folded(granted, event("deceased", granted, SITE)).state is after
    goes_on = folded(None, event("grant", None, on_death="continue"))
    assert decide(folded(goes_on, event("deceased", goes_on, SITE)), QUESTION).permits


def test_a_chain_entered_in_error_allows_nothing_and_says_why():
    granted = folded(None, event("grant", None))
    void = folded(granted, event("void", granted, SITE))
    assert (void.state, void.policy) == (State.VOID, None)
    for name, parts in (("void", {"correction": None}), ("revoke", {"correction": CORRECTION})):
        with pytest.raises(ConsentChainError):
            folded(granted, event(name, granted, SITE, **parts))
    with pytest.raises(ConsentChainError):
        folded(granted, event("revoke", granted, on_death="stop"))


def test_the_heads_digest_depends_on_every_pid_and_head_and_on_no_order():
    heads = {"b" * 26: "1" * 64, "a" * 26: "2" * 64}
    assert heads_digest(heads) == heads_digest(dict(reversed(heads.items())))
    assert heads_digest(heads) != heads_digest({"b" * 26: "1" * 64})
    assert heads_digest(heads) != heads_digest({"b" * 26: "2" * 64, "a" * 26: "1" * 64})
    assert len(heads_digest({})) == 64


def test_two_others_cosign_or_the_only_other_or_nobody():
    assert [cosigners_needed(n) for n in (0, 1, 2, 3, 4, 50)] == [0, 0, 1, 2, 2, 2]


def test_nobody_is_her_own_second_pair_of_eyes():
    with pytest.raises(ValidationError, match="somebody else"):
        Correction(reason="typed twice", registrar="1" * 64, second="1" * 64)
