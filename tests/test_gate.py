"""The gate: an answer that is not exactly an honest one touches no model."""

from dataclasses import replace

import numpy as np
import pytest

from coop.canonical import jcs, sha256
from coop.documents.envelope import issue
from coop.documents.training import RoundReceipt
from coop.errors import CoopError
from coop.keys import SigningKey
from federated.client_app import to_bytes
from federated.gate import Expected, Gate

EAST, WEST = SigningKey(b"e" * 32), SigningKey(b"w" * 32)
ORDER, REQUEST, ZERO = "a" * 64, "b" * 64, "0" * 64
EXPECTED = Expected(
    order_sha256=ORDER,
    phase="train",
    round=3,
    request_sha256=REQUEST,
    dids={"east": EAST.did, "west": WEST.did},
    sigma_micro=2_000_000,
    clip_micro=500_000,
    tensors={"weight": ((4,), "float32")},
    population=10,
)
HONEST = {"weight": np.array([1, -2, 3, 0.5], dtype=np.float32)}


def answer(update=None, *, key=EAST, data: bytes | None = None, **said) -> dict[str, bytes]:
    data = data if data is not None else to_bytes(HONEST if update is None else update)
    subject = {
        "site": "east",
        "order_sha256": ORDER,
        "phase": "train",
        "round": 3,
        "request_sha256": REQUEST,
        "lease_sha256": ZERO,
        "release_lease_sha256": ZERO,
        "cohort_commitment": ZERO,
        "count_commitment": ZERO,
        "debit_sequence": 1,
        "sigma_micro": 2_000_000,
        "clip_micro": 500_000,
        "update_sha256": sha256(data).hex(),
    }
    receipt = RoundReceipt.model_validate({**subject, **said})
    return {"receipt": jcs(issue(receipt, key, 1_790_000_000)), "update": data}


def refused(code: str, sent: dict[str, bytes], *, site="east", gate: Gate | None = None) -> None:
    gate = gate or Gate(EXPECTED)
    with pytest.raises(CoopError) as caught:
        gate.admit(site, sent)
    assert caught.value.code == code


def test_an_honest_answer_passes_once():
    gate = Gate(EXPECTED)
    admitted = gate.admit("east", answer())
    assert admitted.update["weight"].tolist() == HONEST["weight"].tolist()
    refused("gate.duplicate", answer(), gate=gate)


def test_a_receipt_seen_in_an_earlier_round_never_passes_again():
    first = Gate(EXPECTED)
    sent = answer()
    first.admit("east", sent)
    refused("gate.duplicate", sent, gate=Gate(EXPECTED, seen=first.seen))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order_sha256", "c" * 64),
        ("phase", "evaluate"),
        ("round", 2),
        ("request_sha256", "c" * 64),
        ("site", "west"),
    ],
)
def test_an_answer_to_something_else_is_refused(name: str, value: object):
    refused("gate.wrong-round", answer(**{name: value}))


def test_only_the_rosters_own_key_may_sign():
    refused("gate.bad-receipt", answer(key=WEST))
    refused("gate.bad-receipt", answer(key=SigningKey.generate()))
    # West's honest receipt does not become east's by arriving from east's node.
    refused("gate.bad-receipt", answer(key=WEST, site="west"))
    refused("gate.wrong-round", answer(key=EAST), site="north")


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"a":1.5}'])
def test_a_receipt_that_is_no_document_is_refused(text: bytes):
    refused("gate.bad-receipt", {"receipt": text, "update": to_bytes(HONEST)})
    refused("gate.bad-receipt", {"update": to_bytes(HONEST)})


def test_less_noise_or_another_clipping_than_ordered_is_refused():
    refused("gate.wrong-noise", answer(sigma_micro=1_999_999))
    refused("gate.wrong-noise", answer(sigma_micro=2_000_001))
    refused("gate.wrong-noise", answer(clip_micro=500_001))


def test_an_update_other_than_the_signed_one_is_refused():
    other = to_bytes({"weight": np.zeros(4, dtype=np.float32)})
    refused("gate.digest-mismatch", {**answer(), "update": other})
    refused("gate.digest-mismatch", {"receipt": answer()["receipt"]})


@pytest.mark.parametrize(
    "update",
    [
        {"weight": np.zeros(5, dtype=np.float32)},
        {"weight": np.zeros((4, 1), dtype=np.float32)},
        {"weight": np.zeros(4, dtype=np.float64)},
        {"weight": np.zeros(4, dtype=np.int32)},
        {"bias": np.zeros(4, dtype=np.float32)},
        {"weight": np.zeros(4, dtype=np.float32), "more": np.zeros(1, dtype=np.float32)},
        {},
    ],
)
def test_other_names_shapes_or_types_are_refused(update):
    refused("gate.wrong-shape", answer(update))


def test_bytes_that_are_no_tensors_are_refused():
    refused("gate.wrong-shape", answer(data=b"\x80\x04pickle."))
    refused("gate.wrong-shape", answer(data=b"\xff" * 64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(value: float):
    refused("gate.not-finite", answer({"weight": np.array([0, 0, 0, value], dtype=np.float32)}))


def test_an_update_larger_than_clipping_and_noise_allow_is_refused():
    # 10 patients of norm 0.5, noise of sd 1 in 4 numbers: 5 + (2 + 8) at the most.
    assert EXPECTED.norm_max == pytest.approx(15)
    refused("gate.oversize", answer({"weight": np.array([15.1, 0, 0, 0], dtype=np.float32)}))
    refused("gate.oversize", answer({"weight": np.full(4, 3e38, dtype=np.float32)}))
    Gate(EXPECTED).admit("east", answer({"weight": np.array([14.9, 0, 0, 0], dtype=np.float32)}))


def test_an_evaluation_is_counted_in_patients():
    expected = replace(
        EXPECTED, phase="evaluate", tensors={"histogram": ((1, 2, 2), "int64")}, clip_micro=500_000
    )
    assert expected.norm_max == pytest.approx(10 + 2 * (2 + 8))
    good = {"histogram": np.array([[[9, 1], [0, -3]]], dtype=np.int64)}
    Gate(expected).admit("east", answer(good, phase="evaluate"))
    huge = {"histogram": np.array([[[2**62, 2**62], [0, 0]]], dtype=np.int64)}
    refused("gate.oversize", answer(huge, phase="evaluate"), gate=Gate(expected))
