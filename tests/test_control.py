"""A hospital's own limits: hours, caps and four eyes hold, and what cannot be meant is refused."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from coop_world import now, world
from hypothesis import given
from hypothesis import strategies as st

from coop.keys import SigningKey
from federated.approval import approved_studies
from federated.control import (
    Control,
    OutsideHoursError,
    SecondApproverError,
    UnknownApproverError,
    WrongControlError,
    control_of,
    facts,
    read_control,
    refuse_outside_hours,
    save,
    set_hours,
)
from federated.node import Node


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("control")) as made:
        yield made


@pytest.fixture(autouse=True)
def unlimited(coop):
    yield
    save(coop.site, Control())


def at(text: str) -> int:
    """UTC seconds of `2026-11-25 23:00`, a Wednesday."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


# -- hours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "zone", "moment", "is_open"),
    [
        ((), "UTC", "2026-11-25 12:00", True),
        (("20:00-06:00",), "UTC", "2026-11-25 20:00", True),
        (("20:00-06:00",), "UTC", "2026-11-26 05:59", True),
        (("20:00-06:00",), "UTC", "2026-11-26 06:00", False),
        (("20:00-06:00",), "UTC", "2026-11-25 19:59", False),
        (("mon-fri 20:00-06:00",), "UTC", "2026-11-28 05:00", True),  # Friday's night
        (("mon-fri 20:00-06:00",), "UTC", "2026-11-28 21:00", False),  # Saturday
        (("sun 22:00-04:00",), "UTC", "2026-11-30 03:00", True),  # over the end of the week
        (("sat-sun 00:00-24:00",), "UTC", "2026-11-29 23:59", True),
        (("fri-mon 09:00-17:00",), "UTC", "2026-11-30 10:00", True),
        (("fri-mon 09:00-17:00",), "UTC", "2026-12-01 10:00", False),
        (("20:00-06:00",), "Europe/Zurich", "2026-11-25 19:00", True),  # 20:00 there
        (("20:00-06:00",), "Europe/Zurich", "2026-07-01 18:00", True),  # and in summer time
        (("20:00-06:00",), "Europe/Zurich", "2026-07-01 17:59", False),
        (("08:00-09:00", "wed 12:00-13:00"), "UTC", "2026-11-25 12:30", True),
    ],
)
def test_it_trains_in_its_hours_and_at_no_others(hours, zone, moment, is_open):
    assert Control(hours=hours, zone=zone).open_at(at(moment)) is is_open


@given(st.integers(0, 167), st.integers(1, 23), st.integers(0, 10**6))
def test_the_next_opening_is_open_and_nothing_before_it_is(start, length, minutes):
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    day, hour = divmod(start, 24)
    until = (hour + length) % 24 or 24
    control = Control(hours=(f"{days[day]} {hour:02}:00-{until:02}:00",))
    moment = at("2026-01-01 00:00") + 60 * minutes
    opens = control.opens(moment)
    assert opens is not None
    assert control.open_at(opens)
    assert not any(control.open_at(t) for t in range(moment, opens, 900))
    assert opens - moment <= 7 * 86_400


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours": ["nights"]},
        {"hours": ["25:00-26:00"]},
        {"hours": ["24:30-06:00"]},
        {"hours": ["10:00-10:00"]},
        {"hours": ["mond 10:00-11:00"]},
        {"hours": ["mon-xyz 10:00-11:00"]},
        {"zone": "Zurich/Europe"},
        {"zone": "../../etc/passwd"},
        {"cpus": 0},
        {"memory_mib": 10},
        {"nice": 20},
        {"approvers": {"a": "did:key:z1"}},
        {"approvers": {"a": "did:key:z1", "b": "did:key:z1"}},
        {"unknown": 1},
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_by_name_and_the_old_one_stays(coop, wrong):
    set_hours(coop.site, ["08:00-09:00"], "UTC")
    with pytest.raises(WrongControlError, match=next(iter(wrong))):
        read_control({**Control().model_dump(mode="json"), **wrong})
    with coop.site.database.reading() as connection:
        assert control_of(connection).hours == ("08:00-09:00",)


def test_outside_its_hours_the_node_refuses_rounds_before_anything_is_read(coop):
    run = coop.ready("nightly")
    node = Node(coop.site)
    hour = (datetime.fromtimestamp(now(), UTC).hour + 12) % 24
    set_hours(coop.site, [f"{hour:02}:00-{(hour + 1) % 24 or 24:02}:00"], "UTC")
    with pytest.raises(OutsideHoursError):
        node.answer(run.input())
    said = facts(coop.site, now())
    assert not said["open"]
    assert 10 * 3600 < said["opens"] - now() < 14 * 3600
    with coop.site.database.reading() as connection:
        assert not connection.exec_driver_sql("SELECT 1 FROM debit").first()
    set_hours(coop.site, [], "UTC")
    refuse_outside_hours(coop.site, now())
    node.answer(run.input())
    node.client.close()


# -- caps ------------------------------------------------------------------------------------------

CAPPED = """
import os
from federated.control import Control, cap_process
cap_process(Control(cpus=1, memory_mib=500, nice=7))
try:
    bytearray(600 * 2**20)
    memory = "no limit"
except MemoryError:
    memory = "held"
held = bytearray(200 * 2**20)
cap_process(Control(nice=7))
print(len(os.sched_getaffinity(0)), memory, os.nice(0))
"""


def test_a_capped_process_stays_within_its_processors_memory_and_priority():
    done = subprocess.run(
        [sys.executable, "-c", CAPPED], capture_output=True, text=True, check=True
    )
    cpus, *memory, nice = done.stdout.split()
    assert (cpus, memory) == ("1", ["held"])
    assert int(nice) >= 7


# -- four eyes -------------------------------------------------------------------------------------


@pytest.fixture
def approvers(coop):
    keys = {name: SigningKey.generate() for name in ("ito", "meier", "okafor")}
    named = {name: key.did for name, key in keys.items()}
    save(coop.site, read_control({**Control().model_dump(mode="json"), "approvers": named}))
    return keys


def ours(coop, study):
    with coop.site.database.reading() as connection:
        return [e for e in approved_studies(connection) if e["study_id"] == study.study_id]


def test_one_approver_signs_nothing_and_the_second_signs_once(coop, approvers):
    study, _ = coop.study("four-eyes")
    for _ in range(2):
        with pytest.raises(SecondApproverError):
            coop.approve(study, by=approvers["ito"])
    assert ours(coop, study) == []
    signed = coop.approve(study, by=approvers["meier"])
    assert signed["issuer"] == coop.site.key.did
    assert len(ours(coop, study)) == 1


def test_nobody_else_and_no_nobody_can_be_the_second(coop, approvers):
    study, _ = coop.study("strangers")
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["ito"])
    for stranger in (None, SigningKey.generate(), coop.site.key):
        with pytest.raises(UnknownApproverError, match="ito, meier, okafor"):
            coop.approve(study, by=stranger)
    assert ours(coop, study) == []


def test_two_who_mean_different_caps_have_not_agreed(coop, approvers):
    study, _ = coop.study("two-caps")
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["ito"], epsilon_cap="3")
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["meier"], epsilon_cap="2")
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["okafor"], epsilon_cap="2.5")
    coop.approve(study, by=approvers["ito"], epsilon_cap="2")  # she changed her mind: two agree
    assert [e["epsilon_cap_micro"] for e in ours(coop, study)] == [2_000_000]


def test_a_yes_of_last_week_or_of_somebody_who_left_does_not_count(coop, approvers, monkeypatch):
    from federated import control

    study, _ = coop.study("stale-yes")
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["ito"])
    monkeypatch.setattr(control, "_VOTE_S", 0)
    with pytest.raises(SecondApproverError):
        coop.approve(study, by=approvers["meier"])
    monkeypatch.undo()
    left = {name: key.did for name, key in approvers.items() if name != "ito"}
    save(coop.site, read_control({**Control().model_dump(mode="json"), "approvers": left}))
    with pytest.raises(UnknownApproverError):
        coop.approve(study, by=approvers["ito"])
    coop.approve(study, by=approvers["okafor"])  # with Meier's yes, which is fresh
    assert len(ours(coop, study)) == 1


def test_without_approvers_one_is_enough(coop):
    study, _ = coop.study("one-is-enough")
    coop.approve(study)
    assert len(ours(coop, study)) == 1
