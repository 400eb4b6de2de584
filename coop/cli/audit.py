"""`coop audit`: does the training keep the privacy that is claimed for it?

Exit 0: the claim stands. Exit 1: it is refuted, or the audit failed. Exit 2: wrong usage.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from coop.cli.output import show
from coop.errors import CoopError, Kind

if TYPE_CHECKING:
    from coop.documents.study import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Audits of what is claimed.")

_MICRO: Final = 1_000_000
_STUDY_FILES: Final = (".yaml", ".yml")


class ClaimRefutedError(CoopError):
    """An attack told better than the claimed epsilon allows who was trained on."""

    code = "audit.claim-refuted"
    kind = Kind.CONFLICT


class OtherStudyError(CoopError):
    """The hub's study is not the one the model's passport names."""

    code = "audit.other-study"
    kind = Kind.CONFLICT


@app.callback()
def _audit() -> None:
    """A group even with one command: its name is `coop audit privacy`."""


@app.command()
def privacy(
    which: Annotated[
        str, typer.Argument(metavar="MODEL|STUDY_FILE", help="A released model, or a study file.")
    ],
    *,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="A study file: instead of its own.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(help="Patients made for the attack, in each run.")
    ] = 1000,
    runs: Annotated[int, typer.Option(help="Shadow trainings; their canaries add up.")] = 10,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="NAME=CSV per hospital; none: the four bundled ones."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Train a shadow copy with canaries in it and try to tell which of them were used.

    Prints a lower bound of the true epsilon beside the claimed one, and how wrong the noise would
    have to be for this audit to notice. Nothing of the shadow is kept or sent.
    """
    import numpy as np

    from coop.cli.simulate import files_of
    from federated.shadow import audit, report
    from federated.simulate import SplitRule, load

    study, claimed, source = _target(which, epsilon)
    files = files_of(site or [])
    data, _ = load(study, files, SplitRule.AUTO)
    done = audit(
        study,
        {name: part.train for name, part in data.items()},
        epsilon=claimed,
        canaries=canaries,
        runs=runs,
        generator=np.random.default_rng(),
    )
    digests = {name: _digest(files[name]) for name in done.patients}
    document = {**source, **report(study, done), "files": digests}
    show(document, as_json, _text(document))
    if done.finding.refuted:
        raise ClaimRefutedError(
            f"{which}: the training reveals more than epsilon {claimed:g} allows; do not train or "
            "release with this software until the cause is found"
        )


def _target(which: str, epsilon: float | None) -> "tuple[Study, float, dict[str, object]]":
    """The study, the epsilon claimed for its training, and where both come from."""
    path = Path(which)
    if path.suffix not in _STUDY_FILES and not path.is_file():
        if epsilon is not None:
            raise typer.BadParameter("a model claims its own", param_hint="--epsilon")
        return _model(which)
    from coop.documents.study import Study
    from coop.studyfile import load_study
    from federated.accounting import plan
    from federated.simulate import with_epsilon

    study = with_epsilon(Study.model_validate(load_study(path)), epsilon)
    claimed = plan(study.budget, study.recipe.schedule).training_epsilon
    return study, claimed, {"model_id": None, "study_file_sha256": _digest(path)}


def _model(model_id: str) -> "tuple[Study, float, dict[str, object]]":
    from coop.client import Client
    from coop.documents.envelope import open_document
    from coop.documents.study import Study
    from coop.documents.training import Passport
    from coop.settings import Settings

    settings = Settings()
    with Client(settings.hub_url, settings.ca_file) as client:
        card = client.get(f"/v1/models/{model_id}")
        # Who signed it is `coop model verify`'s question; here its claim is put to the test.
        opened = open_document(Passport, card["passport"]["document"], issuers=None)
        passport = opened.subject
        answer = client.get(f"/v1/studies/{passport.study_id}", version=passport.version)
    study = open_document(Study, answer["document"], issuers=None)
    if study.digest != passport.study_sha256:
        raise OtherStudyError(f"{passport.study_id}: not the study of this model's passport")
    claimed = passport.training_epsilon_micro / _MICRO
    return study.subject, claimed, {"model_id": model_id, "passport_sha256": opened.digest}


def _digest(path: Path) -> str:
    from coop.canonical import sha256

    return sha256(path.read_bytes()).hex()


def _text(said: dict[str, Any]) -> str:
    catches = said["catches_noise_factor"]
    power = (
        f"would have caught noise x {catches:g} or less, 9 times in 10; a smaller error may pass"
        if catches
        else "none: so few canaries prove nothing at this epsilon; take more, or more --runs"
    )
    lines = {
        "audited": f"{said['model_id'] or said['study_id']}, training only; {said['adversary']}",
        "canaries": f"{said['canaries']}, each in or out by a coin, in {said['runs']} shadow "
        f"training(s) beside {sum(said['patients'].values())} real patients",
        "each is": said["canary_kind"],
        "claimed": f"epsilon {said['claimed_epsilon']:.3f} at delta {said['delta']:g}",
        "lower bound": f"epsilon {said['epsilon_lower_bound']:.3f}; "
        f"{said['epsilon_lower_bound_gaussian']:.3f} if the noise is Gaussian "
        f"({said['confidence']:.0%} confidence)",
        "attack": f"AUC {said['attack_auc']:.3f}; the best there is has "
        f"{said['attack_auc_best']:.3f} if the claim is exact",
        "power": power,
        "verdict": "REFUTED" if said["refuted"] else "not refuted",
    }
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items())
