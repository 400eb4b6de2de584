"""What the hub keeps of masked rounds: set-ups, and the vectors of a round until it is concluded.

All of it is public to the hub anyway: signed keys, sealed boxes and masked vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import safetensors.numpy
import sqlalchemy as sa
from numpy.typing import NDArray

from coop.canonical import Json
from coop.db import metadata
from coop.documents.envelope import Opened, open_document
from coop.documents.masked import MaskKeys
from coop.documents.training import Order, RoundReceipt
from federated.masked_sum import Setup

masked_setup = sa.Table(
    "masked_setup",
    metadata,
    sa.Column("order_sha256", sa.ForeignKey("training_run.order_sha256"), primary_key=True),
    sa.Column("setup", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("fresh", sa.Boolean, nullable=False),
    sa.Column("keys", sa.Text),
    sa.Column("sealed", sa.Text),
    sa.Column("absent", sa.Text),
    sa.Column("over", sa.Boolean, nullable=False),
    sa.Column("anew", sa.Boolean, nullable=False),
)
"""`sealed` by sender and recipient, once enough have sealed; `absent` who was offline then; `over`
when no round uses it again, and `anew` when whatever follows must draw its first round anew."""

masked_round = sa.Table(
    "masked_round",
    metadata,
    sa.Column("order_sha256", sa.ForeignKey("training_run.order_sha256"), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("setup", sa.BigInteger, nullable=False),
    sa.Column("vectors", sa.LargeBinary, nullable=False),
    sa.Column("receipts", sa.Text, nullable=False),
)
"""A round's vectors by survivor, kept before anybody is asked to reveal: what hospitals reveal is
for this list and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSetup:
    """A complete set-up, as the hub relays it."""

    number: int
    first: int
    last: int
    keys: list[dict[str, Json]]
    sealed: dict[str, dict[str, str]]
    """Boxes by sender, then recipient."""
    absent: list[str]
    """Who was offline when it was made."""

    @property
    def parties(self) -> list[str]:
        """Who masks: those whose shares arrived."""
        return sorted(self.sealed)

    def boxes_for(self, site: str) -> dict[str, str]:
        """What the others sealed to this site."""
        return {sender: boxes[site] for sender, boxes in self.sealed.items() if sender != site}

    def setup(self, order: Opened[Order]) -> Setup:
        """The same for the arithmetic; signatures were checked when the keys arrived."""
        sites = sorted(entry.site for entry in order.subject.roster)
        opened = [open_document(MaskKeys, entry, issuers=None).subject for entry in self.keys]
        return Setup(
            order_sha256=order.digest,
            number=self.number,
            places={site: place for place, site in enumerate(sites, start=1)},
            threshold=order.subject.honest,
            keys={entry.site: entry for entry in opened},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A round whose vectors are here and whose masks are not lifted yet."""

    setup: KnownSetup
    vectors: dict[str, NDArray[np.uint64]]
    receipts: list[Opened[RoundReceipt]]


def newest(connection: sa.Connection, order_sha256: str) -> sa.Row[Any] | None:
    """The order's newest set-up, complete or not."""
    query = (
        sa.select(masked_setup)
        .where(masked_setup.c.order_sha256 == order_sha256)
        .order_by(masked_setup.c.setup.desc())
        .limit(1)
    )
    return connection.execute(query).one_or_none()


def complete(row: sa.Row[Any] | None) -> KnownSetup | None:
    """The set-up in a row, if it is complete."""
    if row is None or row.sealed is None:
        return None
    return KnownSetup(
        number=row.setup,
        first=row.first,
        last=row.last,
        keys=orjson.loads(row.keys),
        sealed=orjson.loads(row.sealed),
        absent=orjson.loads(row.absent),
    )


def begin(
    connection: sa.Connection, order_sha256: str, *, first: int, last: int, fresh: bool
) -> int:
    """Number a new set-up, durably, before anybody hears of it."""
    row = newest(connection, order_sha256)
    number = 1 if row is None else row.setup + 1
    end(connection, order_sha256)
    connection.execute(
        masked_setup.insert().values(
            order_sha256=order_sha256,
            setup=number,
            first=first,
            last=last,
            fresh=fresh,
            over=False,
            anew=fresh,
        )
    )
    return number


def end(connection: sa.Connection, order_sha256: str, *, anew: bool = False) -> None:
    """No set-up of the order is used for another round; `anew`: the next must draw it anew."""
    of = masked_setup.c.order_sha256 == order_sha256
    values = {"over": True, **({"anew": True} if anew else {})}
    connection.execute(masked_setup.update().where(of).values(values))


def finish(
    connection: sa.Connection,
    order_sha256: str,
    number: int,
    *,
    keys: list[dict[str, Json]],
    sealed: Mapping[str, Mapping[str, str]],
    absent: list[str],
) -> None:
    """The set-up is complete."""
    connection.execute(
        masked_setup.update()
        .where(masked_setup.c.order_sha256 == order_sha256, masked_setup.c.setup == number)
        .values(
            keys=orjson.dumps(keys).decode(),
            sealed=orjson.dumps(sealed).decode(),
            absent=orjson.dumps(absent).decode(),
        )
    )


def keep(
    connection: sa.Connection,
    order_sha256: str,
    round_: int,
    number: int,
    *,
    vectors: Mapping[str, NDArray[np.uint64]],
    receipts: list[dict[str, Json]],
) -> None:
    """Keep what arrived of a round, before its masks are lifted."""
    connection.execute(
        masked_round.insert().values(
            order_sha256=order_sha256,
            round=round_,
            setup=number,
            vectors=bytes(safetensors.numpy.save(dict(vectors))),
            receipts=orjson.dumps(receipts).decode(),
        )
    )


def drop(connection: sa.Connection, order_sha256: str, round_: int) -> None:
    """What arrived of the round is of no more use."""
    connection.execute(masked_round.delete().where(_at(order_sha256, round_)))


def waiting(connection: sa.Connection, order_sha256: str, round_: int) -> Waiting | None:
    """The round's vectors, if they arrived and were kept."""
    row = connection.execute(sa.select(masked_round).where(_at(order_sha256, round_))).one_or_none()
    if row is None:
        return None
    of = (masked_setup.c.order_sha256 == order_sha256) & (masked_setup.c.setup == row.setup)
    setup = complete(connection.execute(sa.select(masked_setup).where(of)).one_or_none())
    if setup is None:
        return None
    return Waiting(
        setup=setup,
        vectors={
            site: np.asarray(vector, dtype=np.uint64)
            for site, vector in safetensors.numpy.load(bytes(row.vectors)).items()
        },
        receipts=[
            open_document(RoundReceipt, receipt, issuers=None)
            for receipt in orjson.loads(row.receipts)
        ],
    )


def _at(order_sha256: str, round_: int) -> sa.ColumnElement[bool]:
    return (masked_round.c.order_sha256 == order_sha256) & (masked_round.c.round == round_)
