"""A shadow copy of a training with canaries in it, and what the strongest observer makes of them.

The shadow runs the shipped code on real rows and is never released. A canary is a patient with one
finding that nobody else has, a rare code, and nothing else: what she adds to a sum lies in a
direction of her own, so nothing but the noise hides her. Whoever sees what leaves her hospital
computes the likelihood ratio of "in" against "out": no attack is stronger.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coop.documents.study import MICRO, Study
from coop.documents.training import ADVERSARY_A, adversary_b
from coop.families import family_of, public_seed
from federated.accounting import Plan, epsilon_of_mu, mu_for, plan
from federated.integer_noise import noised_sum, to_numbers
from federated.models import Weights, unflatten
from federated.privacy_audit import (
    CANARIES_MIN,
    CONFIDENCE,
    Claim,
    Finding,
    WrongCanariesError,
    judge,
)
from federated.private_training import (
    clipped_gradients,
    private_gradient,
    unsafe_gradient_without_noise,
)
from federated.simulate import Matrix, honest_of
from federated.step import apply_round

CANARY_KIND: Final = "a patient with one finding nobody else has (a rare code), and nothing else"
_CODE_CLIPS: Final = 8  # the finding's value in clippings: her gradient is clipped until p > 7/8

CANARIES_PER_RUN: Final = 4000  # a column each: 4000 rows of 4000 numbers are 64 MB
RUNS_MAX: Final = 25
_PATIENTS_MAX: Final = 2000  # of a site: they stand in no canary's direction, so more prove nothing

Release = Callable[[Weights, Mapping[str, Matrix]], dict[str, Weights]]
"""What leaves the hospitals in one round: by site in mode A, one sum of all in mode B."""
SUM: Final = "sum"


@dataclass(frozen=True, slots=True)
class Trial:
    """One shadow training: who was in, and how sure the observer is of each."""

    members: NDArray[np.bool_]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was audited, and what was found."""

    claim: Claim
    finding: Finding
    runs: int
    patients: dict[str, int]
    """Real patients in the shadow, by site."""


def audit(  # noqa: PLR0913  (what is audited, how hard, and what a test breaks)
    study: Study,
    matrices: Mapping[str, Matrix],
    *,
    epsilon: float,
    canaries: int,
    runs: int,
    generator: np.random.Generator,
    release: Release | None = None,
) -> Audit:
    """Attack `runs` shadows of the study's training and judge the epsilon that is claimed for it.

    In mode B the sites after the first h are the observer's own and left out.

    Args:
        study: What is trained, and how.
        matrices: Each site's training patients.
        epsilon: Claimed for training alone, at the study's delta.
        canaries: In each run.
        runs: Their canaries count together.
        generator: Tosses the coins.
        release: What runs instead of the shipped step: only where a test breaks it on purpose.

    Raises:
        WrongCanariesError: Too few or too many.
        TooFewHonestError: Fewer sites than mode B relies on.
    """
    split, recipe = plan(study.budget, study.recipe.schedule), study.recipe
    if not CANARIES_MIN <= canaries <= CANARIES_PER_RUN or not 1 <= runs <= RUNS_MAX:
        raise WrongCanariesError(
            f"canaries: must be {CANARIES_MIN} to {CANARIES_PER_RUN}; runs: 1 to {RUNS_MAX}"
        )
    if recipe.mode == "B":
        honest_of(study, len(matrices), None)
    sites = sorted(matrices)[: recipe.honest if recipe.mode == "B" else None]
    shadow = {s: (matrices[s][0][:_PATIENTS_MAX], matrices[s][1][:_PATIENTS_MAX]) for s in sites}
    step = release_of(study, split) if release is None else release
    trials = [
        observed(study, shadow, step, canaries=canaries, generator=generator) for _ in range(runs)
    ]
    claim = Claim(mu=mu_for(epsilon, split.delta), epsilon=epsilon, delta=split.delta)
    finding = judge(
        claim,
        np.concatenate([trial.scores for trial in trials]),
        np.concatenate([trial.members for trial in trials]),
        generator,
    )
    patients = {site: len(matrix[1]) for site, matrix in shadow.items()}
    return Audit(claim=claim, finding=finding, runs=runs, patients=patients)


def report(study: Study, done: Audit) -> dict[str, object]:
    """The document of `coop audit privacy --json`: all that went in, all that came out."""
    recipe, split = study.recipe, plan(study.budget, study.recipe.schedule)
    claim, finding = done.claim, done.finding
    adversary = ADVERSARY_A if recipe.mode == "A" else adversary_b(recipe.honest)
    return {
        "study_id": study.study_id,
        "version": study.version,
        "audited": "the training rounds; not the evaluation, cohort answers or what is kept secret",
        "mode": recipe.mode,
        "honest": recipe.honest,
        "adversary": adversary,
        "unit": "patient",
        "relation": "add or remove one patient",
        "recipe": recipe.model_dump(mode="json"),
        "training_sigma": split.training_sigma_micro / MICRO,
        "claimed_epsilon": claim.epsilon,
        "claimed_mu": claim.mu,
        "delta": claim.delta,
        "canary_kind": CANARY_KIND,
        "canaries": finding.canaries,
        "runs": done.runs,
        "patients": done.patients,
        "confidence": CONFIDENCE,
        "guesses": [{"made": one.made, "right": one.right} for one in finding.guessed],
        "epsilon_lower_bound": finding.epsilon_min,
        "mu_lower_bound": finding.mu_min,
        "epsilon_lower_bound_gaussian": epsilon_of_mu(finding.mu_min, claim.delta),
        "attack_auc": finding.attack_auc,
        "attack_auc_best": finding.best_auc,
        "power": [
            {"noise_factor": one.noise_factor, "caught": one.caught} for one in finding.power
        ],
        "catches_noise_factor": finding.catches,
        "refuted": finding.refuted,
    }


def release_of(study: Study, split: Plan) -> Release:
    """The shipped step of the recipe's mode.

    In mode B the sites are the honest ones only: the others are the observer's.
    """
    recipe, family = study.recipe, family_of(study)
    clip, sigma = recipe.clip_micro / MICRO, split.training_sigma_micro / MICRO

    def each(weights: Weights, matrices: Mapping[str, Matrix]) -> dict[str, Weights]:
        sampling = recipe.sampling_micro / MICRO
        return {
            site: private_gradient(
                weights, *matrix, clip=clip, sigma=sigma, family=family, sampling=sampling
            )
            for site, matrix in matrices.items()
        }

    def summed(weights: Weights, matrices: Mapping[str, Matrix]) -> dict[str, Weights]:
        length = sum(array.size for array in weights.values())
        sums = [
            noised_sum(
                clipped_gradients(weights, *matrix, clip=clip, family=family),
                length,
                clip_micro=recipe.clip_micro,
                sigma_micro=split.training_sigma_micro,
                honest=recipe.honest,
                rho_nano=split.rho_round_nano,
            )
            for matrix in matrices.values()
        ]
        total = np.asarray(np.sum(sums, axis=0, dtype=np.int64))
        return {SUM: unflatten(to_numbers(total.view(np.uint64)), weights)}

    return each if recipe.mode == "A" else summed


def observed(
    study: Study,
    matrices: Mapping[str, Matrix],
    release: Release,
    *,
    canaries: int,
    generator: np.random.Generator,
) -> Trial:
    """Train once with canaries, each in by the toss of a coin, and score all of them.

    Args:
        study: What is trained.
        matrices: Each site's training patients; the last column is the constant one.
        release: `release_of`, or a broken one where a test proves that the audit notices.
        canaries: How many, over all sites.
        generator: Tosses the coins; the noise is none of its.
    """
    first = next(iter(matrices.values()))[0].shape[1] - 1
    columns = first + canaries + 1
    members = generator.integers(0, 2, canaries) == 1
    placed = {site: np.arange(i, canaries, len(matrices)) for i, site in enumerate(matrices)}
    real = {site: _widened(matrix, columns) for site, matrix in matrices.items()}
    made = {site: _canaries(real[site], placed[site], study, first) for site in matrices}
    inside = {site: _joined(real[site], made[site], members[placed[site]]) for site in matrices}
    registered = {site: len(matrix[1]) for site, matrix in inside.items()}
    scores = np.zeros(canaries)
    weights = family_of(study).initial(columns, public_seed(study))
    for _ in range(study.recipe.rounds):
        left = release(weights, inside)
        for site, indices in placed.items():
            seen = left[site] if site in left else left[SUM]
            scores[indices] += _evidence(study, weights, real[site], made[site], seen)
        weights = apply_round(weights, left, study.recipe, registered)
    return Trial(members=members, scores=scores)


def _evidence(
    study: Study, weights: Weights, real: Matrix, made: Matrix, seen: Weights
) -> NDArray[np.float64]:
    """Each canary's log-likelihood ratio, in this sum against not, times the noise's variance.

    That factor is the same in every round and for every patient, so ranks and sums keep. Only
    numbers count that no other canary and no real patient moves.
    """
    clip, family = study.recipe.clip_micro / MICRO, family_of(study)
    exact = unsafe_gradient_without_noise(weights, *real, clip=clip, family=family)
    moved = (_flat(exact) != 0).astype(int)
    for lines in clipped_gradients(weights, *made, clip=clip, family=family):
        moved += (lines != 0).sum(axis=0)
    parts = []
    for lines in clipped_gradients(weights, *made, clip=clip, family=family):
        own = lines * (moved == 1)
        parts.append(own @ _flat(seen) - np.square(own).sum(axis=1) / 2)
    return np.concatenate(parts) / clip**2


def _flat(weights: Weights) -> NDArray[np.float64]:
    return np.concatenate(
        [weights[name].astype(np.float64).reshape(-1) for name in sorted(weights)]
    )


def _widened(matrix: Matrix, columns: int) -> Matrix:
    """The real patients, who have none of the codes; those stand before the constant column."""
    x, y = matrix
    none = np.zeros((len(x), columns - x.shape[1]), np.float32)
    return np.hstack([x[:, :-1], none, x[:, -1:]]), y


def _canaries(real: Matrix, indices: NDArray[np.int_], study: Study, first: int) -> Matrix:
    """Rows of these canaries: one code each, no other finding; outcomes as real patients have."""
    x = np.zeros((len(indices), real[0].shape[1]), np.float32)
    x[np.arange(len(indices)), first + indices] = _CODE_CLIPS * study.recipe.clip_micro / MICRO
    return x, real[1][np.arange(len(indices)) % len(real[1])]


def _joined(real: Matrix, made: Matrix, members: NDArray[np.bool_]) -> Matrix:
    return np.vstack([real[0], made[0][members]]), np.concatenate([real[1], made[1][members]])
