"""The masked sum: exact whoever drops out, nothing below the threshold, nothing of one vector."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from coop.errors import InvariantError
from coop.keys import random_bytes
from federated import shamir
from federated.masked_sum import (
    MaskingError,
    Setup,
    TooFewPartiesError,
    check_setup,
    masked,
    new_secrets,
    opened_shares,
    public_keys,
    sealed_shares,
    threshold_allowed,
    unmasked,
)

ORDER = "a" * 64
ROUND = 7
SECRETS = st.binary(min_size=32, max_size=32)


class Hospitals:
    """Everybody's side of one set-up."""

    def __init__(
        self, count: int, threshold: int, *, absent: int = 0, rounds: Sequence[int] = (7,)
    ):
        roster = [f"site{number:02d}" for number in range(count)]
        self.sites = roster[: count - absent]
        self.secrets = {site: new_secrets(rounds, random_bytes) for site in self.sites}
        self.setup = Setup(
            order_sha256=ORDER,
            number=1,
            places={site: place for place, site in enumerate(roster, start=1)},
            threshold=threshold,
            keys={
                site: public_keys(own, order_sha256=ORDER, setup=1, site=site)
                for site, own in self.secrets.items()
            },
        )
        sealed = {
            site: sealed_shares(self.setup, site, own, random_bytes)
            for site, own in self.secrets.items()
        }
        self.held = {
            site: opened_shares(
                self.setup,
                site,
                own,
                {other: box[0][site] for other, box in sealed.items() if other != site},
            )
            | {site: sealed[site][1]}
            for site, own in self.secrets.items()
        }
        self.sealed = {site: box for site, (box, _) in sealed.items()}

    def vectors(self, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        return {
            site: generator.integers(-(2**40), 2**40, length).astype(np.int64).view(np.uint64)
            for site in self.sites
        }

    def masked(self, x: dict[str, np.ndarray], round_: int = ROUND) -> dict[str, np.ndarray]:
        return {
            site: masked(
                self.setup, site, self.secrets[site], round_=round_, parties=self.sites, x=x[site]
            )
            for site in self.sites
        }

    def revealed(self, of: Sequence[str], by: Sequence[str], which: int, round_: int = ROUND):
        return {site: {who: self.held[who][site][round_][which] for who in by} for site in of}

    def sum(self, y: dict[str, np.ndarray], survivors: Sequence[str], by: Sequence[str], **changes):
        gone = [site for site in self.sites if site not in survivors]
        said = {
            "round_": ROUND,
            "parties": self.sites,
            "vectors": {site: y[site] for site in survivors},
            "seed_shares": self.revealed(survivors, by, 1),
            "mask_shares": self.revealed(gone, by, 0),
        }
        return unmasked(self.setup, **{**said, **changes})


def total(x: dict[str, np.ndarray], sites: Sequence[str]) -> np.ndarray:
    return np.sum([x[site] for site in sites], axis=0, dtype=np.uint64)


@pytest.mark.parametrize(("count", "threshold"), [(3, 3), (4, 3), (5, 4), (10, 7), (50, 34)])
def test_the_sum_is_exact_for_every_number_of_drop_outs_up_to_the_threshold(count, threshold):
    hospitals = Hospitals(count, threshold)
    x = hospitals.vectors()
    y = hospitals.masked(x)
    for gone in range(count - threshold + 1):
        survivors = hospitals.sites[gone:]
        found = hospitals.sum(y, survivors, survivors[:threshold])
        assert found.tolist() == total(x, survivors).tolist()


def test_which_hospitals_drop_out_and_which_reveal_changes_nothing():
    hospitals = Hospitals(5, 4)
    x = hospitals.vectors()
    y = hospitals.masked(x)
    for gone in [None, *hospitals.sites]:
        survivors = [site for site in hospitals.sites if site != gone]
        for by in itertools.combinations(survivors, 4):
            assert hospitals.sum(y, survivors, by).tolist() == total(x, survivors).tolist()


def test_who_was_away_from_the_set_up_is_not_missed():
    hospitals = Hospitals(4, 3, absent=1)
    x = hospitals.vectors()
    found = hospitals.sum(hospitals.masked(x), hospitals.sites, hospitals.sites)
    assert found.tolist() == total(x, hospitals.sites).tolist()
    with pytest.raises(TooFewPartiesError):
        Hospitals(4, 3, absent=2)


def test_every_round_of_a_set_up_has_masks_of_its_own():
    hospitals = Hospitals(3, 3, rounds=(1, 2))
    x = hospitals.vectors()
    first, second = hospitals.masked(x, 1), hospitals.masked(x, 2)
    for site in hospitals.sites:
        assert not np.any(first[site] == second[site])
        assert hospitals.secrets[site].rounds[1] != hospitals.secrets[site].rounds[2]
    for round_, y in ((1, first), (2, second)):
        shares = hospitals.revealed(hospitals.sites, hospitals.sites, 1, round_)
        found = hospitals.sum(y, hospitals.sites, [], round_=round_, seed_shares=shares)
        assert found.tolist() == total(x, hospitals.sites).tolist()


def test_fewer_than_the_threshold_learn_nothing():
    hospitals = Hospitals(4, 3)
    y = hospitals.masked(hospitals.vectors())
    with pytest.raises(TooFewPartiesError, match="shares"):
        hospitals.sum(y, hospitals.sites, hospitals.sites[:2])
    with pytest.raises(TooFewPartiesError, match="left"):
        hospitals.sum(y, hospitals.sites[:2], hospitals.sites[:3])


def test_one_masked_vector_looks_like_noise_whatever_is_in_it():
    """χ² of the bytes of one hospital's vector of zeros; and the same of a constant."""
    hospitals = Hospitals(3, 3)
    length = budget(20_000, 500_000)
    for value in (0, 2**63):
        x = {site: np.full(length, value, dtype=np.uint64) for site in hospitals.sites}
        for vector in hospitals.masked(x).values():
            counts = np.bincount(np.frombuffer(vector.tobytes(), np.uint8), minlength=256)
            assert chisquare(counts).pvalue > 1e-6


def test_without_all_masks_off_even_the_sum_is_noise():
    """All but one hospital's seed known: the sum is still uniform (the last seed hides it)."""
    hospitals = Hospitals(3, 3)
    length = budget(20_000, 200_000)
    x = {site: np.zeros(length, dtype=np.uint64) for site in hospitals.sites}
    y = hospitals.masked(x)
    counts = np.bincount(
        np.frombuffer(total(y, hospitals.sites).tobytes(), np.uint8), minlength=256
    )
    assert chisquare(counts).pvalue > 1e-6
    assert not np.any(total(y, hospitals.sites) == 0)


def test_a_wrong_share_is_noticed_and_done_without_if_enough_are_right():
    hospitals = Hospitals(5, 4)
    x = hospitals.vectors()
    y = hospitals.masked(x)
    shares = hospitals.revealed(hospitals.sites, hospitals.sites, 1)
    liar, victim = hospitals.sites[0], hospitals.sites[1]
    shares[victim][liar] = bytes(32) + b"\x01"
    found = hospitals.sum(y, hospitals.sites, [], seed_shares=shares)
    assert found.tolist() == total(x, hospitals.sites).tolist()
    del shares[victim][hospitals.sites[4]]
    with pytest.raises(MaskingError, match="signed"):
        hospitals.sum(y, hospitals.sites, [], seed_shares=shares)


def test_a_swapped_altered_or_replayed_box_of_shares_is_refused():
    hospitals = Hospitals(3, 3)
    one, two, three = hospitals.sites
    other = Hospitals(3, 3)
    box = hospitals.sealed[two][one]
    for bad in (
        {two: hospitals.sealed[three][one]},  # another sender's
        {two: hospitals.sealed[two][three]},  # another recipient's
        {two: bytes([box[0] ^ 1]) + box[1:]},
        {two: box[:-1]},
        {two: other.sealed[two][one]},  # another set-up's
        {one: box},
        {"stranger": box},
    ):
        with pytest.raises(MaskingError):
            opened_shares(hospitals.setup, one, hospitals.secrets[one], bad)


def test_keys_that_do_not_belong_to_the_set_up_are_refused():
    hospitals = Hospitals(4, 3)
    site = hospitals.sites[0]
    fresh = new_secrets((ROUND,), random_bytes)

    def keys_with(**changes):
        said = {"order_sha256": ORDER, "setup": 1, "site": site, **changes}
        mine = public_keys(changes.pop("secrets", fresh), **said)
        keys = {**hospitals.setup.keys, site: mine}
        return Setup(
            order_sha256=ORDER, number=1, places=hospitals.setup.places, threshold=3, keys=keys
        )

    check_setup(keys_with())
    for changes in (
        {"order_sha256": "b" * 64},
        {"setup": 2},
        {"site": hospitals.sites[1]},
    ):
        with pytest.raises(MaskingError):
            check_setup(keys_with(**changes))
    stranger = {**hospitals.setup.keys, "stranger": hospitals.setup.keys[site]}
    with pytest.raises(MaskingError):
        check_setup(
            Setup(
                order_sha256=ORDER,
                number=1,
                places=hospitals.setup.places,
                threshold=3,
                keys=stranger,
            )
        )
    twice = {**hospitals.setup.keys}
    twice[site] = hospitals.setup.keys[hospitals.sites[1]].model_copy(update={"site": site})
    with pytest.raises(MaskingError, match="twice"):
        check_setup(
            Setup(
                order_sha256=ORDER, number=1, places=hospitals.setup.places, threshold=3, keys=twice
            )
        )


@pytest.mark.parametrize(
    ("threshold", "parties", "allowed"),
    [(3, 4, True), (2, 4, False), (2, 3, False), (3, 3, True), (3, 5, False), (4, 5, True),
     (7, 10, True), (6, 10, False), (34, 50, True), (33, 50, False), (51, 51, False),
     (4, 3, False)],
)  # fmt: skip
def test_a_threshold_is_more_than_two_thirds_of_at_least_three(threshold, parties, allowed):
    assert threshold_allowed(threshold, parties) is allowed


def test_no_two_hospitals_can_be_brought_to_reveal_both_secrets_of_a_third():
    """The bound itself, exhaustively: colluders reveal both kinds, an honest one reveals one."""
    for parties in range(3, 51):
        for threshold in range(1, parties + 1):
            if threshold_allowed(threshold, parties):
                colluders = parties - threshold
                assert (parties - colluders) + 2 * colluders < 2 * threshold


# -- Shamir's shares ------------------------------------------------------------------------------


@given(secret=SECRETS, data=st.data())
def test_any_threshold_shares_give_the_secret_and_in_any_order(secret, data):
    places = data.draw(st.integers(1, 8))
    threshold = data.draw(st.integers(1, places))
    shares = shamir.split(secret, threshold=threshold, places=places, random=random_bytes)
    chosen = data.draw(st.permutations(range(1, places + 1)))[:threshold]
    assert shamir.join({at: shares[at - 1] for at in chosen}, threshold=threshold) == secret


@given(secret=SECRETS, other=SECRETS)
def test_fewer_shares_fit_every_secret(secret, other):
    """For any other secret there is a last share that gives it: two of three tell nothing."""
    shares = shamir.split(secret, threshold=3, places=3, random=random_bytes)
    prime = 2**256 + 297
    one, two = (int.from_bytes(share) for share in shares[:2])
    # The parabola through (0, other), (1, one), (2, two), continued to place 3.
    third = (int.from_bytes(other) - 3 * one + 3 * two) % prime
    forged = {1: shares[0], 2: shares[1], 3: third.to_bytes(33)}
    assert shamir.join(forged, threshold=3) == other


def test_shares_out_of_range_are_refused():
    shares = shamir.split(bytes(32), threshold=2, places=2, random=random_bytes)
    for bad in ({1: shares[0]}, {1: shares[0], 0: shares[1]}, {1: shares[0], 2: shares[1][:-1]},
                {1: shares[0], 2: b"\xff" * 33}, {1: shares[0], 1001: shares[1]}):  # fmt: skip
        with pytest.raises(shamir.BadShareError):
            shamir.join(bad, threshold=2)
    with pytest.raises(InvariantError):
        shamir.split(b"short", threshold=1, places=1, random=random_bytes)


def test_a_polynomial_known_by_hand():
    """1 + 2x + 3x² at 1, 2, 3 (draws are 64 bytes; the field is far larger than these)."""
    draws = iter([(2).to_bytes(64), (3).to_bytes(64)])
    secret = (1).to_bytes(32)
    shares = shamir.split(secret, threshold=3, places=3, random=lambda _: next(draws))
    assert [int.from_bytes(share) for share in shares] == [6, 17, 34]
