"""The arithmetic of dividends: how revenue splits, how a pool pays any number of patients in O(1).

Whoever reads the published inputs can recompute every dividend bit for bit with these functions
alone; `coop dividends verify` does. Everything is integer, nothing is rounded away.

Core: pure, no I/O.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coop.canonical import Json
from coop.documents.dividend import Dividends, DividendWindow
from coop.errors import CoopError, InvariantError, Kind
from coop.money import NanoCredits, split

DIVIDEND_RULE: Final[Mapping[str, int]] = {
    "v": 1,
    "commons_percent": 10,
    "operations_percent": 15,
    "hospitals_percent": 25,
    "patients_percent": 50,
}
"""The rule in force. A vote may replace it; every window records the rule it was split by."""

_PARTS: Final = ("commons", "operations", "hospitals", "patients")
_WHOLE: Final = 100


class DividendDifferenceError(CoopError):
    """A published dividend is not what its published inputs give."""

    code = "dividend.difference"
    kind = Kind.UNPROCESSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of patients at one hospital for one model.

    Invariant: balance = Σ owed + carry, and carry < shares unless shares is 0 (then carry is 0).
    """

    shares: int
    """T: the sum of the holders' shares."""
    acc: int
    """Nano-credits ever distributed per share."""
    carry: int
    """What could not be divided yet."""


def distribute(pool: Pool, amount: NanoCredits) -> Pool:
    """The pool after `amount` came in for everyone in it.

    Raises:
        InvariantError: Nobody is in the pool; that money belongs to the commons.
    """
    if pool.shares <= 0 or amount < 0:
        raise InvariantError("a pool without shares cannot distribute")
    per_share, carry = divmod(pool.carry + amount, pool.shares)
    return Pool(shares=pool.shares, acc=pool.acc + per_share, carry=carry)


def owed(pool: Pool, *, shares: int, acc_seen: int) -> NanoCredits:
    """What a holder of `shares` who last settled at `acc_seen` may draw: exact."""
    return NanoCredits(shares * (pool.acc - acc_seen))


def resize(pool: Pool, shares: int) -> tuple[Pool, NanoCredits]:
    """The pool with other shares, and what is left over; the changing holder has settled.

    The left-over is not 0 only when the last holder leaves: then nobody could ever draw the carry,
    and it goes to the commons.
    """
    if shares < 0:
        raise InvariantError("a pool cannot have fewer than no shares")
    if shares == 0:
        return Pool(shares=0, acc=pool.acc, carry=0), NanoCredits(pool.carry)
    per_share, carry = divmod(pool.carry, shares)
    return Pool(shares=shares, acc=pool.acc + per_share, carry=carry), NanoCredits(0)


def window_split(
    revenue: NanoCredits,
    *,
    model_id: str,
    rule: Mapping[str, int],
    weights: Mapping[str, int],
    shares: Mapping[str, int],
) -> dict[str, NanoCredits]:
    """Who gets what of a window's revenue, by account code, without the zeros.

    Steps, each by largest remainder (`money.split`): (1) over commons, operations, hospitals and
    patients by the rule; (2) the hospitals' part over the hospitals by weight; (3) the patients'
    part over the hospitals' pools by the same weights; (4) what fell to a pool with nobody in it,
    or to hospitals when no weight is known, goes to the commons.

    Args:
        revenue: >= 0.
        model_id: Whose revenue.
        rule: `DIVIDEND_RULE`-shaped percentages.
        weights: Registered consents at training, by site; may be all zero.
        shares: Shares in each site's pool now.

    Returns:
        Amounts summing to `revenue` exactly.
    """
    percents = {part: rule[f"{part}_percent"] for part in _PARTS}
    if sum(percents.values()) != _WHOLE:
        raise InvariantError("a dividend rule must add up to 100 percent")
    # (1)
    parts = split(revenue, percents)
    amounts = {"commons": int(parts["commons"]), "operations": int(parts["operations"])}
    if sum(weights.values()) == 0:
        amounts["commons"] += parts["hospitals"] + parts["patients"]
        return _without_zeros(amounts)
    # (2)
    for site, amount in split(parts["hospitals"], weights).items():
        amounts[f"hospital:{site}"] = amount
    # (3) and (4)
    for site, amount in split(parts["patients"], weights).items():
        if shares.get(site, 0) > 0:
            amounts[f"pool:{model_id}:{site}"] = amount
        else:
            amounts["commons"] += amount
    return _without_zeros(amounts)


def differences(published: Dividends, windows: Sequence[DividendWindow]) -> list[str]:
    """Recompute every dividend of a model from what is published; says every difference found.

    Steps: (1) windows are numbered 1, 2, … and each fee of the ledger is in at most one, with its
    own amount; (2) each window's parts are `window_split` of its inputs, and the ledger holds
    exactly them; (3) replaying pool changes and windows in order gives each window's shares, each
    residual, and every pool's accumulator, carry and balance; (4) what no window has split yet is
    still in the revenue.

    Args:
        published: As served at `/v1/dividends/{model_id}`.
        windows: The subjects of `published.windows`, opened by the caller, in order.

    Returns:
        Sentences; empty when everything agrees to the nano-credit.
    """
    if [window.sequence for window in windows] != list(range(1, len(published.windows) + 1)):
        return ["windows: not numbered 1, 2, 3 …"]
    return [*_fee_differences(published, windows), *_pool_differences(published, windows)]


def recompute(published: Mapping[str, Json]) -> int:
    """Recompute the dividends served as JSON at `/v1/dividends/{model_id}`; signatures unchecked.

    Returns:
        How many windows there are.

    Raises:
        DividendDifferenceError: A published figure is not what its inputs give.
    """
    read = Dividends.model_validate(published)
    windows = [
        DividendWindow.model_validate(window.document.get("credentialSubject"))
        for window in read.windows
    ]
    for difference in differences(read, windows):
        raise DividendDifferenceError(f"{read.model_id}: {difference}")
    return len(windows)


def _fee_differences(published: Dividends, windows: Sequence[DividendWindow]) -> Iterator[str]:
    # (1)
    fees = {fee.journal_id: fee.amount_nano for fee in published.fees}
    for window in windows:
        for fee in window.fees:
            if fees.pop(fee.journal_id, None) != fee.amount_nano:
                yield f"window {window.sequence}: fee {fee.journal_id} is not in the ledger, once"
        if sum(fee.amount_nano for fee in window.fees) != window.revenue_nano:
            yield f"window {window.sequence}: its fees do not add up to its revenue"
        if window.model_id != published.model_id:
            yield f"window {window.sequence}: is of another model"
    # (4)
    if sum(fees.values()) != published.revenue_nano:
        yield "revenue: differs from the fees that no window has split"


def _pool_differences(published: Dividends, windows: Sequence[DividendWindow]) -> Iterator[str]:
    pools = {state.site: Pool(shares=0, acc=0, carry=0) for state in published.pools}
    moved = dict.fromkeys(pools, 0)
    for closed, window in enumerate(windows):
        yield from _replay_changes(published, closed, pools, moved)
        yield from _replay_window(published, window, pools, moved)
    yield from _replay_changes(published, len(windows), pools, moved)
    for state in published.pools:
        pool = pools[state.site]
        if (pool.shares, pool.acc, pool.carry) != (state.shares, state.acc, state.carry):
            yield f"pool {state.site}: its accumulator differs"
        if moved[state.site] - state.paid_nano != state.balance_nano:
            yield f"pool {state.site}: its balance differs"


def _replay_changes(
    published: Dividends, closed: int, pools: dict[str, Pool], moved: dict[str, int]
) -> Iterator[str]:
    # (3)
    for change in published.changes:
        if change.after == closed:
            pools[change.site], residual = resize(pools[change.site], change.shares)
            moved[change.site] -= residual
            if residual != change.residual_nano:
                yield f"pool {change.site}: the residual after window {closed} differs"


def _replay_window(
    published: Dividends, window: DividendWindow, pools: dict[str, Pool], moved: dict[str, int]
) -> Iterator[str]:
    posted = published.windows[window.sequence - 1].split
    shares = {site: pool.shares for site, pool in pools.items()}
    weights = {state.site: state.weight for state in published.pools}
    if window.shares != shares or window.weights != weights:
        yield f"window {window.sequence}: its shares or weights differ from the pools'"
    # (2)
    parts = window_split(
        NanoCredits(window.revenue_nano),
        model_id=published.model_id,
        rule=window.rule,
        weights=weights,
        shares=shares,
    )
    if parts != window.parts or parts != posted:
        yield f"window {window.sequence}: its parts differ from the rule or from the ledger"
    for site, pool in pools.items():
        part = parts.get(f"pool:{published.model_id}:{site}", 0)
        moved[site] += part
        if part:
            pools[site] = distribute(pool, NanoCredits(part))


def _without_zeros(amounts: Mapping[str, int]) -> dict[str, NanoCredits]:
    return {code: NanoCredits(amount) for code, amount in sorted(amounts.items()) if amount}
