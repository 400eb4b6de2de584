"""Integer money: credits are counted in nano-credits and divided in exactly one place.

Core: pure, no I/O.
"""

from collections.abc import Mapping
from typing import Final, NewType

from coop.errors import InvalidInputError, InvariantError

NanoCredits = NewType("NanoCredits", int)
"""An amount of money. Never a float, never a Decimal, never divided but by `split`."""

NANO: Final = 10**9
"""Nano-credits in one credit."""
_DIGITS: Final = 9
SUPPLY_MAX_NANO: Final = 2**63 - 1  # fits a signed 64-bit column, so no sum can overflow


def split(amount: NanoCredits, weights: Mapping[str, int]) -> dict[str, NanoCredits]:
    """Divide `amount` in proportion to `weights`, losing nothing.

    Largest-remainder (Hamilton) method: everyone gets the floor of their exact share, and the
    leftover nano-credits go one each to the largest remainders, ties broken by name. The result
    depends only on the values, never on the mapping's order.

    Args:
        amount: >= 0.
        weights: non-negative integers by payee, not all zero.

    Raises:
        InvariantError: The amount or a weight is negative, or all weights are zero.
    """
    total = sum(weights.values())
    if amount < 0 or total <= 0 or min(weights.values()) < 0:
        raise InvariantError(f"cannot split {amount} over weights totalling {total}")

    shares = {payee: amount * weight // total for payee, weight in weights.items()}
    left_over = amount - sum(shares.values())
    by_remainder = sorted(weights, key=lambda payee: (-(amount * weights[payee] % total), payee))
    for payee in by_remainder[:left_over]:
        shares[payee] += 1
    return {payee: NanoCredits(share) for payee, share in shares.items()}


def to_text(amount: NanoCredits) -> str:
    """Credits with all nine decimals, for people and exports: `1.000000250`."""
    sign = "-" if amount < 0 else ""
    whole, nano = divmod(abs(amount), NANO)
    return f"{sign}{whole}.{nano:0{_DIGITS}d}"


def from_text(text: str) -> NanoCredits:
    """Parse `12`, `12.5` or `0.000000001` credits.

    Raises:
        InvalidInputError: Not a plain decimal of at most nine places within the supply.
    """
    whole, dot, nano = text.partition(".")
    digits = nano.ljust(_DIGITS, "0")
    plain = text.isascii() and whole.isdigit() and (not dot or nano.isdigit())
    if not plain or len(digits) != _DIGITS:
        raise InvalidInputError(f"credits: {text!r} is not a decimal with at most nine places")
    amount = int(whole) * NANO + int(digits)
    if amount > SUPPLY_MAX_NANO:
        raise InvalidInputError("credits: larger than all the credits there can be")
    return NanoCredits(amount)
