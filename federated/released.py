"""A released model as a hospital believes it: only what the pinned hub's signed passport names."""

from dataclasses import dataclass

from coop.artefacts import WEIGHTS_FILE
from coop.canonical import sha256
from coop.client import Client
from coop.documents.envelope import Opened, open_document
from coop.documents.study import Study
from coop.documents.training import Passport
from coop.errors import CoopError, Kind
from coop.families import family_of
from coop.features import columns
from federated.approval import approved_study
from federated.models import Weights, from_safetensors
from federated.site import Site


class ForgedModelError(CoopError):
    """The hub's weights are not those of the signed passport."""

    code = "node.forged-model"
    kind = Kind.FORBIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A model, the study this hospital approved for it, and its state at the hub."""

    passport: Opened[Passport]
    study: Study
    weights: Weights
    state: str


def released(site: Site, client: Client, model_id: str) -> Released:
    """Fetch and check a model.

    Raises:
        NotApprovedError: This hospital approved no such study.
        ForgedModelError: The weights are others than the passport names.
    """
    card = client.get(f"/v1/models/{model_id}")
    passport = open_document(Passport, card["passport"]["document"], issuers={site.trust.hub})
    content = client.get_bytes(f"/v1/models/{model_id}/artefacts/{WEIGHTS_FILE}")
    known = {artefact.name: artefact.sha256 for artefact in passport.subject.artefacts}
    if passport.subject.model_id != model_id or known.get(WEIGHTS_FILE) != sha256(content).hex():
        raise ForgedModelError("model: the weights are not those of the signed passport")
    with site.database.reading() as connection:
        study = approved_study(connection, site, passport.subject.study_sha256).study
    weights = from_safetensors(content, len(columns(study.schema_)), family_of(study))
    return Released(passport=passport, study=study, weights=weights, state=str(card["state"]))
