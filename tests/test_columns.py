"""Whole cohorts at once: for every patient, whatever is asked, exactly what `decide` says."""

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from budget import budget
from random_policies import NOON, Random, policy, random_standing, request, standing

import consent.columns
import consent.segments
from consent.columns import LATE_SHARE, Columns
from consent.decide import Effect, Request, Standing, State, decide
from consent.policy import walk
from consent.purposes import HMB, OBLIGATIONS, POA, Use
from consent.rules import ready
from coop.documents.provision import TIME_MAX, Policy, Provision

ASKED = Request(
    action=Use.TRAIN,
    purpose=HMB,
    data_class="cardiology",
    study_id="heart",
    organisation="University",
    commercial=False,
    at=NOON,
)
PERMITS = standing(Policy(provision=Provision(type="permit")))
DENIES = standing(Policy(provision=Provision(type="deny")))


def patients(random: Random, count: int, first: int = 0) -> dict[str, Standing]:
    """So many patients in no order of their pids."""
    numbers = list(range(first, first + count))
    random.shuffle(numbers)
    return {f"{number:026}": random_standing(random) for number in numbers}


def mismatch(
    columns: Columns, held: Mapping[str, Standing], asked: Iterable[Request]
) -> tuple[str, Request] | None:
    """A patient and request on which the columns say another thing than `decide`."""
    for one in asked:
        answers = columns.answers(one)
        if sorted(answers.pids) != sorted(held):
            return "", one
        for line, pid in enumerate(answers.pids):
            said = decide(held[pid], one)
            same = (
                answers.effect(line) is said.effect
                and answers.obligations(line) == said.obligations
                and answers.window(line) == said.data_window
            )
            if not same:
                return pid, one
    return None


@pytest.mark.parametrize("seed", range(budget(2, 40)))
def test_columns_say_what_the_interpreter_says(seed: int):
    random = Random(seed)
    held = patients(random, budget(500, 1_000))
    asked = [request(random) for _ in range(budget(100, 250))]
    assert not mismatch(Columns.build(held.items()), held, asked)


def test_the_random_policies_take_every_branch():
    """Equality on policies that all say no would be worth nothing."""
    random = Random(7)
    held = [random_standing(random) for _ in range(1_000)]
    asked = [request(random) for _ in range(40)]
    answers = [decide(one, question) for one in held for question in asked]
    effects = [answer.effect for answer in answers]
    for effect in Effect:
        assert effects.count(effect) > len(effects) / 250
    depths = {
        max(depth for _, depth, _ in walk(one.policy.provision)) for one in held if one.policy
    }
    assert {0, 1, 2, 3, 4} <= depths
    assert {word for answer in answers for word in answer.obligations} & set(OBLIGATIONS.values())
    assert any(answer.data_window not in {(0, 0), (0, TIME_MAX)} for answer in answers)
    assert any(one.policy and ready(one.policy) is None for one in held)
    reasons = {answer.reasons[0] for answer in answers}
    reasons |= {decide(PERMITS, request(random)).reasons[0] for _ in range(2_000)}
    assert {f"consent.{state}" for state in State} - {"consent.active"} <= reasons
    assert {
        "consent.objected", "consent.waiting", "consent.ended", "policy.malformed",
        "policy.epsilon-cap", "policy.min-cohort", "policy.not-covered", "policy.data-window",
        "request.unknown-use", "request.unknown-purpose", "request.for-people",
    } <= reasons  # fmt: skip


# -- change ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(budget(3, 30)))
def test_columns_follow_every_change(seed: int):
    """Patients come, change their minds and leave; small changes stay late, large ones merge."""
    random = Random(1_000 + seed)
    held = patients(random, 250)
    columns = Columns.build(held.items())
    merged = set()
    for step in range(budget(12, 60)):
        size = random.choice([0, 1, 1, 2, 3, 40])
        known = random.sample(sorted(held), size)
        changed: dict[str, Standing | None] = {pid: random_standing(random) for pid in known}
        changed |= {pid: None for pid in known if random.random() < 0.3}
        changed |= patients(random, size // 2, first=10_000 + 100 * step)
        for pid, now in changed.items():
            held.pop(pid, None)
            if now is not None:
                held[pid] = now
        before, columns = columns, columns.updated(changed)
        merged.add(not columns._late.pids)
        assert len(columns) == len(held)
        assert len(columns._late.pids) * LATE_SHARE <= len(columns._base.pids)
        assert not mismatch(columns, held, [request(random) for _ in range(8)])
        if size == 0:
            assert columns is before
    assert merged == {True, False}


def test_a_change_leaves_the_columns_before_it_as_they_were():
    held = {f"{number:026}": PERMITS for number in range(500)}
    before = Columns.build(held.items())
    pid = f"{7:026}"
    after = before.updated({pid: standing(PERMITS.policy, State.REVOKED)})
    gone = after.updated({pid: None})
    assert set(before.permitted(ASKED)) == set(held)
    assert set(after.permitted(ASKED)) == set(held) - {pid}
    assert len(before) == len(after) == 500
    assert len(gone) == 499
    assert pid not in gone.answers(ASKED).pids


def test_who_leaves_and_comes_back_is_there_once():
    pids = [f"{number:026}" for number in range(500)]
    columns = Columns.build((pid, DENIES) for pid in pids)
    for now in (PERMITS, None, PERMITS, DENIES, PERMITS):
        columns = columns.updated({pids[3]: now})
    assert columns.permitted(ASKED) == [pids[3]]
    assert len(columns) == 500


def test_nobody_is_an_answer_too():
    empty = Columns.build(())
    assert empty.permitted(ASKED) == []
    assert len(empty) == 0
    one = empty.updated({"a" * 26: PERMITS})
    assert one.permitted(ASKED) == ["a" * 26]
    assert one.updated({"a" * 26: None}).permitted(ASKED) == []


def test_heads_that_nobody_uses_any_more_are_forgotten():
    """A registry that runs for years must not keep every word that anybody ever chose."""
    random = Random(5)
    columns = Columns.build(patients(random, 200).items())
    for _ in range(10):
        columns = columns.updated(dict.fromkeys((f"{n:026}" for n in range(200)), PERMITS))
    assert len(columns._heads) == 2
    assert columns.rows == 200


# -- what no machine can obey ----------------------------------------------------------------------


def test_a_policy_no_machine_can_obey_is_denied_like_one_by_one():
    deep = Provision(type="permit")
    for _ in range(9):
        deep = Provision(type="permit", children=[deep])
    odd = [
        Policy(provision=Provision(type="permit", actions=["sell"])),
        Policy(provision=Provision(type="permit", purposes=["DUO:0000018"])),
        Policy(provision=Provision(type="permit", start=5, end=5)),
        Policy(provision=deep),
        Policy.model_construct(
            provision=Provision(type="permit", actors=[""]), epsilon_cap_micro=None, min_cohort=None
        ),
    ]
    held = {f"{number:026}": standing(made) for number, made in enumerate(odd)}
    columns = Columns.build(held.items())
    assert columns.permitted(ASKED) == []
    assert not mismatch(columns, held, [ASKED, replace(ASKED, action="sell")])


def test_time_is_half_open_on_every_level():
    inner = Provision(type="permit", start=NOON, end=NOON + 10)
    outer = Policy(provision=Provision(type="deny", start=NOON - 5, end=NOON + 5, children=[inner]))
    held = {"a" * 26: standing(outer), "b" * 26: replace(PERMITS, starts_at=NOON, ends_at=NOON + 5)}
    columns = Columns.build(held.items())
    for at in range(NOON - 7, NOON + 13):
        permitted = columns.permitted(replace(ASKED, at=at))
        assert permitted == (sorted(held) if NOON <= at < NOON + 5 else []), at
        assert not mismatch(columns, held, [replace(ASKED, at=at)])


def test_of_several_purposes_duties_add_up_and_data_windows_intersect():
    health = Provision(type="permit", purposes=[HMB, "DUO:0000019"], data_start=100, data_end=300)
    origins = Provision(type="permit", purposes=[POA, "DUO:0000029"], data_start=200, data_end=400)
    held = {
        "a" * 26: standing(Policy(provision=Provision(type="deny", children=[health, origins])))
    }
    asked = replace(ASKED, further=(POA,), data_start=200, data_end=300)
    columns = Columns.build(held.items())
    answers = columns.answers(asked)
    assert (answers.effect(0), answers.window(0)) == (Effect.PERMIT, (200, 300))
    assert answers.obligations(0) == ("publish", "return-results")
    wider = [replace(asked, data_start=199), replace(asked, data_end=301)]
    assert [columns.permitted(one) for one in wider] == [[], []]
    assert not mismatch(columns, held, [asked, *wider])


# -- would these tests notice? ---------------------------------------------------------------------

WRONG = {
    "a deny is outvoted by its sibling": (
        "columns", "effects[judged] = np.maximum(effects[judged], severity)", "pass"),
    "a silent parent is not silent": (
        "columns", "np.where(excepted[rows], asked.beside[heads], said)", "said"),
    "an exception applies without its parent": (
        "columns", "hit &= applies[-1][level.parent]", "pass"),
    "an end includes its instant": ("columns", "level.end > request.at", "level.end >= request.at"),
    "a start excludes its instant": (
        "columns", "level.start <= request.at", "level.start < request.at"),
    "data windows do not count": ("columns", "closed] = DENY", "closed] = PERMIT"),
    "data windows do not intersect": (
        "columns", "np.maximum.at(opens, whose", "np.minimum.at(opens, whose"),
    "one purpose is enough": (
        "columns", "for one in asked)), request)", "for one in asked[:1])), request)"),
    "her own limits do not count": ("columns", "~applies[0] | ~asked.kept[segment.limits]",
        "~applies[0]"),
    "what no rule speaks of is permitted": (
        "columns", "~applies[0] | ~asked.kept", "~asked.kept"),
    "duties of a parent are forgotten": ("columns", "!= 0]] |= bit", "!= 0]] = bit"),
    "an objection does not count": ("segments", " and not standing.objected", ""),
    "a state does not count": ("segments", "standing.state is State.ACTIVE and ", ""),
    "a word that waits counts at once": ("segments", "max(rule.start, counts[0])", "rule.start"),
    "a word that is over counts on": ("segments", "min(rule.end, counts[1])", "rule.end"),
    "a parent is the row before it": (
        "segments", "place = len(rows[depth][0])", "place = max(len(rows[depth][0]) - 1, 0)"),
    "sorting forgets the parents": (
        "segments", "replace(below[0], parent=place[below[0].parent])", "below[0]"),
}  # fmt: skip
WRONG_CHANGES = {
    "the old policy speaks on": ("segments", "live[lines] = False", "pass"),
    "late patients are dropped": (
        "columns", "joined(only_live(without(self._late, changed)), fresh)", "fresh"),
    "joined rows keep their old parents": ("segments", "second.parent + np.int32(above)",
        "second.parent"),
    "merging keeps the dead": ("columns", "joined(only_live(base), late)", "joined(base, late)"),
    "compacting mixes the heads": (
        "segments", "np.arange(len(used), dtype=np.int32)", "np.arange(len(used), 0, -1)"),
}  # fmt: skip
SOURCES = {"columns": consent.columns, "segments": consent.segments}


@pytest.fixture
def mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes `Columns` from the sources with one place wrong."""

    def load(name: str, old: str, new: str) -> ModuleType:
        source = Path(SOURCES[name].__file__ or "").read_text()
        assert source.count(old) == 1, f"{name}: {old!r} is not there once"
        path = tmp_path / f"{name}.py"
        path.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location(f"wrong_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    def wrong(name: str, old: str, new: str) -> type[Columns]:
        module = load(name, old, new)
        if name == "segments":
            monkeypatch.setitem(sys.modules, "consent.segments", module)
            module = load("columns", "LATE_SHARE: Final = 100", "LATE_SHARE: Final = 100 + 0")
        return module.Columns

    return wrong


@pytest.fixture(scope="module")
def some() -> tuple[dict[str, Standing], list[Request]]:
    random = Random(3)
    return patients(random, 300), [request(random) for _ in range(60)]


@pytest.mark.parametrize("place", WRONG.values(), ids=WRONG)
def test_columns_that_are_wrong_in_one_place_are_caught(mutant, some, place):
    held, asked = some
    wrong = mutant(*place)
    try:
        assert mismatch(wrong.build(held.items()), held, asked)
    except IndexError:
        return  # a row that does not exist


@pytest.mark.parametrize("place", WRONG_CHANGES.values(), ids=WRONG_CHANGES)
def test_changes_that_are_wrong_in_one_place_are_caught(mutant, some, place):
    random = Random(4)
    held = dict(some[0])
    columns = mutant(*place).build(held.items())
    often = sorted(held)[:70]
    for size in (1, 2, 50, 2, 50):
        changed = {pid: random_standing(random) for pid in random.sample(often, size)}
        held |= changed
        columns = columns.updated(changed)
        try:
            if mismatch(columns, held, some[1][:12]):
                return
        except IndexError:
            return
    pytest.fail("not caught")


def test_the_mutants_are_made_of_the_sources_that_are_shipped(mutant, some):
    """With nothing wrong, the same machinery finds nothing."""
    held, asked = some
    same = mutant("columns", "LATE_SHARE: Final = 100", "LATE_SHARE: Final = 100 + 0")
    assert same is not Columns
    assert not mismatch(same.build(held.items()), held, asked)


def test_memory_grows_with_rows_and_not_with_policies():
    """A million patients fit: 12 bytes of codes and 16 of time a row, whoever chose what."""
    random = Random(9)
    few = Columns.build((f"{n:026}", standing(policy(random, 2))) for n in range(300))
    assert few.nbytes <= few.rows * (2 * 4 + 4 * 8) + 300 * (1 + 4)
    assert few.answers(ASKED).effects.dtype == np.uint8
