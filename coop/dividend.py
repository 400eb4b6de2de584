"""The arithmetic of dividends: how revenue splits, how a pool pays any number of patients in O(1).

Whoever reads the published inputs can recompute every dividend bit for bit with these functions
alone; `coop.dividend_audit` does. Everything is integer, nothing is rounded away.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coop.errors import InvariantError
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


def _without_zeros(amounts: Mapping[str, int]) -> dict[str, NanoCredits]:
    return {code: NanoCredits(amount) for code, amount in sorted(amounts.items()) if amount}
