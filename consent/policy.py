"""The policy a patient signs: checked as a whole, never half-valid; and the ready-made choices.

An unknown code is refused, never dropped: an empty list means "any", so dropping would widen.

Core: pure, no I/O.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from pydantic import ValidationError

from consent.purposes import (
    CORONARY,
    DISEASES,
    DS,
    GRU,
    MODIFIERS,
    NOT_FOR_PROFIT,
    PERMISSIONS,
    USES,
    Use,
    is_disease,
)
from coop.canonical import Json
from coop.documents.provision import TIME_MAX, Policy, Provision
from coop.errors import InvalidInputError, Kind

DEPTH_MAX: Final = 5  # the deepest ready-made policy has 2 levels, a hospital's form 3
PROVISIONS_MAX: Final = 128  # a policy is read by a person
NAME_MAX: Final = 200  # longest organisation name
COMMERCIAL: Final = "commercial"
DATA_CLASS: Final = "cardiology"
_RESEARCH: Final = (Use.TRAIN, Use.EVALUATE, Use.RELEASE, Use.INFER)
_TRAINING: Final = (Use.TRAIN, Use.EVALUATE, Use.RELEASE)
_MICRO: Final = 1_000_000
_YEAR_9999: Final = 253_402_300_799  # the last second a calendar date can name


class PolicyError(InvalidInputError):
    """The policy is not one that a machine can obey to the letter."""

    code = "consent.bad-policy"
    kind = Kind.UNPROCESSABLE


class Preset(StrEnum):
    """The ready-made choices of the portal."""

    ALL_RESEARCH = "all-research"
    """Any non-commercial research on one class of data."""
    WITH_COMPANIES = "with-companies"
    """The same, and companies too."""
    NO_COMPANIES = "no-companies"
    """Any not-for-profit research on any class of data."""
    TRAIN_ONLY = "train-only"
    """`all-research` without cohort questions."""
    DISEASE_ONLY = "disease-only"
    THIS_STUDY = "this-study"
    REFUSE = "refuse"
    """A decision, too: nothing is allowed."""


def parse(value: Json) -> Policy:
    """The policy in a JSON value, shape and codes checked.

    Raises:
        PolicyError: Not a policy; the message names the field.
    """
    try:
        policy = Policy.model_validate(value)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise PolicyError(f"policy.{where}: {error.errors()[0]['msg']}") from error
    except RecursionError as error:
        raise PolicyError("policy.provision: nested too deeply") from error
    check(policy)
    return policy


def check(policy: Policy) -> None:
    """Return if every code of `policy` is known and every provision says something clear.

    Raises:
        PolicyError: It does not; the message names the provision by its path.
    """
    for number, (path, depth, provision) in enumerate(walk(policy.provision)):
        if depth >= DEPTH_MAX or number >= PROVISIONS_MAX:
            raise PolicyError(f"policy.{path}: more than {PROVISIONS_MAX} rules or too deep")
        _check_provision(path, provision)


def walk(provision: Provision, path: str = "provision") -> Iterator[tuple[str, int, Provision]]:
    """Every provision of a tree with its path and depth, parents first."""
    waiting = [(path, 0, provision)]
    while waiting:
        name, depth, current = waiting.pop()
        yield name, depth, current
        if depth >= DEPTH_MAX:  # `check` refuses it; never walk a bomb
            continue
        waiting += [
            (f"{name}.children.{number}", depth + 1, child)
            for number, child in enumerate(current.children)
        ]


def preset(
    name: str,
    *,
    data_class: str = DATA_CLASS,
    disease: str | None = None,
    study_id: str | None = None,
    epsilon_cap_micro: int | None = None,
    end: int = TIME_MAX,
) -> Policy:
    """A ready-made policy, valid until `end` (exclusive, UTC seconds).

    Args:
        name: One of `Preset`.
        data_class: The kind of record it covers.
        disease: MONDO code; needed by `disease-only`.
        study_id: Needed by `this-study`.
        epsilon_cap_micro: The patient's own ceiling per study; None leaves it to the hospital.
        end: When it ends by itself.

    Raises:
        PolicyError: Unknown name, or the disease or study is missing.
    """
    try:
        choice = Preset(name)
    except ValueError as error:
        raise PolicyError(f"preset: must be one of {', '.join(Preset)}") from error
    if choice is Preset.REFUSE:
        return Policy(provision=Provision(type="deny"), epsilon_cap_micro=epsilon_cap_micro)
    narrow = choice is Preset.NO_COMPANIES
    allowed = Provision(
        type="permit",
        end=end,
        actions=[str(use) for use in (_TRAINING if choice is Preset.TRAIN_ONLY else _RESEARCH)],
        purposes=[_purpose(choice, disease), *([NOT_FOR_PROFIT] if narrow else [])],
        classes=[] if narrow else [data_class],
        actors=_studies(choice, study_id),
    )
    children = [allowed]
    if choice is not Preset.WITH_COMPANIES:
        children.append(Provision(type="deny", actors=[COMMERCIAL]))
    policy = Policy(
        provision=Provision(type="deny", children=children), epsilon_cap_micro=epsilon_cap_micro
    )
    check(policy)
    return policy


def preset_of(policy: Policy) -> str | None:
    """Which ready-made choice a policy is, whatever its class of data, end and ceiling."""
    permits = [part for _, _, part in walk(policy.provision) if part.type == "permit"]
    first = permits[0] if permits else Provision(type="permit")
    for choice in Preset:
        made = preset(
            choice,
            data_class=(first.classes or [DATA_CLASS])[0],
            disease=next((code for code in first.purposes if is_disease(code)), CORONARY),
            study_id=(first.actors or ["-"])[0],
            end=first.end,
        )
        if made.provision == policy.provision:
            return str(choice)
    return None


def summary(policy: Policy | None) -> list[list[str]]:
    """What a policy says, as lines of label and value for the person who signs it."""
    if policy is None:
        return []
    permits = [part for _, _, part in walk(policy.provision) if part.type == "permit"]
    if not permits:
        return [["My record may", "not be used for research"]]
    lines = []
    for part in permits:
        lines.append(["My record may", "; ".join(_words(part.actions, USES, "be used in any way"))])
        lines.append(["For", "; ".join(_words(part.purposes, _PURPOSE_WORDS, "any purpose"))])
        lines.append(["Kind of data", ", ".join(part.classes) or "all"])
        if part.actors:
            lines.append(["Only by or in", ", ".join(part.actors)])
        lines += _periods(part)
    denied = sorted(
        {actor for _, _, p in walk(policy.provision) if p.type == "deny" for actor in p.actors}
    )
    if denied:
        words = ["companies" if actor == COMMERCIAL else actor for actor in denied]
        lines.append(["Never by", ", ".join(words)])
    if policy.epsilon_cap_micro is not None:
        whole, rest = divmod(policy.epsilon_cap_micro, _MICRO)
        lines.append(
            ["Privacy cost per study at most", f"ε {whole}.{rest:06d}".rstrip("0").rstrip(".")]
        )
    if policy.min_cohort is not None:
        lines.append(["Only in studies of at least", f"{policy.min_cohort} people"])
    return lines


_PURPOSE_WORDS: Final = {**PERMISSIONS, **{code: words for code, (words, _) in DISEASES.items()}}


def _words(codes: Sequence[str], known: dict[str, str] | object, empty: str) -> list[str]:
    table = known if isinstance(known, dict) else {}
    return [table.get(code, code) for code in codes] or [empty]


def _periods(part: Provision) -> list[list[str]]:
    lines = [["Until", "I change it" if part.end == TIME_MAX else _day(part.end)]]
    if part.start > 0:
        lines.append(["Not before", _day(part.start)])
    if part.data_start > 0:
        lines.append(["Only what was recorded from", _day(part.data_start)])
    if part.data_end < TIME_MAX:
        lines.append(["Only what was recorded before", _day(part.data_end)])
    return lines


def _day(seconds: int) -> str:
    """The instant as people read it: a date, with the time unless it is midnight (UTC)."""
    if seconds > _YEAR_9999:
        return f"second {seconds}"
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return text.removesuffix(" 00:00:00 UTC")


def _purpose(choice: Preset, disease: str | None) -> str:
    if choice is not Preset.DISEASE_ONLY:
        return GRU
    if disease is None:
        raise PolicyError("disease: disease-only needs a MONDO code")
    return disease


def _studies(choice: Preset, study_id: str | None) -> list[str]:
    if choice is not Preset.THIS_STUDY:
        return []
    if study_id is None:
        raise PolicyError("study_id: this-study needs a study")
    return [study_id]


def _check_provision(path: str, provision: Provision) -> None:
    _check_periods(path, provision)
    for action in provision.actions:
        if action not in USES:
            raise PolicyError(f"policy.{path}.actions: {action[:40]!r} is no use we know")
    permissions = [code for code in provision.purposes if code not in MODIFIERS]
    for code in permissions:
        if code == DS:
            raise PolicyError(f"policy.{path}.purposes: name the disease by its MONDO code")
        if code not in PERMISSIONS and not is_disease(code):
            raise PolicyError(f"policy.{path}.purposes: {code[:40]!r} is no purpose we know")
    modifiers = len(permissions) < len(provision.purposes)
    # Beside no permission a modifier would leave "any purpose"; on a deny it would narrow the deny.
    if modifiers and (not permissions or provision.type == "deny"):
        raise PolicyError(f"policy.{path}.purposes: a modifier belongs beside what it permits")
    for name, codes in (("classes", provision.classes), ("actors", provision.actors)):
        if any(not _is_plain(code) for code in codes):
            raise PolicyError(f"policy.{path}.{name}: an entry is empty, too long or no plain text")


def _is_plain(name: str) -> bool:
    """Whether every other system that names it can hold it: printable, one space between words."""
    return 0 < len(name) <= NAME_MAX and name.isprintable() and " ".join(name.split()) == name


def _check_periods(path: str, provision: Provision) -> None:
    if provision.start >= provision.end:
        raise PolicyError(f"policy.{path}: its period is empty")
    if provision.data_start >= provision.data_end:
        raise PolicyError(f"policy.{path}: its data window is empty")
    # "Deny what was recorded before 2020" leaves open what it does to the rest: say it as a permit.
    if provision.type == "deny" and (provision.data_start, provision.data_end) != (0, TIME_MAX):
        raise PolicyError(f"policy.{path}: a data window belongs on what it permits")
