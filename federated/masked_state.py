"""What a hospital keeps of masked rounds: its secrets, whose shares it holds, what it revealed.

| a crash                               | afterwards                                              |
|---------------------------------------|---------------------------------------------------------|
| before the keys are stored            | nothing happened                                        |
| between storing and answering a stage | the repeat gives the same answer                        |
| anywhere else                         | every secret is as before; none is ever used in two ways|
"""

from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from coop.canonical import Json
from coop.db import metadata
from coop.errors import ConflictError
from federated.masked_sum import RoundSecrets, Secrets, Shares

mask_setup = sa.Table(
    "mask_setup",
    metadata,
    sa.Column("order_sha256", sa.String(64), primary_key=True),
    sa.Column("setup", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("secrets", sa.Text),
    sa.Column("own_keys", sa.Text, nullable=False),
    sa.Column("keys", sa.Text),
    sa.Column("own_shares", sa.Text),
    sa.Column("sealed", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False),
)
"""One set-up of one order. `secrets` and the shares are forgotten as soon as a later set-up or the
end of the rounds makes them useless; the row stays, so that a number is never used twice."""

mask_sent = sa.Table(
    "mask_sent",
    metadata,
    sa.Column("order_sha256", sa.String(64), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("setup", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("parties", sa.Text, nullable=False),
    sa.Column("answer_key", sa.String(160), nullable=False),
    sa.Column("held", sa.Text, nullable=False),
)
"""A masked vector that left: with whom it was masked, over which stored answer, and the shares of
the others' secrets that this hospital holds for the round."""

mask_revealed = sa.Table(
    "mask_revealed",
    metadata,
    sa.Column("order_sha256", sa.String(64), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("setup", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("survivors", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
)
"""What was revealed of a round in a set-up: for one list of survivors, whatever is asked later."""


class SetupChangedError(ConflictError):
    """This set-up was begun with other rounds, keys or parties; a new one is needed."""

    code = "masked.setup-changed"


class AlreadyRevealedError(ConflictError):
    """The round's masks were lifted for one list of survivors; they are for no other."""

    code = "masked.already-revealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSetup:
    """A row of `mask_setup` whose secrets are still there."""

    secrets: Secrets
    own_keys: dict[str, Json]
    keys: list[dict[str, Json]] | None
    own_shares: Shares | None
    sealed: dict[str, str] | None


def setup_of(connection: sa.Connection, order_sha256: str, number: int) -> HeldSetup | None:
    """The set-up with this number; None if there is none or it was forgotten."""
    query = sa.select(mask_setup).where(_of(mask_setup, order_sha256, number))
    row = connection.execute(query).one_or_none()
    if row is None or row.secrets is None:
        return None
    return HeldSetup(
        secrets=_secrets_of(row.secrets),
        own_keys=orjson.loads(row.own_keys),
        keys=None if row.keys is None else orjson.loads(row.keys),
        own_shares=None if row.own_shares is None else shares_of(row.own_shares),
        sealed=None if row.sealed is None else orjson.loads(row.sealed),
    )


def begin(
    connection: sa.Connection,
    order_sha256: str,
    number: int,
    *,
    secrets: Secrets,
    own_keys: dict[str, Json],
    at: int,
) -> None:
    """Keep a new set-up; every earlier one of the order is of no use from here on.

    Raises:
        SetupChangedError: The number was used, or a later one.
    """
    query = sa.select(sa.func.max(mask_setup.c.setup)).where(
        mask_setup.c.order_sha256 == order_sha256
    )
    if (connection.execute(query).scalar() or 0) >= number:
        raise SetupChangedError("setup: this number or a later one was used before")
    forget(connection, order_sha256)
    connection.execute(
        mask_setup.insert().values(
            order_sha256=order_sha256,
            setup=number,
            secrets=_secrets_text(secrets),
            own_keys=_text(own_keys),
            at=at,
        )
    )


def keep_shares(
    connection: sa.Connection,
    order_sha256: str,
    number: int,
    *,
    keys: list[dict[str, Json]],
    own_shares: Shares,
    sealed: dict[str, str],
) -> None:
    """Keep with whom the set-up is made and what was sealed to them."""
    connection.execute(
        mask_setup.update()
        .where(_of(mask_setup, order_sha256, number))
        .values(keys=_text(keys), own_shares=shares_text(own_shares), sealed=_text(sealed))
    )


def forget(connection: sa.Connection, order_sha256: str) -> None:
    """Lose every secret of the order's set-ups: what left under them stays masked for ever."""
    connection.execute(
        mask_setup.update()
        .where(mask_setup.c.order_sha256 == order_sha256)
        .values(secrets=None, own_shares=None, sealed=None)
    )
    connection.execute(
        mask_sent.update().where(mask_sent.c.order_sha256 == order_sha256).values(held="{}")
    )


def sent_of(
    connection: sa.Connection, order_sha256: str, round_: int, number: int
) -> sa.Row[Any] | None:
    """What left of this round in this set-up."""
    at = _of(mask_sent, order_sha256, number) & (mask_sent.c.round == round_)
    return connection.execute(sa.select(mask_sent).where(at)).one_or_none()


def revealed_of(
    connection: sa.Connection, order_sha256: str, round_: int
) -> dict[int, sa.Row[Any]]:
    """What was revealed of this round, by set-up; with the stored answer that left in it."""
    query = (
        sa.select(mask_revealed, mask_sent.c.answer_key)
        .join(
            mask_sent,
            (mask_sent.c.order_sha256 == mask_revealed.c.order_sha256)
            & (mask_sent.c.round == mask_revealed.c.round)
            & (mask_sent.c.setup == mask_revealed.c.setup),
        )
        .where(mask_revealed.c.order_sha256 == order_sha256, mask_revealed.c.round == round_)
    )
    return {row.setup: row for row in connection.execute(query)}


def left_before(connection: sa.Connection, order_sha256: str, round_: int, number: int) -> set[str]:
    """The stored answers that left under masks in set-ups before this one."""
    query = sa.select(mask_sent.c.answer_key).where(
        mask_sent.c.order_sha256 == order_sha256,
        mask_sent.c.round == round_,
        mask_sent.c.setup < number,
    )
    return set(connection.execute(query).scalars())


def shares_text(shares: Shares) -> str:
    """Shares as JSON: by round, two in hex."""
    return _text({str(round_): [part.hex() for part in pair] for round_, pair in shares.items()})


def shares_of(text: str) -> Shares:
    """The inverse of `shares_text`."""
    return {
        int(round_): (bytes.fromhex(first), bytes.fromhex(second))
        for round_, (first, second) in orjson.loads(text).items()
    }


def _of(table: sa.Table, order_sha256: str, number: int) -> sa.ColumnElement[bool]:
    return (table.c.order_sha256 == order_sha256) & (table.c.setup == number)


def _secrets_text(secrets: Secrets) -> str:
    rounds = {
        str(round_): [own.mask.hex(), own.seed.hex()] for round_, own in secrets.rounds.items()
    }
    return _text({"seal": secrets.seal.hex(), "rounds": rounds})


def _secrets_of(text: str) -> Secrets:
    read = orjson.loads(text)
    return Secrets(
        seal=bytes.fromhex(read["seal"]),
        rounds={
            int(round_): RoundSecrets(mask=bytes.fromhex(mask), seed=bytes.fromhex(seed))
            for round_, (mask, seed) in read["rounds"].items()
        },
    )


def _text(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
