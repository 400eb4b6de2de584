"""`coop simulate`: what a study would reach, with the training code of the hospitals."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coop.documents.study import Study
    from federated.simulate import Data, Mode, SplitRule

app = typer.Typer(add_completion=False)


@app.command()
def simulate(  # noqa: PLR0913  (the options of a command line)
    study_file: Annotated[Path, typer.Argument(help="Study file, e.g. examples/heart.yaml.")],
    *,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="NAME=CSV per hospital (a study on records: a FHIR export or OMOP database); "
            "none: the four bundled ones.",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="A (every hospital adds the whole noise), B (a share of it) or none.",
        ),
    ] = "A",
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Instead of the study's own.")
    ] = None,
    honest: Annotated[
        int | None,
        typer.Option("--honest", help="Mode B: of how many hospitals the noise is relied on."),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", help="Trainings with independent noise; all are reported.")
    ] = 5,
    hospitals: Annotated[
        int | None,
        typer.Option(help="For scale: deal the patients to so many hospitals, on Flower and Ray."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="With --hospitals: rounds to train.")] = 1,
    split: Annotated[
        str, typer.Option("--split", help="Test patients: auto, flamby or fold.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Train the study on files in one process: same code, no consent, no network.

    The figures are exact, so use it on public files; what a real run releases is noised.
    """
    import orjson

    from coop.documents.study import Study
    from coop.studyfile import load_study
    from federated.simulate import load, with_epsilon
    from federated.simulate import simulate as run
    from federated.simulation_report import report

    chosen_mode, rule = _choices(mode, split)
    study = with_epsilon(Study.model_validate(load_study(study_file)), epsilon)
    data, words = load(study, files_of(site or []), rule)
    if hospitals is not None:
        _many(study, data, hospitals, rounds, as_json=as_json)
        return
    with _bar(runs, quiet=as_json) as advance:
        finished = run(study, data, mode=chosen_mode, runs=runs, honest=honest, progress=advance)
    document = report(study, data, finished, mode=chosen_mode, split_rule=words, honest=honest)
    if as_json:
        print(orjson.dumps(document).decode())
    else:
        _show(document)


def _many(
    study: "Study", data: "Mapping[str, Data]", hospitals: int, rounds: int, *, as_json: bool
) -> None:
    """One training among so many virtual hospitals: how long its rounds take, and its model."""
    import statistics

    import numpy as np
    from rich.progress import Progress

    from coop.cli.output import show, told
    from coop.families import family_of
    from federated.scale import scattered, simulate_many
    from federated.scores import auc

    training = {name: part.train for name, part in data.items()}
    parts, again = scattered(training, hospitals, np.random.default_rng())
    with Progress(disable=as_json, transient=True) as bar:
        task = bar.add_task("starting", total=hospitals * rounds)

        def answered(number: int, count: int) -> None:
            done = (number - 1) * hospitals + count
            bar.update(task, completed=done, description=f"round {number} of {rounds}")

        done = simulate_many(study, parts, rounds=rounds, drawn_again=again, progress=answered)
    tests = [part.test for part in data.values()]
    risks = np.concatenate([family_of(study).predict(done.weights, x) for x, _ in tests])
    binary = study.recipe.family != "cox"
    facts = {
        "hospitals": done.hospitals,
        "patients": done.patients,
        "patients_drawn_again": done.drawn_again,
        "took_part": done.took_part,
        "first_round_seconds": round(done.round_seconds[0], 2),
        "round_seconds": round(statistics.median(done.round_seconds[1:] or done.round_seconds), 2),
        "auc": auc(risks, np.concatenate([y for _, y in tests])) if binary else None,
        "note": "the first round holds Ray's start; mode A, the study's own noise and recipe",
    }
    show(facts, as_json, told(facts))


def _choices(mode: str, split: str) -> "tuple[Mode, SplitRule]":
    from federated.simulate import Mode, SplitRule

    if mode not in set(Mode):
        raise typer.BadParameter("must be A, B or none", param_hint="--mode")
    if split not in set(SplitRule):
        raise typer.BadParameter("must be auto, flamby or fold", param_hint="--split")
    return Mode(mode), SplitRule(split)


def files_of(sites: list[str]) -> dict[str, Path]:
    """Each site's file as given by `--site NAME=CSV`; by default the four bundled ones."""
    from federated.data import SITES, csv_of

    if not sites:
        return {name: csv_of(name) for name in SITES}
    files: dict[str, Path] = {}
    for entry in sites:
        name, equals, path = entry.partition("=")
        if not equals or not name or name in files:
            raise typer.BadParameter("must be NAME=CSV, each name once", param_hint="--site")
        files[name] = Path(path)
    return files


@contextmanager
def _bar(runs: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where a person watches; yields what moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    hidden = quiet or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task("training", total=runs)
        yield lambda: progress.advance(task)


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from federated.data import ATTRIBUTION

    private = document["privacy"]
    promise = (
        f"epsilon {document['epsilon']:g} (training {private['training_epsilon']:.3f}), "
        f"delta {document['delta']:g}, per patient, add/remove; {private['adversary']}"
        if private
        else "no privacy: no noise was added"
    )
    print(f"{document['study_id']}: {document['runs']} runs, {promise}")
    print(f"test patients: {document['split']}")
    references = document["references"]
    table = Table("figure", "mean", "sd", "local only*", "pooled, not private*")
    for name, value in document["metrics"].items():
        others = (references[key][name]["mean"] for key in ("local_only", "pooled_non_private"))
        table.add_row(name, *(_three(v) for v in (value["mean"], value["sd"], *others)))
    Console().print(table)
    _show_matrix(document["cross_site"])
    print(f"* {references['note']}")
    print(ATTRIBUTION)


def _show_matrix(matrix: "Mapping[str, Any]") -> None:
    """AUC of each hospital's own model* and of the one trained together, on each one's patients."""
    from rich.console import Console
    from rich.table import Table

    tested = list(next(iter(matrix.values())))
    table = Table("AUC: trained at*, tested at", *tested)
    for trained, row in matrix.items():
        table.add_row(trained, *(_three(row[site]["auc"]["mean"]) for site in tested))
    Console().print(table)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
