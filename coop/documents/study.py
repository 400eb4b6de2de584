"""The study, its approval by a hospital, and the features it declares.

Numbers in signed documents are integers with the unit in the name: `_micro` is a millionth,
`_pico` a millionth of a millionth, `_nano` a thousand-millionth.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coop.canonical import jcs, sha256
from coop.documents.envelope import Subject
from coop.documents.source import (
    SEXES,
    CategorySource,
    FlagSource,
    Index,
    NumberSource,
    OutcomeSource,
)

MICRO = 1_000_000
NANO = 1_000_000_000
PICO = 1_000_000_000_000
HONEST_MIN = 3
"""Of a masked sum: with two, each would know the other's numbers."""
ROBUST_MIN = 4
"""Of a rule that cuts off one hospital at either end: with fewer, one hospital decides."""

Name = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class Part(BaseModel):
    """Base of a nested part of a subject."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NumberFeature(Part):
    """A number scaled by PUBLIC constants: `clip((x - center) / scale, ±clip) * gain`."""

    kind: Literal["number"]
    name: str = Name
    center_micro: int
    scale_micro: int = Field(gt=0)
    clip_micro: int = Field(gt=0)
    gain_micro: int = Field(gt=0)
    missing: Literal["zero", "indicator", "refuse"] = "zero"
    """A missing value becomes 0; `indicator` adds a 0/1 column; `refuse` leaves the patient out."""
    source: NumberSource = None


class CategoryFeature(Part):
    """A 0/1 column per listed value; any other value is all zeros."""

    kind: Literal["category"]
    name: str = Name
    values: list[str] = Field(min_length=1, max_length=64)
    missing: Literal["zero", "indicator", "refuse"] = "zero"
    source: CategorySource = None


class FlagFeature(Part):
    """A 0/1 column of a true/false field."""

    kind: Literal["flag"]
    name: str = Name
    missing: Literal["zero", "indicator", "refuse"] = "zero"
    source: FlagSource = None


Feature = NumberFeature | CategoryFeature | FlagFeature


class FeatureSchema(Part):
    """What a model reads. Public; no statistic of any hospital scales anything."""

    features: list[Feature] = Field(min_length=1, max_length=256)
    site_intercepts: list[str] = Field(max_length=256)
    """Sites with an own 0/1 column; any other site is all zeros. May be empty."""


class Label(Part):
    """The outcome: 1 where the number in `field` is greater than `above`."""

    field: str = Name
    above: int
    source: OutcomeSource = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field the outcome is read from."""
        return (self.field,)


class SurvivalLabel(Part):
    """The outcome: when something happens, or how long it was seen not to. Of a table only."""

    time: str = Name
    """A number field: when it happened, or until when she was followed; in any unit."""
    event: str = Name
    """A true/false field, or a number above 0: whether it happened then."""
    intervals_micro: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, max_length=100)
    """PUBLIC upper bounds of the time intervals, rising; what comes after the last is not seen."""
    horizon_micro: int
    """One of the bounds: the model's risk is of the event up to here."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field the outcome is read from."""
        return (self.time, self.event)

    @property
    def source(self) -> OutcomeSource:
        """None: it cannot be extracted from records."""
        return None

    @model_validator(mode="after")
    def _rises_to_its_horizon(self) -> Self:
        if any(low >= high for low, high in pairwise(self.intervals_micro)):
            raise ValueError("intervals: must rise")
        if self.horizon_micro not in self.intervals_micro:
            raise ValueError("horizon: must be one of the intervals' bounds")
        if self.time == self.event:
            raise ValueError("event: must be another field than time")
        return self


Outcome = Label | SurvivalLabel


@dataclass(frozen=True, slots=True)
class Schedule:
    """The training rounds that a budget must pay for."""

    rounds: int
    sampling_micro: int = MICRO
    noise_micro: int | None = None
    """Stated with a sample; of whole batches it follows from the budget."""


class Recipe(Part):
    """How the model is trained: DP gradient rounds over all patients, or a secret sample."""

    family: Literal["logistic-regression", "mlp", "cox"]
    hidden: int | None = Field(default=None, ge=1, le=64)
    """Width of the mlp's one hidden layer."""
    activation: Literal["tanh", "relu"] | None = None
    """Of the mlp's hidden layer."""
    sampling_micro: int = Field(default=MICRO, ge=1, le=MICRO)
    """q: the chance of each patient, on her own, to be in a round (Poisson sampling)."""
    noise_micro: int | None = Field(default=None, gt=0)
    """The noise multiplier of a sampled training: hospitals check that the budget pays for it.
    Without sampling it follows from the budget."""
    rounds: int = Field(ge=1, le=1000)
    learning_rate_micro: int = Field(gt=0)
    clip_micro: int = Field(gt=0)
    average_last: int = Field(ge=1, le=1000)
    """The released weights are the mean of the last so many iterates."""
    population: int = Field(ge=1)
    """Public N the gradient sum is divided by; never a count of today's cohort."""
    aggregation: Literal["sum", "trimmed-mean", "median"] = "sum"
    """How updates become one; the others hold against a few bad hospitals (`federated.robust`)."""
    mode: Literal["A", "B"] = "A"
    """A: every hospital adds the whole noise. B: a share of it, under a masked sum."""
    honest: int = Field(default=1, ge=1, le=50)
    """h of mode B: of the hospitals in a sum, how many are relied on to have added their share."""

    @property
    def schedule(self) -> Schedule:
        """Its rounds, as the budget's plan asks for them."""
        return Schedule(self.rounds, self.sampling_micro, self.noise_micro)

    @model_validator(mode="after")
    def _relies_on_some(self) -> Self:
        if (self.mode == "A") != (self.honest == 1):
            raise ValueError("honest: 1 in mode A, and 3 or more in mode B")
        if self.mode == "B" and self.honest < HONEST_MIN:
            raise ValueError("honest: 3 or more in mode B")
        if self.mode == "B" and self.aggregation != "sum":
            raise ValueError("aggregation: sum in mode B, where nobody sees a single update")
        return self

    @model_validator(mode="after")
    def _says_what_its_family_needs(self) -> Self:
        said = [self.hidden is not None, self.activation is not None]
        if said != [self.family == "mlp"] * 2:
            raise ValueError("hidden and activation: both for mlp, and for mlp only")
        return self

    @model_validator(mode="after")
    def _says_what_its_sampling_needs(self) -> Self:
        sampled = self.sampling_micro < MICRO
        if sampled is (self.noise_micro is None):
            raise ValueError("noise: with sampling below 1, and only then")
        if sampled and self.mode == "B":
            raise ValueError("sampling: 1 in mode B")
        return self


class Budget(Part):
    """What one patient pays at most for this study, and how it is split (percent of rho)."""

    epsilon_micro: int = Field(gt=0, le=3 * MICRO)
    delta_pico: int = Field(gt=0, le=10_000_000)  # 1e-5
    training_percent: int = Field(ge=1, le=100)
    evaluation_percent: int = Field(ge=0, le=100)
    reserve_percent: int = Field(ge=0, le=100)
    cohort_rho_nano: int = Field(ge=0)
    """A line of its own for cohort questions, on top of the study's epsilon; in zCDP rho."""

    @property
    def cohort_question_min_nano(self) -> int:
        """The least one cohort question may spend: a line pays at most a thousand questions.

        Below it the answers are all noise, and each would add a line to every patient's list.
        """
        return max(2, -(-self.cohort_rho_nano // 1000))


class Evaluation(Part):
    """How the model is evaluated on patients who did not train it."""

    fold_percent: int = Field(ge=0, le=50)
    bins: int = Field(ge=2, le=100)
    group_field: str = Name
    """A category field whose values are the subgroups."""
    groups: list[str] = Field(min_length=1, max_length=16)
    floor_micro: int | None = Field(default=None, ge=0, le=MICRO)
    """The least AUC of every subgroup: a model surely below it answers nothing (`coop.fairness`).
    Every hospital votes for it with its approval. Without it, no floor."""


class Remediation(Part):
    """What becomes of the model when patients whose records may have trained it withdraw."""

    policy: Literal["keep", "retrain", "retire"] = "keep"
    """keep: it stays, under its privacy bound. retrain: it stays until a new version of the study,
    with approvals and a budget of its own, has a model. retire: it answers nothing any more."""
    percent: int = Field(default=10, ge=1, le=100)
    """How many percent of those who permitted the study must have withdrawn before it acts."""


class CohortGrammar(Part):
    """Which fields a cohort question may name, and how."""

    number_fields: list[str] = Field(max_length=256)
    category_fields: list[str] = Field(max_length=256)


class Study(Subject):
    """What a researcher asks: who, why, on what, how, at what cost in privacy and credits."""

    kind: ClassVar[str] = "study"

    study_id: str = Name
    version: int = Field(ge=1)
    title: str = Field(min_length=3, max_length=200)
    lay_summary: str = Field(min_length=20, max_length=4000)
    proposer: str = Field(min_length=1, max_length=200)
    commercial: bool
    purpose: str = Field(pattern=r"^DUO:[0-9]{7}$")
    disease: str | None = Field(default=None, pattern=r"^MONDO:[0-9]{7}$")
    further_purposes: list[Annotated[str, Field(pattern=r"^(DUO|MONDO):[0-9]{7}$")]] = Field(
        default_factory=list, max_length=15
    )
    """Every other purpose of the study; a record is used only if its owner permits each of them."""
    data_class: str = Name
    uses: list[str] = Field(min_length=1)
    ethics_reference: str = Field(min_length=1, max_length=200)
    ethics_sha256: str = Sha256
    schema_: FeatureSchema = Field(alias="features")
    label: Outcome
    index: Index | None = None
    """With it, every field has a source: the rows are extracted from records. Without it, they are
    the columns of a table that the hospital imports."""
    recipe: Recipe
    budget: Budget
    evaluation: Evaluation
    cohort: CohortGrammar
    remediation: Remediation = Remediation()
    fee_point_nano: int = Field(ge=0)
    fee_cohort_nano: int = Field(ge=0)
    hospitals_quorum: int = Field(ge=1)
    expires: int
    """UTC seconds after which nothing may be trained or asked under this study."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    @property
    def extract(self) -> str:
        """Name of the rows this study reads: of its own extract, or "" for the imported table.

        Studies that ask for the same values of the same records share one extract.
        """
        if self.index is None:
            return ""
        asked = {
            feature.name: {
                "kind": feature.kind,
                "source": feature.source.model_dump(mode="json", exclude_none=True),
            }
            for feature in self.schema_.features
            if feature.source is not None
        }
        label = self.label.source
        outcome = None if label is None else label.model_dump(mode="json", exclude_none=True)
        index = self.index.model_dump(mode="json", exclude_none=True)
        return sha256(
            jcs({"index": index, "fields": asked, "label": {self.label.fields[0]: outcome}})
        ).hex()

    @model_validator(mode="after")
    def _asks_for_enough_hospitals(self) -> Self:
        if self.recipe.aggregation != "sum" and self.hospitals_quorum < ROBUST_MIN:
            raise ValueError(
                f"hospitals_quorum: {ROBUST_MIN} or more for {self.recipe.aggregation}; with fewer "
                "hospitals one of them decides"
            )
        return self

    @model_validator(mode="after")
    def _predicts_what_its_family_can(self) -> Self:
        if isinstance(self.label, SurvivalLabel) and self.index is not None:
            raise ValueError("label: a time to an event is read from a table, not from records")
        if (self.recipe.family == "cox") is not isinstance(self.label, SurvivalLabel):
            raise ValueError("label: time, event and intervals for cox; field and above for others")
        return self

    @model_validator(mode="after")
    def _asks_for_values_that_sources_give(self) -> Self:
        for feature in self.schema_.features:
            if isinstance(feature, CategoryFeature) and feature.source is not None:
                unknown = set(feature.values) - set(feature.source.values or SEXES)
                if unknown:
                    raise ValueError(f"{feature.name}: its source gives no {min(unknown)}")
        return self

    @model_validator(mode="after")
    def _states_every_source_or_none(self) -> Self:
        fields = {feature.name: feature.source for feature in self.schema_.features}
        stated = [*fields.values(), self.label.source]
        if self.index is None:
            if any(source is not None for source in stated):
                raise ValueError("index: needed where a field has a source")
            return self
        for name, source in [*fields.items(), ("label", self.label.source)]:
            if source is None:
                raise ValueError(f"{name}: needs a source, as every field where there is an index")
        if fields.keys() & set(self.label.fields):
            raise ValueError("label.field: must not be a feature")
        known = {*fields, *self.label.fields}
        asked = {*self.cohort.number_fields, *self.cohort.category_fields}
        for name in [self.evaluation.group_field, *sorted(asked)]:
            if name not in known:
                raise ValueError(f"{name}: is not among the extracted fields")
        return self


class Approval(Subject):
    """A hospital's own signature under exactly this study, software and plan."""

    kind: ClassVar[str] = "approval"

    study_sha256: str = Sha256
    study_id: str
    version: int
    site: str = Name
    data_version: int
    epsilon_cap_micro: int
    software: str
    fab_sha256: str = Sha256
    witnesses: dict[str, str]
    """Every other member site and its did as this hospital knows them: who must cosign the log."""
    expires: int
