"""What a patient reads of her key and her people is what the registry says, in plain words."""

import pytest

from coop.keys import SigningKey
from ui import keys_view, wording
from ui.keys_view import KeyCard, replaced_line

NOW = 1_795_000_000
NO_END = 2**53 - 1
ED25519 = SigningKey(bytes(32)).did
PASSKEY = "did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169"
PERSON = {
    "digest": "a" * 64,
    "did": ED25519,
    "role": "proxy",
    "named_by": "patient",
    "valid_from": 1_790_000_000,
    "valid_until": 1_800_000_000,
    "ended_at": None,
    "in_force": True,
}


def record(**changes):
    plain = {
        "pid": "p" * 26,
        "site": "zurich",
        "key": {"did": ED25519, "custody": "self", "since": 1_790_000_000},
        "closed": False,
        "waits_until": None,
        "sequence": 1,
        "head_sha256": "0" * 64,
        "next_key_committed": True,
        "guardians": [],
        "threshold": 0,
        "votes": [],
        "representatives": [],
    }
    return plain | changes


def key_card(said, consent=None) -> KeyCard:
    return keys_view.key_card(said, consent or {}, NOW)


@pytest.mark.parametrize(
    ("did", "custody", "kind"),
    [
        (ED25519, "self", "self"),
        (PASSKEY, "self", "passkey"),
        (ED25519, "custodial", "custodial"),
        (ED25519, "demo", "demo"),
    ],
)
def test_the_sort_of_key_is_told_and_a_hospitals_key_is_never_called_hers(did, custody, kind):
    key = {"did": did, "custody": custody, "since": 1_790_000_000}
    card = key_card(record(key=key))
    assert card.kind == wording.KEY_KINDS[kind]
    assert ("Your hospital holds" in card.kind) is (custody == "custodial")
    assert card.did == did


def test_a_key_that_is_closed_waits_or_is_being_replaced_warns():
    assert key_card(record()).warnings == []
    closed = key_card(record(closed=True))
    assert closed.warnings == [wording.KEY_CLOSED]
    assert not closed.may_close
    waiting = key_card(record(waits_until=1_800_000_000)).warnings[0]
    assert "2027-01-15" in waiting
    assert "stop everything now" in waiting
    # A closed key never allows anything again, whatever it was waiting for.
    both = key_card(record(closed=True, waits_until=1_800_000_000))
    assert both.warnings == [wording.KEY_CLOSED]
    assert not both.is_new
    votes = [{"guardian": ED25519, "key": PASSKEY}]
    assert "1 of them" in key_card(record(votes=votes)).warnings[0]


def test_the_ways_to_a_new_key_are_those_there_are():
    assert wording.KEY_NEXT in key_card(record()).lines
    assert wording.KEY_NO_NEXT in key_card(record(next_key_committed=False)).lines
    assert wording.KEY_NO_GUARDIANS in key_card(record()).lines
    named = key_card(record(guardians=[ED25519, PASSKEY], threshold=2)).lines
    assert any(line.startswith("2 of 2 people") for line in named)
    held = {"did": ED25519, "custody": "custodial", "since": 1_790_000_000}
    assert len(key_card(record(key=held)).lines) == 1


@pytest.mark.parametrize(
    ("changes", "says", "may_end"),
    [
        ({}, "may decide until 2027-01-15", True),
        ({"valid_until": NO_END}, "may decide with no last day", True),
        ({"role": "executor"}, "may stop everything until 2027-01-15", True),
        (
            {"in_force": False, "valid_from": 1_796_000_000},
            "may decide from 2026-11-30",
            True,
        ),
        ({"in_force": False, "valid_until": NOW}, "ran out on 2026-11-18", False),
        ({"ended_at": NOW, "in_force": False}, "ended on 2026-11-18", False),
    ],
)
def test_every_person_is_shown_with_until_when_and_can_be_ended_once(changes, says, may_end):
    (person,) = key_card(record(representatives=[PERSON | changes])).people
    assert says in person.detail
    assert ED25519 in person.detail
    assert person.may_end is may_end
    assert person.title.endswith(", named by you")


def test_a_role_of_a_newer_hub_is_shown_as_it_is_and_not_hidden():
    (person,) = key_card(record(representatives=[PERSON | {"role": "judge"}])).people
    assert person.title.startswith("judge")


def test_the_holder_of_an_earlier_key_reads_where_and_since_when():
    line = replaced_line(record())
    assert "zurich" in line
    assert "2026-09-21" in line


def test_what_was_allowed_and_does_not_count_yet_is_told_with_its_day_and_can_be_stopped():
    assert not key_card(record(), {"state": "active", "starts_at": 0}).pending
    waiting = key_card(record(), {"state": "waiting", "starts_at": 1_800_000_000})
    assert "takes effect on 2027-01-15" in waiting.pending
    assert waiting.may_stop_pending
    never = key_card(record(closed=True), {"state": "waiting", "starts_at": NO_END})
    assert never.pending == wording.PENDING_NEVER
    assert not never.may_stop_pending


@pytest.mark.parametrize("choice", ["stop", "continue", "dead"])
def test_what_happens_once_she_has_died_is_told_as_it_stands(choice):
    assert wording.ON_DEATH[choice] in key_card(record(), {"on_death": choice}).lines


def test_a_new_key_opens_the_way_to_object_and_key_files_have_their_commands():
    plain, new = key_card(record()), key_card(record(waits_until=1_800_000_000))
    assert (plain.close_title, plain.is_new) == (wording.CLOSE_TITLE, False)
    assert (new.close_title, new.is_new) == (wording.OBJECT_KEY_TITLE, True)
    assert plain.has_commands
    for name in ("keys", "rotate", "recover", "close"):
        assert f"coop patient {name}" in wording.COMMANDS
    held = {"did": PASSKEY, "custody": "self", "since": 1_790_000_000}
    assert not key_card(record(key=held)).has_commands
