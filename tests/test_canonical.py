"""The one byte encoding: equal to RFC 8785 on all it takes, and strict about what it takes."""

import json
import string
import unicodedata

import pytest
import rfc8785
from budget import budget
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coop.canonical import (
    DEPTH_MAX,
    INTEGER_MAX,
    NotCanonicalError,
    b64u,
    digest,
    document_digest,
    encode,
    from_b64u,
    jcs,
    parse,
    parse_object,
    sha256,
)

NAMES = st.text(st.sampled_from([*string.ascii_letters, *string.digits, *' !"#$\\~']), min_size=1)
TEXTS = st.text(st.characters(codec="utf-8")).map(lambda text: unicodedata.normalize("NFC", text))
INTEGERS = st.integers(-INTEGER_MAX, INTEGER_MAX)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=budget(300, 20_000))
@given(VALUES)
@example({"b": 1, "a": '\u0000\u001f\u007f\b\t\n\f\r"\\/\u2028\U0001f600', "B": [True, None, -0]})
def test_our_bytes_are_those_of_the_reference_implementation(value):
    assert jcs(value) == rfc8785.dumps(value)


@settings(max_examples=budget(100, 5_000))
@given(VALUES)
def test_what_is_encoded_reads_back_equal(value):
    assert parse(jcs(value)) == value


@given(st.dictionaries(NAMES, INTEGERS, min_size=2))
def test_the_order_of_members_never_changes_the_bytes(members):
    assert jcs(dict(reversed(members.items()))) == jcs(members)


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), {"a": [0.5]}, (1, 2), b"bytes", {1: 2}, {"": 1}, {"é": 1}, {"a\n": 1}, {3}],
    ids=repr,
)
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(NotCanonicalError):
        jcs(value)


def test_integers_end_where_a_javascript_number_is_no_longer_exact():
    assert jcs(INTEGER_MAX) == b"9007199254740991"
    assert jcs(-INTEGER_MAX) == b"-9007199254740991"
    for beyond in (INTEGER_MAX + 1, -INTEGER_MAX - 1, 10**30):
        with pytest.raises(NotCanonicalError, match="beyond"):
            jcs(beyond)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_ends_at_its_limit():
    assert parse(jcs(nested(DEPTH_MAX))) == nested(DEPTH_MAX)
    with pytest.raises(NotCanonicalError, match="nested"):
        jcs(nested(DEPTH_MAX + 1))
    with pytest.raises(NotCanonicalError):
        parse("[" * 100_000)


def test_text_that_two_programs_could_write_differently_is_refused():
    assert jcs("\u00e9") == '"é"'.encode()
    with pytest.raises(NotCanonicalError, match="NFC"):
        jcs("e\u0301")
    with pytest.raises(NotCanonicalError, match="surrogate"):
        jcs("\ud800")


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":1.0}',
        '{"a":1e3}',
        "NaN",
        "Infinity",
        '{"a":}',
        "",
        '{"a":1}x',
        '"\\ud800"',
    ],
)
def test_only_strict_json_is_read(text):
    with pytest.raises(NotCanonicalError):
        parse(text)


def test_a_text_longer_than_its_limit_is_not_read():
    assert parse(b'"aa"', bytes_max=4) == "aa"
    with pytest.raises(NotCanonicalError, match="longer"):
        parse(b'"aaa"', bytes_max=4)


def test_a_document_is_an_object():
    with pytest.raises(NotCanonicalError, match="object"):
        parse_object("[]")


def test_bytes_for_one_purpose_never_pass_for_another():
    assert encode(b"coop/a/v1", {}) == b"coop/a/v1\x00{}"
    assert digest(b"coop/a/v1", {}) != digest(b"coop/b/v1", {})
    assert digest(b"coop/a/v1", {}) == sha256(encode(b"coop/a/v1", {}))


def test_a_document_is_named_by_the_hash_of_its_canonical_bytes():
    document = {"b": 1, "a": [2]}
    assert document_digest(document) == sha256(b'{"a":[2],"b":1}').hex()
    assert json.loads(jcs(document)) == document


@given(st.binary())
def test_base64url_reads_back_and_has_one_form(data):
    text = b64u(data)
    assert from_b64u(text) == data
    assert "=" not in text


@pytest.mark.parametrize("text", ["AB", "AA==", "A", "A+", "A/", "Ä", "AA\n"])
def test_any_other_form_of_base64url_is_refused(text):
    with pytest.raises(NotCanonicalError):
        from_b64u(text)
