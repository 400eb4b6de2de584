"""A key speaks for a record only if its holder held the hospital's code."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coop.canonical import b64u
from coop.enrolment import (
    BadCodeError,
    check_mac,
    check_proof,
    in_two,
    joined,
    new_code,
    parse_code,
    redemption,
)
from coop.errors import CoopError, InvalidInputError
from coop.keys import BadSignatureError, SigningKey


def test_a_code_reads_back_however_it_was_typed():
    code_id, secret, text = new_code("zurich")
    assert len(secret) == 16
    for typed in (text, text.upper(), f"  {text[:20]} {text[20:]}\n", text):
        assert parse_code(typed) == (code_id, secret)
    head, _, letters = text.partition("-")
    assert parse_code(f"{head}-{letters.replace('-', '')}") == (code_id, secret)


def test_codes_are_fresh():
    codes = [new_code("zurich") for _ in range(20)]
    assert len({code_id for code_id, _, _ in codes}) == 20
    assert len({secret for _, secret, _ in codes}) == 20


@pytest.mark.parametrize("text", ["", "zurich", "zurich.abcdefgh", "zurich.abcdefgh-aaa", "A.b-c"])
def test_what_is_no_code_is_refused(text):
    with pytest.raises(BadCodeError):
        parse_code(text)


def test_two_texts_never_mean_the_same_secret():
    text = new_code("zurich")[2]
    secrets = []
    for letter in "abcdefghijklmnopqrstuvwxyz234567":
        try:
            secrets.append(parse_code(text[:-1] + letter)[1])
        except BadCodeError:
            continue
    # The last letter carries three bits: eight letters are codes, and no two are the same one.
    assert len(secrets) == len(set(secrets)) == 8


def test_a_code_in_two_parts_is_the_code_only_as_a_whole():
    code_id, secret, text = new_code("zurich")
    handed, letter = in_two(text)
    assert parse_code(joined(handed, letter)) == (code_id, secret)
    assert parse_code(joined(f" {handed}\n", letter.upper())) == (code_id, secret)
    assert parse_code(f"{handed} {letter}") == (code_id, secret)  # typed one after the other
    assert joined(text, None) == text
    for part in (handed, letter, joined(letter, handed), joined(handed, handed)):
        with pytest.raises(BadCodeError):
            parse_code(part)
    # What one part leaves open is beyond guessing: a wrong guess spends a request.
    assert len(handed.partition("-")[2].replace("-", "")) * 5 == 50
    assert len(letter.replace("-", "")) * 5 - 2 == 78


def test_whoever_held_the_code_and_the_key_is_enrolled():
    code_id, secret, text = new_code("zurich")
    key = SigningKey.generate()
    sent = redemption(text, key)
    assert check_proof(sent) == (code_id, key.did)
    assert check_mac(sent, secret) == key.did
    assert b64u(secret) not in str(sent)


def test_another_secret_another_key_or_another_code_is_refused():
    _, secret, text = new_code("zurich")
    sent = redemption(text, SigningKey.generate())
    with pytest.raises(BadCodeError):
        check_mac(sent, bytes(16))
    thief = SigningKey.generate()
    with pytest.raises(CoopError):
        check_mac({**sent, "did": thief.did}, secret)
    with pytest.raises(BadSignatureError):
        check_proof({**sent, "code_id": "zurich.aaaaaaaa"})


@given(st.sampled_from(["code_id", "did", "mac", "proof"]), st.data())
@settings(max_examples=60)
def test_any_letter_changed_is_refused(member, data):
    _, secret, text = new_code("zurich")
    sent = redemption(text, SigningKey.generate())
    value = str(sent[member])
    at = data.draw(st.integers(0, len(value) - 1))
    letter = data.draw(st.sampled_from("abcdefghijkmnopqrstuvwxyzABC23456"))
    if value[at] != letter:
        with pytest.raises(InvalidInputError):
            check_mac({**sent, member: value[:at] + letter + value[at + 1 :]}, secret)


def test_members_beyond_the_four_are_refused():
    sent = redemption(new_code("zurich")[2], SigningKey.generate())
    for body in ({**sent, "name": "x"}, {k: v for k, v in sent.items() if k != "mac"}, {}):
        with pytest.raises(BadCodeError):
            check_proof(body)
