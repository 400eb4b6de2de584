"""Signed requests: bound to method, path, body, time and nonce, and to nothing weaker."""

import pytest
from small_world import HUB, NOW, PATIENT

from coop.signed_request import SKEW_MAX_S, BadRequestSignatureError, sign, verify_request

PATH, BODY = "/v1/lease?nonce=00&have=3", b'{"a":1}'


def signed(**change: str) -> dict[str, str]:
    headers = sign(PATIENT, method="POST", path=PATH, body=BODY, now=NOW)
    return {name.lower(): value for name, value in headers.items()} | change


def test_a_signed_request_says_who_calls():
    headers = signed()
    caller = verify_request(headers, method="POST", path=PATH, body=BODY, now=NOW)
    assert (caller.did, caller.time, caller.nonce) == (PATIENT.did, NOW, headers["coop-nonce"])


def test_two_requests_never_share_a_nonce():
    assert signed()["coop-nonce"] != signed()["coop-nonce"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", PATH, BODY),
        ("POST", "/v1/lease?nonce=00&have=4", BODY),
        ("POST", "/v1/lease", BODY),
        ("POST", PATH, b'{"a":2}'),
        ("POST", PATH, b""),
    ],
)
def test_a_signature_serves_no_other_request(method, path, body):
    with pytest.raises(BadRequestSignatureError):
        verify_request(signed(), method=method, path=path, body=body, now=NOW)


@pytest.mark.parametrize("off", [-SKEW_MAX_S, SKEW_MAX_S])
def test_a_clock_may_be_off_by_the_stated_skew(off):
    assert verify_request(signed(), method="POST", path=PATH, body=BODY, now=NOW + off)


@pytest.mark.parametrize("off", [-SKEW_MAX_S - 1, SKEW_MAX_S + 1])
def test_a_stale_request_is_refused(off):
    with pytest.raises(BadRequestSignatureError, match="clock"):
        verify_request(signed(), method="POST", path=PATH, body=BODY, now=NOW + off)


@pytest.mark.parametrize(
    "change",
    [
        {"coop-did": HUB.did},
        {"coop-did": "did:web:example.org"},
        {"coop-did": ""},
        {"coop-time": str(NOW + 1)},
        {"coop-time": f" {NOW}"},
        {"coop-time": "٣"},
        {"coop-time": "-1"},
        {"coop-time": ""},
        {"coop-nonce": "0" * 32},
        {"coop-nonce": "0" * 31},
        {"coop-nonce": ""},
        {"coop-signature": ""},
        {"coop-signature": "AA"},
        {"coop-signature": "="},
    ],
    ids=str,
)
def test_a_changed_header_is_refused(change):
    with pytest.raises(BadRequestSignatureError):
        verify_request(signed(**change), method="POST", path=PATH, body=BODY, now=NOW)


def test_a_request_without_headers_is_refused():
    with pytest.raises(BadRequestSignatureError):
        verify_request({}, method="GET", path="/", body=b"", now=NOW)
