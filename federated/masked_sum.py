"""The sum of the hospitals' vectors, and nothing else: masks that cancel, for mode B.

Bonawitz et al. 2017 over integers modulo 2^64, all pairs, with the keys of every round of a set-up
agreed at once. Pure: secrets are arguments, so a test replays every step. What each party does:

(1) Keys: a hospital makes one X25519 pair for sealing and, for every round, one for masking and a
    random seed of its own; it signs the public keys and a commitment to each seed.
(2) Shares: it splits each round's mask key and seed by Shamir, `threshold` of all, and seals every
    other hospital's part to it.
(3) Masking: x + PRG(seed) + PRG(pair) for every later name, less PRG(pair) for every earlier one,
    modulo 2^64; a pair's key is the Diffie-Hellman secret of this round's two mask keys.
(4) Unmasking: of each survivor its seed's share is revealed, of each drop-out its mask key's share,
    never both of one hospital; the coordinator joins them, checks each against what was signed, and
    takes the masks off the sum.

With 3·threshold > 2·parties, even `parties - threshold` hospitals that collude with the coordinator
cannot make it learn both secrets of another one: each honest hospital reveals one kind of share of
it, once (docs/privacy.md).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from coop.canonical import Json, encode, sha256
from coop.documents.masked import MaskKeys, RoundKey
from coop.errors import CoopError, InvariantError, Kind
from federated import shamir

Vector = NDArray[np.uint64]
"""[d], integers modulo 2^64; a negative number is its two's complement."""

PARTIES_MIN: Final = 3
PARTIES_MAX: Final = 50
LENGTH_MAX: Final = 2**22  # 32 MiB of masks at once for each pair
_KEY_BYTES: Final = 32
_NONCE: Final = bytes(12)  # every sealing key seals one message
_TRIES_MAX: Final = 64  # combinations of shares, should some of them be wrong


class MaskingError(CoopError):
    """A step of the masked sum does not fit the ones before; the set-up must be made anew."""

    code = "masked.does-not-fit"
    kind = Kind.CONFLICT


class TooFewPartiesError(CoopError):
    """Fewer hospitals than the threshold: nothing can or may be unmasked."""

    code = "masked.too-few"
    kind = Kind.UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSecrets:
    """What a hospital keeps of one round: its mask key and the seed of its own mask."""

    mask: bytes
    seed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What a hospital keeps of one set-up."""

    seal: bytes
    rounds: Mapping[int, RoundSecrets]


Shares = dict[int, tuple[bytes, bytes]]
"""By round: the share of a mask key, and that of a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One set-up as everybody knows it: whose keys, for which rounds, and how many must answer."""

    order_sha256: str
    number: int
    places: Mapping[str, int]
    """Each roster site's place in the sharing: 1, 2, … in the order of the names."""
    threshold: int
    keys: Mapping[str, MaskKeys]
    """The signed keys by site; signatures checked by the caller."""

    @property
    def sites(self) -> list[str]:
        """Who takes part, in the order of the names."""
        return sorted(self.keys)

    @property
    def fresh(self) -> bool:
        """Whether the first of its rounds is drawn anew."""
        return any(keys.fresh for keys in self.keys.values())

    def round_key(self, site: str, round_: int) -> RoundKey:
        """A site's public keys of one round."""
        for entry in self.keys[site].rounds:
            if entry.round == round_:
                return entry
        raise MaskingError(f"keys: {site} has none for round {round_}")


def threshold_allowed(threshold: int, parties: int) -> bool:
    """Whether `threshold` of `parties` may reveal: the bound in this module's first lines."""
    return PARTIES_MIN <= threshold <= parties <= PARTIES_MAX and 3 * threshold > 2 * parties


def new_secrets(rounds: Sequence[int], random: Callable[[int], bytes]) -> Secrets:
    """(1) Fresh secrets for these rounds; no two set-ups share any."""
    return Secrets(
        seal=random(_KEY_BYTES),
        rounds={
            round_: RoundSecrets(mask=random(_KEY_BYTES), seed=random(_KEY_BYTES))
            for round_ in rounds
        },
    )


def public_keys(
    secrets: Secrets, *, order_sha256: str, setup: int, site: str, fresh: bool = False
) -> MaskKeys:
    """(1) What the hospital signs."""
    return MaskKeys(
        order_sha256=order_sha256,
        setup=setup,
        fresh=fresh,
        site=site,
        seal_key=_public_hex(secrets.seal),
        rounds=[
            RoundKey(
                round=round_,
                mask_key=_public_hex(own.mask),
                seed_sha256=_commitment(own.seed),
            )
            for round_, own in sorted(secrets.rounds.items())
        ],
    )


def check_setup(setup: Setup) -> None:
    """Return if all keys are for one set-up, one set of rounds, and enough hospitals are in.

    Raises:
        TooFewPartiesError: Fewer than the threshold.
        MaskingError: A stranger, another order or set-up, other rounds, or a key that stands twice.
    """
    if not threshold_allowed(setup.threshold, len(setup.places)):
        raise MaskingError("threshold: must be more than two thirds of at least 3 hospitals")
    if len(setup.keys) < setup.threshold:
        raise TooFewPartiesError(f"keys: of {len(setup.keys)}; {setup.threshold} are needed")
    rounds = {tuple(entry.round for entry in keys.rounds) for keys in setup.keys.values()}
    every = [keys.seal_key for keys in setup.keys.values()]
    every += [entry.mask_key for keys in setup.keys.values() for entry in keys.rounds]
    for site, keys in setup.keys.items():
        if site not in setup.places or keys.site != site:
            raise MaskingError("keys: of a hospital that is not on the roster")
        if (keys.order_sha256, keys.setup) != (setup.order_sha256, setup.number):
            raise MaskingError(f"keys: {site}'s are for another order or set-up")
    if len({keys.fresh for keys in setup.keys.values()}) != 1:
        raise MaskingError("keys: some draw the round anew and others do not")
    if len(rounds) != 1 or len(set(every)) != len(every):
        raise MaskingError("keys: for different rounds, or one stands twice")


def sealed_shares(
    setup: Setup, site: str, secrets: Secrets, random: Callable[[int], bytes]
) -> tuple[dict[str, bytes], Shares]:
    """(2) The shares of this hospital's secrets: sealed, by recipient; and the one it keeps."""
    check_setup(setup)
    parts: dict[str, list[bytes]] = {to: [] for to in setup.sites}
    for _, own in sorted(secrets.rounds.items()):
        for secret in (own.mask, own.seed):
            shares = shamir.split(
                secret, threshold=setup.threshold, places=len(setup.places), random=random
            )
            for to in setup.sites:
                parts[to].append(shares[setup.places[to] - 1])
    sealed = {
        to: _cipher(setup, secrets, sender=site, to=to, other=to).encrypt(
            _NONCE, b"".join(parts[to]), None
        )
        for to in setup.sites
        if to != site
    }
    return sealed, _by_round(secrets, parts[site])


def opened_shares(
    setup: Setup, site: str, secrets: Secrets, sealed: Mapping[str, bytes]
) -> dict[str, Shares]:
    """The shares that others sealed to this hospital, by sender.

    Raises:
        MaskingError: One was not sealed by its sender for this hospital and set-up.
    """
    found: dict[str, Shares] = {}
    for sender, box in sorted(sealed.items()):
        if sender not in setup.keys or sender == site:
            raise MaskingError("shares: from a hospital that is not in the set-up")
        try:
            cipher = _cipher(setup, secrets, sender=sender, to=site, other=sender)
            clear = cipher.decrypt(_NONCE, box, None)
        except InvalidTag as error:
            raise MaskingError(f"shares: not sealed by {sender} for this set-up") from error
        if len(clear) != 2 * shamir.SHARE_BYTES * len(secrets.rounds):
            raise MaskingError(f"shares: {sender} sealed another number of them")
        size = shamir.SHARE_BYTES
        parts = [clear[start : start + size] for start in range(0, len(clear), size)]
        found[sender] = _by_round(secrets, parts)
    return found


def masked(
    setup: Setup, site: str, secrets: Secrets, *, round_: int, parties: Sequence[str], x: Vector
) -> Vector:
    """(3) `x` under this hospital's masks of the round; nothing of it shows.

    Args:
        setup: The set-up.
        site: This hospital.
        secrets: Its own.
        round_: Which round.
        parties: Whose shares arrived here, this hospital with them; every one masks with every one.
        x: [d].
    """
    _check_parties(setup, parties, site)
    own = secrets.rounds[round_]
    total = x + _stream(_derived(own.seed, _about(setup, round_, "seed")), len(x))
    for other in parties:
        if other != site:
            total = total + _pair(setup, round_, own.mask, site, other, len(x))
    return np.asarray(total, dtype=np.uint64)


def unmasked(
    setup: Setup,
    *,
    round_: int,
    parties: Sequence[str],
    vectors: Mapping[str, Vector],
    seed_shares: Mapping[str, Mapping[str, bytes]],
    mask_shares: Mapping[str, Mapping[str, bytes]],
) -> Vector:
    """(4) Σ x over the hospitals in `vectors`.

    Args:
        setup: The set-up.
        round_: Which round.
        parties: Who masked with whom, as in `masked`.
        vectors: The masked vectors that arrived, by survivor.
        seed_shares: By survivor, who revealed which share of its seed.
        mask_shares: By drop-out, who revealed which share of its mask key.

    Raises:
        TooFewPartiesError: Fewer survivors, or shares, than the threshold.
        MaskingError: Shares that do not give what was signed.
    """
    survivors = sorted(vectors)
    _check_parties(setup, parties, *survivors)
    if len(survivors) < setup.threshold:
        raise TooFewPartiesError(f"sum: {len(survivors)} of {setup.threshold} hospitals are left")
    length = len(vectors[survivors[0]])
    total = np.zeros(length, dtype=np.uint64)
    for site in survivors:
        total = total + vectors[site]
        public = setup.round_key(site, round_).seed_sha256
        seed = _joined(setup, seed_shares.get(site, {}), _commitment, public)
        total = total - _stream(_derived(seed, _about(setup, round_, "seed")), length)
    for gone in sorted(set(parties) - set(survivors)):
        public = setup.round_key(gone, round_).mask_key
        mask = _joined(setup, mask_shares.get(gone, {}), _public_hex, public)
        for site in survivors:
            # What `gone` would have added against this survivor cancels what the survivor added.
            total = total + _pair(setup, round_, mask, gone, site, length)
    return np.asarray(total, dtype=np.uint64)


def _check_parties(setup: Setup, parties: Sequence[str], *within: str) -> None:
    if len(set(parties)) != len(parties) or not set(parties) <= set(setup.keys):
        raise MaskingError("parties: not a part of the set-up")
    if len(parties) < setup.threshold:
        raise TooFewPartiesError(f"parties: {len(parties)} of {setup.threshold} needed")
    if not set(within) <= set(parties):
        raise MaskingError("parties: a hospital is missing among them")


def _by_round(secrets: Secrets, parts: Sequence[bytes]) -> Shares:
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return dict(zip(sorted(secrets.rounds), pairs, strict=True))


def _joined(
    setup: Setup, shares: Mapping[str, bytes], image: Callable[[bytes], str], signed: str
) -> bytes:
    """The secret whose `image` was signed, from any `threshold` of the shares."""
    at = {setup.places[site]: share for site, share in shares.items() if site in setup.places}
    if len(at) < setup.threshold:
        raise TooFewPartiesError(f"shares: {len(at)} of {setup.threshold} needed")
    several = itertools.combinations(sorted(at.items()), setup.threshold)
    for some in itertools.islice(several, _TRIES_MAX):
        try:
            found = shamir.join(dict(some), threshold=setup.threshold)
        except shamir.BadShareError:
            continue
        if image(found) == signed:
            return found
    raise MaskingError("shares: they do not give what was signed")


def _pair(setup: Setup, round_: int, secret: bytes, site: str, other: str, length: int) -> Vector:
    """What `site` adds for its pair with `other`: the mask, or its negative for an earlier name."""
    first, second = sorted((site, other))
    shared = _shared(secret, setup.round_key(other, round_).mask_key)
    mask = _stream(_derived(shared, _about(setup, round_, "pair", first, second)), length)
    return mask if site == first else np.zeros(length, dtype=np.uint64) - mask


def _stream(key: bytes, length: int) -> Vector:
    """`length` numbers of ChaCha20's key stream under a key that is used once."""
    if not 0 < length <= LENGTH_MAX:
        raise InvariantError("masked sum: a vector of an impossible length")
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * length)), dtype="<u8").astype(np.uint64)


def _cipher(
    setup: Setup, secrets: Secrets, *, sender: str, to: str, other: str
) -> ChaCha20Poly1305:
    shared = _shared(secrets.seal, setup.keys[other].seal_key)
    return ChaCha20Poly1305(_derived(shared, _about(setup, 0, "seal", sender, to)))


def _about(setup: Setup, round_: int, use: str, *sites: str) -> bytes:
    """What a key is for; no two uses share one."""
    about: dict[str, Json] = {
        "order": setup.order_sha256,
        "setup": setup.number,
        "round": round_,
        "use": use,
        "sites": list(sites),
    }
    return encode(b"coop/masked-sum/v1", about)


def _derived(secret: bytes, about: bytes) -> bytes:
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=about).derive(secret)


def _shared(private: bytes, public: str) -> bytes:
    try:
        peer = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        return X25519PrivateKey.from_private_bytes(private).exchange(peer)
    except ValueError as error:  # a point of small order: the secret would be known to all
        raise MaskingError("keys: one gives no secret") from error


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _public_hex(private: bytes) -> str:
    return _public(private).hex()


def _commitment(seed: bytes) -> str:
    return sha256(encode(b"coop/mask-seed/v1", {"seed": seed.hex()})).hex()
