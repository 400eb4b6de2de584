"""Order, round request, lease, receipts, round record: one training run, signed at every step."""

from typing import ClassVar, Final, Literal

from pydantic import Field

from coop.documents.envelope import Subject
from coop.documents.study import MICRO, Name, Part, Sha256

ADVERSARY_A: Final = "mode A: holds against the coordinator and all other hospitals"
ADVERSARY: Final = f"^({ADVERSARY_A}|mode B: holds if [0-9]+ hospitals of every sum are honest)$"


def adversary_b(honest: int) -> str:
    """Whom mode B's epsilon holds against."""
    return f"mode B: holds if {honest} hospitals of every sum are honest"


def accountant(sampling_micro: int) -> Literal["exact Gaussian", "privacy loss distribution"]:
    """How the epsilon of a training at this sampling rate is computed, in a passport's words."""
    return "exact Gaussian" if sampling_micro == MICRO else "privacy loss distribution"


class ApprovalRef(Part):
    """One hospital's approval and the keys it trains with."""

    site: str = Name
    did: str
    approval_sha256: str = Sha256


class Order(Subject):
    """The hub's job order: what every node must match against its own approval."""

    kind: ClassVar[str] = "order"

    study_sha256: str = Sha256
    study_id: str
    version: int
    roster: list[ApprovalRef] = Field(min_length=1)
    quorum: int = Field(ge=1)
    rounds: int = Field(ge=1)
    sampling_micro: int = Field(ge=1, le=MICRO)
    """q: the chance of each patient to be in a round; 1: all of them."""
    training_sigma_micro: int = Field(gt=0)
    evaluation_sigma_micro: int = Field(gt=0)
    clip_micro: int = Field(gt=0)
    delta_pico: int = Field(gt=0)
    mode: Literal["A", "B"]
    honest: int = Field(ge=1, le=50)
    """h: sites whose noise the accounting relies on; 1 in mode A, each adds its full noise.

    In mode B it is also the threshold of the masked sum."""
    fab_sha256: str = Sha256
    software: str
    not_before: int
    not_after: int


class RoundRequest(Subject):
    """One round asked of every node: `train` has rounds 1…T, `evaluate` follows as T+1."""

    kind: ClassVar[str] = "round-request"

    order_sha256: str = Sha256
    phase: Literal["train", "evaluate"]
    round: int = Field(ge=1)
    weights_sha256: str = Sha256
    """Of the safetensors bytes (`federated.models.weights_digest`)."""


class Lease(Subject):
    """The registry's word on consent at one instant, for one site and one nonce."""

    kind: ClassVar[str] = "lease"

    site: str = Name
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    log_size: int = Field(ge=0)
    checkpoint: str
    """Signed note with cosignatures: the newest size that other sites cosigned."""
    heads_sha256: str = Sha256
    """Of the site's sorted (pid, chain head digest) pairs (`consent.chain.heads_digest`)."""
    seconds: int = Field(ge=1, le=60)


class RoundReceipt(Subject):
    """A hospital's signed answer to one round: commitments and digests only, no count."""

    kind: ClassVar[str] = "round-receipt"

    site: str = Name
    order_sha256: str = Sha256
    phase: Literal["train", "evaluate"]
    round: int
    request_sha256: str = Sha256
    lease_sha256: str = Sha256
    release_lease_sha256: str = Sha256
    cohort_commitment: str = Sha256
    """To the salted Merkle tree of the cohort (`consent.proofs.cohort`); salts stay at the node."""
    count_commitment: str = Sha256
    debit_sequence: int = Field(ge=1)
    sigma_micro: int
    clip_micro: int
    update_sha256: str = Sha256


class Accepted(Part):
    """A receipt the gate let through."""

    site: str
    receipt_sha256: str = Sha256


class Refused(Part):
    """An answer the gate or the node refused, with the stable code."""

    site: str
    code: str


class RoundRecord(Subject):
    """What the hub made of one round."""

    kind: ClassVar[str] = "round-record"

    order_sha256: str = Sha256
    phase: Literal["train", "evaluate"]
    round: int
    request_sha256: str = Sha256
    accepted: list[Accepted]
    refused: list[Refused]
    aggregate_sha256: str = Sha256
    previous_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The record of the round before; absent in the first."""


class GroupMetric(Part):
    """One row of the evaluation; `_micro` values are DP estimates with the noise's own sd."""

    group: str
    auc_micro: int | None = None
    auc_sd_micro: int | None = None
    accuracy_micro: int | None = None
    accuracy_sd_micro: int | None = None
    brier_micro: int | None = None
    brier_sd_micro: int | None = None
    calibration_micro: int | None = None
    """Mean predicted risk minus the share who had the outcome: 0 is calibrated in the large."""
    calibration_sd_micro: int | None = None
    count_noised: int


class Artefact(Part):
    """A file of the model by digest."""

    name: Literal["model.safetensors", "model.onnx", "io.json"]
    sha256: str = Sha256


class ModelState(Subject):
    """The hub's word that a model's use changed, and why; the newest one counts."""

    kind: ClassVar[str] = "model-state"

    model_id: str
    passport_sha256: str = Sha256
    state: Literal["retrain-due", "retired"]
    reason: Literal["staff", "withdrawals", "replaced", "fairness"]
    permitted: int
    """Patients who permitted the study at its first round: registry knowledge."""
    withdrawn: int
    """How many of them have withdrawn since."""
    rounds: int
    """The rounds their records may have been in: all of the model's, from the first to this."""


class Fairness(Part):
    """How the released figures stand to the floor that the study was approved with."""

    floor_micro: int
    """The least AUC of every subgroup."""
    verdict: Literal["passed", "below", "uncertain"]
    """below: one is surely below, and the model answers nothing. uncertain: the noise hides it."""
    below: list[str]


class Passport(Subject):
    """What a released model is, where it comes from and what it cost in privacy."""

    kind: ClassVar[str] = "passport"

    model_id: str
    study_sha256: str = Sha256
    order_sha256: str = Sha256
    study_id: str
    version: int
    record_sha256: str = Sha256
    """Of the last round record: through it the whole chain."""
    training_root: str = Sha256
    """SHA-256 over the round records' digests in order."""
    purpose: str
    commercial: bool
    epsilon_micro: int
    """Training, evaluation and reserve composed: every line of the study's plan."""
    training_epsilon_micro: int
    cohort_epsilon_micro: int
    """Of the study's line of cohort questions, by itself."""
    together_epsilon_micro: int
    """Plan and cohort questions composed: what a patient loses at most who takes part in all."""
    delta_pico: int
    relation: Literal["add/remove one patient"]
    accountant: Literal["exact Gaussian", "privacy loss distribution"]
    """The second where rounds were trained on samples."""
    adversary: str = Field(pattern=ADVERSARY)
    mechanism: list[str]
    """One line per release: `train q=1 sigma=… rounds=…`, q the sampling rate."""
    metrics: list[GroupMetric]
    fairness: Fairness | None = None
    """None where the study has no floor."""
    artefacts: list[Artefact]
    hospital_weights: dict[str, int]
    """Registered consents at the first round, by site: who earns (DESIGN §7, alpha = 1)."""
    intended_use: str
