"""Recomputing every dividend from what is published, trusting no figure of the hub's database."""

from collections.abc import Iterator, Mapping, Sequence

from coop.canonical import Json
from coop.dividend import Pool, distribute, resize, window_split
from coop.documents.dividend import Dividends, DividendWindow
from coop.errors import CoopError, Kind
from coop.money import NanoCredits


class DividendDifferenceError(CoopError):
    """A published dividend is not what its published inputs give."""

    code = "dividend.difference"
    kind = Kind.UNPROCESSABLE


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
