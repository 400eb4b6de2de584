"""The gate: what an answer must be before it may touch a model. Every check names its own refusal.

Core: pure, no I/O. A hospital's receipt is signed, so a refused answer is evidence, not a quarrel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from coop.canonical import Json, parse_object, sha256
from coop.documents.envelope import Opened, open_document
from coop.documents.study import MICRO
from coop.documents.training import RoundReceipt
from coop.errors import CoopError, InvalidInputError, Kind

_UPDATE_BYTES_MAX: Final = 16 * 1024 * 1024
_TAIL: Final = 8.0
"""In standard deviations: an honest noise vector exceeds √d + 8 once in 10^14 (Gaussian
concentration: P[‖z‖ > √d + t] <= exp(-t²/2))."""


class GateError(CoopError):
    """Base of the gate's refusals; never raised itself."""

    code: ClassVar[str] = "gate.refused"
    kind = Kind.FORBIDDEN


class BadReceiptError(GateError):
    """The receipt is malformed, or not signed by the hospital the answer came from."""

    code = "gate.bad-receipt"


class WrongRoundError(GateError):
    """The receipt is for another order, phase, round, request or hospital."""

    code = "gate.wrong-round"


class WrongNoiseError(GateError):
    """The receipt names another noise or clipping than ordered."""

    code = "gate.wrong-noise"


class DigestMismatchError(GateError):
    """The update is not the one the receipt was signed for."""

    code = "gate.digest-mismatch"


class WrongShapeError(GateError):
    """The update has other names, shapes or types than the model."""

    code = "gate.wrong-shape"


class NotFiniteError(GateError):
    """The update holds NaN or infinity."""

    code = "gate.not-finite"


class OversizeError(GateError):
    """The update is larger than clipped gradients of the public population and noise can be."""

    code = "gate.oversize"


class DuplicateAnswerError(GateError):
    """The hospital answered this round before, or sends an answer seen in another round."""

    code = "gate.duplicate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an honest answer to this round looks like; every field comes from signed documents."""

    order_sha256: str
    phase: str
    round: int
    request_sha256: str
    dids: Mapping[str, str]
    """The roster's keys by site."""
    sigma_micro: int
    clip_micro: int
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and numpy type by name, exactly these."""
    population: int
    """Public N: no hospital has more patients in one round."""
    masked: bool = False
    """Under masks a vector looks like any other: only the sum can be judged."""

    @property
    def norm_max(self) -> float:
        """L2 bound of one hospital's honest answer, but for one in 10^14.

        An update sums at most N vectors of length C; an evaluation counts at most N patients, each
        in one cell (then C is 1).
        """
        if self.masked:
            return math.inf
        size = sum(int(np.prod(shape)) for shape, _ in self.tensors.values())
        clip = self.clip_micro / MICRO if self.phase == "train" else 1.0
        noise = self.sigma_micro / MICRO * clip
        return float(self.population * clip + noise * (np.sqrt(size) + _TAIL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An answer that passed."""

    site: str
    receipt: Opened[RoundReceipt]
    update: dict[str, NDArray[np.generic]]


@dataclass(slots=True)
class Gate:
    """The gate of one round. Not thread-safe: one thread collects a round's answers."""

    expected: Expected
    seen: set[str] = field(default_factory=set)
    """Receipt digests of earlier rounds of the order: none may come again."""
    admitted: dict[str, Admitted] = field(default_factory=dict)

    def admit(self, site: str, answer: Mapping[str, bytes]) -> Admitted:
        """Check the answer that came from `site`'s node and remember it.

        Steps: (1) the receipt is signed by the roster's key of this site; (2) it is for exactly
        this round; (3) noise and clipping are as ordered; (4) the site answers once, with a receipt
        never seen; (5) the update is the signed one; (6) names, shapes and types; (7) finite;
        (8) not larger than it can honestly be.

        Raises:
            GateError: One of its subclasses, for the first step that fails.
        """
        # (1)
        receipt = self._open(site, answer)
        # (2)
        self._check_round(site, receipt.subject)
        # (3)
        said = (receipt.subject.sigma_micro, receipt.subject.clip_micro)
        if said != (self.expected.sigma_micro, self.expected.clip_micro):
            raise WrongNoiseError("receipt: sigma and clip must be the ordered ones")
        # (4)
        if site in self.admitted or receipt.digest in self.seen:
            raise DuplicateAnswerError(f"{site}: answered before")
        # (5)
        update = answer.get("update", b"")
        if sha256(update).hex() != receipt.subject.update_sha256:
            raise DigestMismatchError("update: not the one the receipt names")
        # (6) to (8)
        tensors = check_tensors(update, self.expected)
        result = Admitted(site=site, receipt=receipt, update=tensors)
        self.admitted[site] = result
        self.seen.add(receipt.digest)
        return result

    def _open(self, site: str, answer: Mapping[str, bytes]) -> Opened[RoundReceipt]:
        did = self.expected.dids.get(site)
        if did is None:
            raise WrongRoundError(f"{site}: is not on the roster")
        try:
            document: dict[str, Json] = parse_object(answer.get("receipt", b""))
            return open_document(RoundReceipt, document, issuers=[did])
        except InvalidInputError as error:
            raise BadReceiptError(f"receipt: {error.message}") from error

    def _check_round(self, site: str, receipt: RoundReceipt) -> None:
        expected = self.expected
        said = (receipt.site, receipt.order_sha256, receipt.phase, receipt.round)
        if said != (site, expected.order_sha256, expected.phase, expected.round):
            raise WrongRoundError("receipt: names another site, order, phase or round")
        if receipt.request_sha256 != expected.request_sha256:
            raise WrongRoundError("receipt: answers another request")


def check_tensors(data: bytes, expected: Expected) -> dict[str, NDArray[np.generic]]:
    """The update's arrays, if they are what an honest hospital can send (steps 6 to 8)."""
    if len(data) > _UPDATE_BYTES_MAX:
        raise OversizeError(f"update: longer than {_UPDATE_BYTES_MAX} bytes")
    # (6)
    try:
        tensors: dict[str, NDArray[np.generic]] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WrongShapeError("update: not a safetensors file") from error
    found = {name: (array.shape, str(array.dtype)) for name, array in tensors.items()}
    if found != dict(expected.tensors):
        raise WrongShapeError("update: names, shapes and types must be the model's")
    # (7)
    if not all(bool(np.isfinite(array).all()) for array in tensors.values()):
        raise NotFiniteError("update: holds NaN or infinity")
    # (8) In float64: a float32 square can overflow to infinity and compare as it likes.
    squares = sum(float(np.square(array.astype(np.float64)).sum()) for array in tensors.values())
    if not float(np.sqrt(squares)) <= expected.norm_max:
        raise OversizeError("update: larger than clipped gradients and noise can be")
    return tensors
