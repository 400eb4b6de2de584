"""Who may speak for a record, as its owner sees it: figures and ids, no words."""

from typing import Any

import sqlalchemy as sa

from consent.speakers import Representative
from consent.store import Enrolled, representation


def who_speaks(connection: sa.Connection, key: Enrolled, now: int) -> dict[str, Any]:
    """Everybody who may speak for a record, and what waits.

    Returns:
        {"pid", "site", "key" {"did", "custody", "since"}, "closed", "waits_until" (None once it
        has passed), "sequence" and "head_sha256" (what the next key event follows),
        "next_key_committed", "guardians", "threshold", "votes" [{"guardian", "key"}…],
        "representatives" [{"digest", "did", "role", "named_by", "valid_from", "valid_until",
        "ended_at", "in_force"}…]}.
    """
    state = key.speakers
    query = sa.select(representation.c.digest, representation.c.ended_at)
    rows = connection.execute(query.where(representation.c.pid == key.pid))
    ended = {row.digest: row.ended_at for row in rows}
    return {
        "pid": key.pid,
        "site": key.site,
        "key": {"did": state.key, "custody": state.custody, "since": state.since},
        "closed": state.closed,
        "waits_until": state.waits_until if state.waits_until > now else None,
        "sequence": state.sequence,
        "head_sha256": state.head,
        "next_key_committed": state.next_key_sha256 is not None,
        "guardians": list(state.guardians),
        "threshold": state.threshold,
        "votes": [{"guardian": vote.guardian, "key": vote.key} for vote in state.votes],
        "representatives": [_one(one, ended.get(one.digest), now) for one in state.representatives],
    }


def _one(one: Representative, ended_at: int | None, now: int) -> dict[str, Any]:
    return {
        "digest": one.digest,
        "did": one.did,
        "role": one.role,
        "named_by": "patient" if one.by_key else "hospital",
        "valid_from": one.since,
        "valid_until": one.until,
        "ended_at": ended_at,
        "in_force": one.speaks(now),
    }
