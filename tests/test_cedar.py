"""A foreign judge: Cedar, given the same policies in its own language, permits what `decide` does.

The translation (`cedar_policies`) is written from what a provision means, not from `consent.rules`.
Cedar knows two answers, so an abstention is one more way not to permit.
"""

import cedarpy
import pytest
from budget import budget
from cedar_policies import GRAPH, cedar_of, graph, questions_of, uid
from random_policies import Random, random_standing, request

from consent import decide as gate
from consent import rules
from consent.decide import Request, Standing, decide
from consent.mondo import DISEASES
from consent.purposes import DS, METHODS, is_disease

PATIENTS, QUESTIONS = budget(200, 200), budget(500, 1000)


def disagreement(
    standing: Standing, asked: list[Request], purposes: cedarpy.Entities
) -> tuple[Request | None, int, int]:
    """A request on which Cedar and `decide` differ; how many Cedar was asked, and permitted."""
    said = cedar_of(standing)
    policies = cedarpy.PolicySet.from_str(said or "")
    every = [(one, questions_of(standing, one) if said is not None else None) for one in asked]
    answers = iter(
        cedarpy.is_authorized_batch(
            [question for _, some in every for question in some or ()], policies, purposes
        )
    )
    judged = permitted = 0
    for one, some in every:
        allowed = [next(answers) for _ in some or ()]
        assert not any(answer.diagnostics.errors for answer in allowed)
        permits = bool(allowed) and all(answer.allowed for answer in allowed)
        judged, permitted = judged + bool(allowed), permitted + permits
        if decide(standing, one).permits is not permits:
            return one, judged, permitted
    return None, judged, permitted


# -- the promise -----------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(budget(1, 20)))
def test_cedar_permits_what_the_interpreter_permits(seed: int):
    random, purposes = Random(seed), graph()
    judged = permitted = 0
    for _ in range(PATIENTS):
        standing = random_standing(random)
        asked = [request(random) for _ in range(QUESTIONS)]
        wrong, questions, yes = disagreement(standing, asked, purposes)
        assert wrong is None, (standing.policy, wrong)
        judged, permitted = judged + questions, permitted + yes
    assert judged > PATIENTS * QUESTIONS * 0.8
    assert judged / 20 < permitted < judged / 2


def test_the_graph_cedar_climbs_is_the_one_the_closure_knows():
    """Otherwise both could be equal on the few purposes that random requests name, and wrong."""
    policies = cedarpy.PolicySet.from_str(
        "permit(principal, action, resource) when { resource in context.of };"
    )
    listed = [*(code for code in GRAPH if code != METHODS), *DISEASES][:120]
    pairs = [(asked, allowed) for asked in listed for allowed in listed]
    questions = [
        {
            "principal": uid("Asker", "anyone"),
            "action": uid("Action", "any"),
            "resource": uid("Purpose", asked),
            "context": {"of": {"__entity": uid("Purpose", allowed)}},
        }
        for asked, allowed in pairs
    ]
    answers = cedarpy.is_authorized_batch(questions, policies, graph(*listed))
    for (asked, allowed), answer in zip(pairs, answers, strict=True):
        covering = rules.covering(DS, asked) if is_disease(asked) else rules.covering(asked, None)
        assert answer.allowed is (allowed in covering), (asked, allowed)


# -- would it notice? ------------------------------------------------------------------------------


_matches = rules.Head.matches


def _everything_else_the_same(rule, asked, at, *, silent=True, binds=True):
    """`consent.decide._answer`, with two of its rules open to be broken."""
    worst = None
    for child in rule.children:
        if child.start <= at < child.end and child.head.matches(asked):
            said = _everything_else_the_same(child, asked, at, silent=silent, binds=binds)
            worst = said if worst is None else gate._both(worst, said)
    if worst is not None and ((rule.head.denies and silent) or not (rule.head.denies or binds)):
        return worst
    own = rule.head.alone(asked) if worst is None or rule.head.denies else rule.head.beside(asked)
    said = (own, rule.path, rule.obligations, rule.data_start, rule.data_end)
    return said if worst is None else gate._both(worst, said)


WRONG = {
    "an exception never silences its denial": (
        gate, "_answer", lambda *a: _everything_else_the_same(*a, silent=False)),
    "a permit does not bind its exceptions": (
        gate, "_answer", lambda *a: _everything_else_the_same(*a, binds=False)),
    "the last answer holds": (gate, "_both", lambda _first, second: second),
    "her limits do not count": (gate, "beyond", lambda *_: None),
    "companies pass for anybody": (
        rules.Head, "matches", lambda self, asked: _matches(
            self, asked._replace(who=asked.who - {"commercial"}))),
    "denials look only up": (
        rules.Head, "matches",
        lambda self, asked: (not self.actions or asked.action in self.actions)
        and (not self.permissions or not self.permissions.isdisjoint(asked.covering))
        and (not self.classes or asked.data_class in self.classes)
        and (not self.actors or not self.actors.isdisjoint(asked.who))),
}  # fmt: skip


@pytest.mark.parametrize("place", WRONG.values(), ids=WRONG)
def test_an_interpreter_that_is_wrong_in_one_rule_is_caught(monkeypatch, place):
    monkeypatch.setattr(*place)
    random, purposes = Random(1), graph()
    for _ in range(400):
        asked = [request(random) for _ in range(40)]
        if disagreement(random_standing(random), asked, purposes)[0] is not None:
            return
    pytest.fail("not caught")


def test_the_rules_left_alone_agree(monkeypatch):
    """The mutants above fail by what is broken in them, not by how they are made."""
    monkeypatch.setattr(gate, "_answer", _everything_else_the_same)
    random, purposes = Random(1), graph()
    for _ in range(20):
        asked = [request(random) for _ in range(40)]
        assert disagreement(random_standing(random), asked, purposes)[0] is None
