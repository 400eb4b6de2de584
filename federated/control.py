"""What a hospital's staff allow its node: when it trains, how much of the machine, who signs.

Three things, none of which the hub can see or change. *Training hours*: outside them training and
evaluation rounds are refused with one code, before anything is read; cohort questions are answered
all day. *Caps*: processors, memory and priority, set once when the node starts. *Four eyes*: with
two or more approvers registered, this hospital signs a study only after two of them said yes to
exactly the same terms, each with a key of her own.
"""

import os
import re
import resource
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from coop.canonical import jcs, parse_object
from coop.db import metadata
from coop.documents.envelope import Subject, issue, open_document
from coop.documents.study import Sha256
from coop.errors import CoopError, InvalidInputError, Kind
from coop.keys import SigningKey
from federated.site import Site, get_state, put_state

_STATE: Final = "control"
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? )?"
    r"(?P<from>[0-2]\d:[0-5]\d)-(?P<until>[0-2]\d:[0-5]\d)"
)
_DAY_MINUTES: Final = 24 * 60
_WEEK_MINUTES: Final = 7 * _DAY_MINUTES
_MINUTE_S: Final = 60
_VOTE_S: Final = 7 * 86_400
_MEMORY_MIN_MIB: Final = 400  # below it not even the start succeeds
APPROVERS_NEEDED: Final = 2

vote = sa.Table(
    "approval_vote",
    metadata,
    sa.Column("study_sha256", sa.String(64), primary_key=True),
    sa.Column("did", sa.String(100), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)
"""The newest yes of each approver to a study, until the hospital has signed."""


class OutsideHoursError(CoopError):
    """The hospital trains at other hours; ask again later."""

    code = "node.outside-hours"
    kind = Kind.UNAVAILABLE


class WrongControlError(InvalidInputError):
    """A window, a zone or a cap that cannot be meant; the message says how to write it."""

    code = "node.wrong-control"
    kind = Kind.UNPROCESSABLE


class SecondApproverError(CoopError):
    """Four eyes: one approver said yes; another one must say the same."""

    code = "approval.second-approver"
    kind = Kind.CONFLICT


class UnknownApproverError(CoopError):
    """Four eyes: this key is none of the registered approvers'."""

    code = "approval.unknown-approver"
    kind = Kind.FORBIDDEN


class ApprovalVote(Subject):
    """One approver's yes to exactly this study under exactly this cap; never leaves the house."""

    kind: ClassVar[str] = "approval-vote"

    site: str
    study_sha256: str = Sha256
    epsilon_cap_micro: int


class Control(BaseModel):
    """The staff's limits; the default limits nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: tuple[str, ...] = ()
    """`mon-fri 20:00-06:00`, `sat 00:00-24:00`, or without days for all; none: always."""
    zone: str = "UTC"
    cpus: int | None = Field(default=None, ge=1)
    memory_mib: int | None = Field(default=None, ge=_MEMORY_MIN_MIB)
    nice: int = Field(default=0, ge=0, le=19)
    approvers: Mapping[str, str] = Field(default_factory=dict)
    """Name → did; empty: whoever holds the staff token approves alone."""

    @field_validator("hours", mode="after")
    @classmethod
    def _readable(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            _minutes(text)
        return hours

    @field_validator("zone", mode="after")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, OSError, ValueError) as error:
            raise WrongControlError(
                f"zone: {zone[:60]!r} is not known here; like Europe/Zurich (Debian: tzdata)"
            ) from error
        return zone

    @model_validator(mode="after")
    def _enough_of_them(self) -> Self:
        if len(self.approvers) == 1 or len(set(self.approvers.values())) != len(self.approvers):
            raise WrongControlError("approvers: none, or two and more with a key each")
        return self

    def open_at(self, now: int) -> bool:
        """Whether the node trains at this instant (UTC seconds)."""
        if not self.hours:
            return True
        local = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(self.zone))
        minute = (local.weekday() * 24 + local.hour) * 60 + local.minute
        return any(
            (minute - start) % _WEEK_MINUTES < length
            for text in self.hours
            for start, length in _minutes(text)
        )

    def opens(self, now: int) -> int | None:
        """The next minute at which it trains (UTC seconds); None: never."""
        start = now - now % _MINUTE_S
        minutes = range(_WEEK_MINUTES + 1)
        return next((at for m in minutes if self.open_at(at := start + m * _MINUTE_S)), None)


def _minutes(text: str) -> list[tuple[int, int]]:
    """(first minute of the week, how many) of every day the window begins on."""
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise WrongControlError(
            f"hours: {text[:40]!r} is no window; like 'mon-fri 20:00-06:00' or '20:00-06:00'"
        )
    first, last = found["first"] or "mon", found["last"] or found["first"] or "sun"
    if first not in _DAYS or last not in _DAYS:
        raise WrongControlError(f"hours: {text[:40]!r}: days are {' '.join(_DAYS)}")
    since, until = (_clock(found[name], text) for name in ("from", "until"))
    if since == until:
        raise WrongControlError(f"hours: {text[:40]!r} is empty; a whole day is 00:00-24:00")
    length = (until - since) % _DAY_MINUTES or _DAY_MINUTES
    begin, end = _DAYS.index(first), _DAYS.index(last)
    days = range(begin, end + 1 if end >= begin else end + 8)
    return [((day % 7) * _DAY_MINUTES + since, length) for day in days]


def _clock(text: str, window: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    if hours * 60 + minutes > _DAY_MINUTES:
        raise WrongControlError(f"hours: {window[:40]!r}: a day ends at 24:00")
    return hours * 60 + minutes


def read_control(values: Mapping[str, Any]) -> Control:
    """Limits from plain values.

    Raises:
        WrongControlError: One of them cannot be meant; the message names it.
    """
    try:
        return Control.model_validate({**values, "hours": tuple(values.get("hours", ()))})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "limits"
        raise WrongControlError(f"{name}: {first['msg']}") from error


def control_of(connection: sa.Connection) -> Control:
    """The limits in force."""
    text = get_state(connection, _STATE)
    return Control() if text is None else Control.model_validate(parse_object(text))


def save(site: Site, wanted: Control) -> None:
    """Put new limits in force: hours and approvers at once, caps at the node's next start."""
    with site.database.unit_of_work() as connection:
        put_state(connection, _STATE, jcs(wanted.model_dump(mode="json")).decode())


def set_hours(site: Site, hours: Sequence[str], zone: str) -> None:
    """Other training hours, in force at once; the rest stays.

    Raises:
        WrongControlError: A window or the zone cannot be read.
    """
    with site.database.unit_of_work() as connection:
        kept = control_of(connection).model_dump(mode="json")
        wanted = read_control({**kept, "hours": list(hours), "zone": zone})
        put_state(connection, _STATE, jcs(wanted.model_dump(mode="json")).decode())


def refuse_outside_hours(site: Site, now: int) -> None:
    """Return within the training hours.

    Raises:
        OutsideHoursError: Outside them; nothing was read or charged.
    """
    with site.database.reading() as connection:
        control = control_of(connection)
    if not control.open_at(now):
        raise OutsideHoursError("hours: this hospital trains at other hours")


def cap_process(control: Control) -> None:
    """Hold this process and its children to the caps. Called once, before any thread starts.

    What does not fit into the memory fails that one task with a code; the node stays.
    """
    if control.cpus is not None:
        allowed = sorted(os.sched_getaffinity(0))[: control.cpus]
        os.sched_setaffinity(0, allowed)
    if control.memory_mib is not None:
        limit = control.memory_mib * 2**20
        # Of what may be written, not of addresses: torch maps far more than it ever uses.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if control.nice:
        os.nice(max(0, control.nice - os.nice(0)))


def second_look(
    site: Site, study_sha256: str, epsilon_cap_micro: int, by: SigningKey | None, *, now: int
) -> None:
    """Return if this hospital may sign now: no approvers are set, or two said yes to these terms.

    Args:
        site: This hospital.
        study_sha256: Which study.
        epsilon_cap_micro: Under which cap; another cap is another question.
        by: The approver who says yes now.
        now: UTC seconds; a yes holds for seven days.

    Raises:
        UnknownApproverError: Approvers are set, and this key is none of theirs.
        SecondApproverError: It is the first yes; nothing was signed.
    """
    with site.database.unit_of_work() as connection:
        approvers = control_of(connection).approvers
        if not approvers:
            return
        if by is None or by.did not in approvers.values():
            raise UnknownApproverError(
                "approval: two approvers must sign here; name your key with --by "
                f"({', '.join(sorted(approvers))})"
            )
        subject = ApprovalVote(
            site=site.name, study_sha256=study_sha256, epsilon_cap_micro=epsilon_cap_micro
        )
        said = jcs(issue(subject, by, now)).decode()
        own = (vote.c.study_sha256 == study_sha256) & (vote.c.did == by.did)
        connection.execute(sa.delete(vote).where(own))
        connection.execute(
            sa.insert(vote).values(study_sha256=study_sha256, did=by.did, document=said)
        )
        texts = connection.execute(
            sa.select(vote.c.document).where(vote.c.study_sha256 == study_sha256)
        ).scalars()
        agreed = _agreed(list(texts), subject, set(approvers.values()), now)
    if len(agreed) < APPROVERS_NEEDED:
        raise SecondApproverError(
            "approval: your yes is kept for seven days; another approver must say the same, with "
            "the same cap"
        )


def _agreed(texts: list[str], asked: ApprovalVote, approvers: set[str], now: int) -> set[str]:
    found = set()
    for text in texts:
        opened = open_document(ApprovalVote, parse_object(text), issuers=None)
        if opened.subject == asked and opened.issuer in approvers and now - opened.at < _VOTE_S:
            found.add(opened.issuer)
    return found


def facts(site: Site, now: int) -> dict[str, Any]:
    """The limits for the staff, and when training is open next."""
    with site.database.reading() as connection:
        control = control_of(connection)
    said: dict[str, Any] = control.model_dump(mode="json")
    return {**said, "open": control.open_at(now), "opens": control.opens(now)}
