"""Credits over HTTP: statements, dividends with all their inputs, a member's own credits.

What is public names hospitals and sums; people appear as the kind of their account and nothing
else. A patient sees no amount before she has stored a consent choice: credits are for the use of
results, never for a yes.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Final, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse
from pydantic import Field

from coop import ledger, members
from coop.accounts import AccountKind, kind_of
from coop.canonical import Json
from coop.documents.dividend import Dividends
from coop.doors import Caller, CallerDep, Doors, Principal, WrongPrincipalError
from coop.economy import Economy
from coop.errors import NotFoundError
from coop.hub.bodies import Body
from coop.ledger_check import check
from coop.ledger_export import EXPORTS, Format
from coop.money import SUPPLY_MAX_NANO, NanoCredits
from coop.pools import accruals, models_with_pools, published
from coop.statements import Line, statement

_PRIVATE: Final = frozenset({AccountKind.RESEARCHER, AccountKind.PATIENT, AccountKind.MEMBER})
_LINES: Final = 200  # of a statement in one answer
ModelId = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,99}$")]
Code = Annotated[str, Path(max_length=200, description="An account's code, or `mine`.")]
T = TypeVar("T")
HasChoice = Callable[[sa.Connection, str], bool]
"""Whether a consent event of this pid is stored."""


class LineAnswer(Body):
    """One transfer; `amount_nano` is positive when the account gained."""

    journal_id: int
    kind: str
    at: int
    other: str
    amount_nano: int
    meta: dict[str, object]


class StatementAnswer(Body):
    """An account's balance and its newest transfers."""

    account: str
    balance_nano: int
    held_nano: int
    lines: list[LineAnswer]


class IssueBody(Body):
    """Credits a researcher has paid for."""

    account_id: int = Field(gt=0, lt=2**63)
    amount_nano: int = Field(gt=0, le=SUPPLY_MAX_NANO)
    key: str = Field(min_length=1, max_length=100)


class IssueAnswer(Body):
    """The entry; `created` is false when the key had been used for the same before."""

    journal_id: int
    created: bool


class FindingAnswer(Body):
    """One thing that is not as it must be."""

    invariant: str
    what: str


class CheckAnswer(Body):
    """Totals of the whole ledger, and whether every invariant holds."""

    ok: bool
    accounts: int
    journals: int
    transfers: int
    holds: int
    pools: int
    windows: int
    supply_nano: int
    findings: list[FindingAnswer]


class ModelsAnswer(Body):
    """The models that pay dividends."""

    models: list[str]


class ClosedAnswer(Body):
    """The windows just closed; none if no fee had come."""

    model_id: str
    revenue_nano: int
    windows: list[dict[str, object]]


class PidCredits(Body):
    """What one record earned; no amount before a consent choice is stored."""

    pid: str
    site: str
    choice_stored: bool
    waiting_nano: int | None = None
    models: dict[str, int] | None = None


class Collected(Body):
    """One payout."""

    at: int
    what: str
    nano: int


class CreditsAnswer(Body):
    """A member's credits; without a stored choice only `shown: false`."""

    shown: bool
    waiting_nano: int | None = None
    collected_nano: int | None = None
    pids: list[PidCredits] = Field(default_factory=list)
    statement: list[Collected] = Field(default_factory=list)


class ClaimAnswer(Body):
    """What was paid out by this claim."""

    claimed_nano: int


def routes(
    doors: Doors, economy: Economy, has_choice: HasChoice, share_questions: Callable[[], object]
) -> APIRouter:
    """The economy's routes; `share_questions` opens pools for fees of questions without a model."""
    router = APIRouter(tags=["credits"])
    _ledger_routes(router, doors, economy)
    _dividend_routes(router, doors, economy, share_questions)
    _credit_routes(router, doors, economy, has_choice)
    return router


def _ledger_routes(router: APIRouter, doors: Doors, economy: Economy) -> None:
    # Reading every row takes long: one at a time, and whoever waits holds no thread of the hub's.
    reader = ThreadPoolExecutor(1, thread_name_prefix="books")

    async def read(work: Callable[[sa.Connection], T]) -> T:
        def look() -> T:
            with doors.database.reading() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(reader, look)

    @doors.route(router, "GET", "/v1/ledger/accounts/{code}", Principal.PUBLIC)
    def account_statement(
        code: Code, caller: CallerDep, before: Annotated[int | None, Query(ge=1)] = None
    ) -> StatementAnswer:
        """An account's statement: `mine`, or one that is public."""
        code = _own_code(caller) if code == "mine" else code
        if kind_of(code) in _PRIVATE and code not in _own_codes(caller):
            raise NotFoundError("account: none of this name is yours")
        with doors.database.reading() as connection:
            have = ledger.balance(connection, code)
            lines = statement(connection, code, before=before, limit=_LINES)
        own = code in _own_codes(caller)
        return StatementAnswer(
            account=code,
            balance_nano=have.posted,
            held_nano=have.held,
            lines=[_line(line, own=own) for line in lines],
        )

    @doors.route(router, "GET", "/v1/ledger/check", Principal.PUBLIC)
    async def checked() -> CheckAnswer:
        """Check every invariant over every row."""
        found = asdict(await read(check))
        return CheckAnswer.model_validate({"ok": not found["findings"], **found})

    @doors.route(
        router,
        "GET",
        "/v1/ledger/export/{form}",
        Principal.PUBLIC,
        response_class=PlainTextResponse,
    )
    async def exported(form: Format, caller: CallerDep) -> PlainTextResponse:
        """The books for a foreign verifier; people are summed by kind except for coop staff."""
        return PlainTextResponse(
            await read(lambda connection: EXPORTS[form](connection, full=caller.is_coop_staff))
        )

    @doors.route(router, "POST", "/v1/ledger/issue", Principal.STAFF, status_code=201)
    def issue(body: IssueBody, caller: CallerDep) -> IssueAnswer:
        """Bring credits to a researcher who has paid for them outside."""
        _check_coop(caller)
        with doors.database.unit_of_work() as connection:
            members.check_account(connection, body.account_id)
            posted = economy.issue(
                connection,
                account_id=body.account_id,
                amount=NanoCredits(body.amount_nano),
                key=body.key,
            )
        return IssueAnswer(journal_id=posted.journal_id, created=posted.created)


def _dividend_routes(
    router: APIRouter, doors: Doors, economy: Economy, share_questions: Callable[[], object]
) -> None:
    @doors.route(router, "GET", "/v1/dividends", Principal.PUBLIC)
    def listed() -> ModelsAnswer:
        """Every model that pays dividends."""
        with doors.database.reading() as connection:
            return ModelsAnswer(models=models_with_pools(connection))

    @doors.route(router, "GET", "/v1/dividends/{model_id}", Principal.PUBLIC)
    def shown(model_id: ModelId) -> Dividends:
        """All inputs and results of a model's dividends: recompute them with the CLI."""
        with doors.database.reading() as connection:
            return published(connection, model_id)

    @doors.route(router, "POST", "/v1/dividends/{model_id}:close", Principal.STAFF)
    def close(model_id: ModelId, caller: CallerDep) -> ClosedAnswer:
        """Split what came since the last window, for a model or a study's questions without one."""
        _check_coop(caller)
        share_questions()
        with doors.database.reading() as connection:
            published(connection, model_id)
        return ClosedAnswer.model_validate(economy.close_window(model_id))


def _credit_routes(
    router: APIRouter, doors: Doors, economy: Economy, has_choice: HasChoice
) -> None:
    @doors.route(router, "GET", "/v1/me/credits", Principal.PATIENT)
    def mine(caller: CallerDep) -> CreditsAnswer:
        """What my records earned, and what I collected."""
        account_id = caller.account
        with doors.database.reading() as connection:
            pids = [
                _pid_credits(connection, pid, site, shown=has_choice(connection, pid))
                for pid, site in members.pids_of(connection, account_id)
            ]
            if not any(entry.choice_stored for entry in pids):
                return CreditsAnswer(shown=False)
            member = f"member:{account_id}"
            lines = statement(connection, member, limit=_LINES)
            return CreditsAnswer(
                shown=True,
                waiting_nano=sum(entry.waiting_nano or 0 for entry in pids),
                collected_nano=ledger.balance(connection, member).posted,
                pids=pids,
                statement=_collected(lines),
            )

    @doors.route(router, "POST", "/v1/me/credits:claim", Principal.PATIENT)
    def claim(caller: CallerDep) -> ClaimAnswer:
        """Collect what my records earned, in one payout; a repeat brings what came since."""
        with doors.database.reading() as connection:
            pids = [
                pid
                for pid, _ in members.pids_of(connection, caller.account)
                if has_choice(connection, pid)
            ]
        return ClaimAnswer(claimed_nano=economy.claim(caller.account, pids))


def _pid_credits(connection: sa.Connection, pid: str, site: str, *, shown: bool) -> PidCredits:
    if not shown:
        return PidCredits(pid=pid, site=site, choice_stored=False)
    models = {accrual.model_id: int(accrual.nano) for accrual in accruals(connection, pid)}
    settled = ledger.balance(connection, f"patient:{pid}").available
    return PidCredits(
        pid=pid,
        site=site,
        choice_stored=True,
        waiting_nano=settled + sum(models.values()),
        models=models,
    )


def _collected(lines: list[Line]) -> list[Collected]:
    # One payout has a line for every record; which record brought how much is merged away.
    sums: dict[int, Collected] = {}
    for line in lines:
        before = sums[line.journal_id].nano if line.journal_id in sums else 0
        sums[line.journal_id] = Collected(
            at=line.at, what="thank-you credits collected", nano=before + line.amount
        )
    return list(sums.values())


def _line(line: Line, *, own: bool) -> LineAnswer:
    other, meta = line.other, line.meta
    if not own:
        kind = kind_of(other)
        other, meta = (str(kind) if kind in _PRIVATE else other), _public(meta)
    return LineAnswer(
        journal_id=line.journal_id,
        kind=line.kind,
        at=line.at,
        other=other,
        amount_nano=line.amount,
        meta=meta,
    )


def _public(meta: Mapping[str, Json]) -> dict[str, Json]:
    return {name: meta[name] for name in ("model_id", "sequence") if name in meta}


def _own_codes(caller: Caller) -> set[str]:
    account_id = caller.account_or_none
    if account_id is None:
        return {f"hospital:{caller.site}"} if caller.principal is Principal.SITE else set()
    return {f"researcher:{account_id}", f"member:{account_id}"}


def _own_code(caller: Caller) -> str:
    match caller.principal:
        case Principal.RESEARCHER:
            return f"researcher:{caller.account}"
        case Principal.SITE:
            return f"hospital:{caller.subject}"
        case Principal.STAFF if caller.site and not caller.is_coop_staff:
            return f"hospital:{caller.site}"
        case Principal.STAFF:
            return "operations"
        case Principal.PATIENT:
            return f"member:{caller.account}"
        case _:
            raise WrongPrincipalError("account: sign in to see your own")


def _check_coop(caller: Caller) -> None:
    if not caller.is_coop_staff:
        raise WrongPrincipalError("this is for the cooperative's own staff")
