"""Released models over HTTP: cards, files and passports, open to everybody."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response

from coop import catalogue, members, remediation
from coop.catalogue import Catalogue, ModelRow
from coop.doors import CallerDep, Doors, Principal, WrongPrincipalError
from coop.hub.bodies import Body

ModelId = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,99}$")]
FileName = Literal["model.safetensors", "model.onnx", "io.json"]


class ModelAnswer(Body):
    """One line of the catalogue."""

    model_id: str
    study_id: str
    version: int
    order_sha256: str
    passport_sha256: str
    state: str
    title: str


class ModelsAnswer(Body):
    """The catalogue."""

    models: list[ModelAnswer]


class PassportAnswer(Body):
    """The signed passport; `/bundle` adds its proof in the log."""

    digest: str
    document: dict[str, Any]


class WithdrawalsAnswer(Body):
    """How many of those who permitted the study have withdrawn, and what the study does then."""

    policy: str
    percent: int
    permitted: int
    withdrawn: int
    rounds: int


class CardAnswer(ModelAnswer):
    """A model's card: what it is for, what it reads, and its passport."""

    withdrawals: WithdrawalsAnswer

    lay_summary: str
    proposer: str
    purpose: str
    disease: str | None = None
    commercial: bool
    features: dict[str, Any]
    label: dict[str, Any]
    fee_point_nano: int
    fee_cohort_nano: int
    expires: int
    passport: PassportAnswer


def routes(doors: Doors, models: Catalogue) -> APIRouter:
    """The catalogue's routes."""
    router = APIRouter(tags=["models"])

    @doors.route(router, "GET", "/v1/models", Principal.PUBLIC)
    def listed() -> ModelsAnswer:
        """Every released model."""
        with doors.database.reading() as connection:
            found = [_line(row) for row in catalogue.models(connection)]
        return ModelsAnswer(models=[ModelAnswer.model_validate(line) for line in found])

    @doors.route(router, "GET", "/v1/models/{model_id}", Principal.PUBLIC)
    def card(model_id: ModelId) -> CardAnswer:
        """The model's card with its signed passport."""
        with doors.database.reading() as connection:
            row = catalogue.model(connection, model_id)
            document = models.journal.document(connection, row.passport_digest)
            found = remediation.withdrawals(connection, models.journal, row)
        passport = {"digest": row.passport_digest, "document": document}
        shown = {name: value for name, value in row.card.items() if name != "record_sha256s"}
        left = {
            "policy": found.rule.policy,
            "percent": found.rule.percent,
            "permitted": found.permitted,
            "withdrawn": found.withdrawn,
            "rounds": found.rounds,
        }
        return CardAnswer.model_validate(
            {**shown, **_line(row), "passport": passport, "withdrawals": left}
        )

    @doors.route(
        router,
        "GET",
        "/v1/models/{model_id}/artefacts/{name}",
        Principal.PUBLIC,
        response_class=Response,
    )
    def file(model_id: ModelId, name: FileName) -> Response:
        """One file of the model; its digest stands in the passport."""
        with doors.database.reading() as connection:
            body = catalogue.artefact(connection, model_id, name)
        kind = "application/json" if name.endswith(".json") else "application/octet-stream"
        return Response(body, media_type=kind)

    @doors.route(router, "GET", "/v1/models/{model_id}/bundle", Principal.PUBLIC)
    def bundle(model_id: ModelId) -> dict[str, Any]:
        """The passport and every round record with their proofs, for `coop verify passport`."""
        with doors.database.reading() as connection:
            row = catalogue.model(connection, model_id)
            sites = members.site_dids(connection)
            digests = [row.passport_digest, *_records(row)]
            found = [models.journal.receipt(connection, digest, sites=sites) for digest in digests]
        return {**found[0], "records": found[1:]}

    @doors.route(router, "POST", "/v1/models/{model_id}:retire", Principal.STAFF)
    def retire(model_id: ModelId, caller: CallerDep) -> ModelAnswer:
        """Take a model out of use: it answers nothing from the next request on."""
        if not caller.is_coop_staff:
            raise WrongPrincipalError("this is for the cooperative's own staff")
        with doors.database.unit_of_work() as connection:
            remediation.retire(connection, models, model_id)
            row = catalogue.model(connection, model_id)
        return ModelAnswer.model_validate(_line(row))

    return router


def _records(row: ModelRow) -> list[str]:
    digests = row.card["record_sha256s"]
    return [str(digest) for digest in digests] if isinstance(digests, list) else []


def _line(row: ModelRow) -> dict[str, Any]:
    return {
        "model_id": row.model_id,
        "study_id": row.study_id,
        "version": row.version,
        "order_sha256": row.order_sha256,
        "passport_sha256": row.passport_digest,
        "state": row.state,
        "title": row.card.get("title", row.study_id),
    }
