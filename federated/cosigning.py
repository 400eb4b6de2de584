"""A hospital restored from a backup cosigns nothing until another one shows how far the log grew.

What it signed after the backup it has forgotten, and a hub that forks its log just then would get
a second root signed at one size. Only another hospital's own word about the log, brought by people
and not by the hub, shows that what the hub tells now is the log of then.
"""

from typing import Final

import sqlalchemy as sa

from coop.errors import ConflictError, InvalidInputError
from coop.journal import note
from federated import mirror_store, witnesses
from federated.site import COSIGNING_PAUSED, Site, get_state, put_state

_SIZE: Final = "cosigning_paused_size"


class CosigningPausedError(ConflictError):
    """This hospital was restored, and no other one has shown it the log yet."""

    code = "cosigning.paused"


class LogBehindError(ConflictError):
    """The hub shows less of the log than another hospital has seen, or another log."""

    code = "cosigning.log-behind"


def pause(connection: sa.Connection, now: int) -> None:
    """Cosign nothing from now on; in the unit of work of a restore.

    Also where no other hospital counts: others may count this one.
    """
    put_state(connection, COSIGNING_PAUSED, str(now))
    put_state(connection, _SIZE, str(mirror_store.entries(connection)))


def paused(site: Site) -> bool:
    """Whether this hospital waits for another one's word."""
    return _paused_at(site) is not None


def _size_at_pause(site: Site) -> int:
    with site.database.reading() as connection:
        return int(get_state(connection, _SIZE) or 0)


def _paused_at(site: Site) -> int | None:
    with site.database.reading() as connection:
        at = get_state(connection, COSIGNING_PAUSED)
    return int(at) if at else None


def statement(site: Site, now: int) -> str:
    """The newest checkpoint this hospital has verified, with its cosignature: for a restored one.

    Raises:
        CosigningPausedError: It was restored itself. Also while it has seen no log.
    """
    text = mirror_store.newest_note(site)
    if paused(site) or not text:
        raise CosigningPausedError("checkpoint: this hospital cannot speak for the log itself yet")
    return note.cosign(text, name=site.name, key=site.key, now=now)


def resume(site: Site, text: str, now: int) -> str:
    """Cosign again: the log that this hospital verified holds what another one has seen.

    Steps: (1) the checkpoint is signed by the pinned log; (2) a hospital known here vouches for it,
    since the restore: what it saw before may be less than what was cosigned here and lost; (3) the
    log verified here is at least as long; (4) and has the same root at that size, else the two
    notes convict the hub and are kept; (5) it is not older than what the backup held.

    What is left to trust: that the hub did not keep that hospital behind what was signed here and
    lost. Ask the one that saw most.

    Args:
        site: This hospital, whose mirror has been brought up to date.
        text: What `statement` gave at the other hospital.
        now: UTC seconds.

    Returns:
        The name of that hospital.

    Raises:
        NoteError: (1). InvalidInputError: (2). LogBehindError: (3) to (5); nothing changes.
    """
    trust = site.trust
    # (1)
    seen = note.open_checkpoint(text, origin=trust.origin, log_did=trust.log)
    # (2)
    since = _paused_at(site) or 0
    said = {
        name: note.cosigned_at(text, name=name, did=did)
        for name, did in witnesses.known(site).items()
    }
    vouchers = [name for name, at in said.items() if at is not None and at >= since]
    if not vouchers:
        raise InvalidInputError(
            "checkpoint: no hospital known here has signed it since the restore; let one run "
            "`coop hospital checkpoint` now"
        )
    voucher = vouchers[0]
    # (3)
    tree = mirror_store.stored_tree(site)
    if tree.size < seen.size:
        raise LogBehindError(
            f"log: {voucher} has seen {seen.size} entries and the hub shows {tree.size} here; "
            "call the other hospitals before anything is signed"
        )
    # (4)
    if tree.root(seen.size) != seen.root:
        mirror_store.keep_evidence(site, text, "fork", now)
        raise LogBehindError(f"log: it is not the one {voucher} has seen; both notes are kept")
    # (5)
    if seen.size < _size_at_pause(site):
        raise LogBehindError(
            f"log: {voucher} has seen {seen.size} entries, fewer than this hospital's backup; its "
            "node stands still, or the hub keeps it behind: ask another hospital"
        )
    with site.database.unit_of_work() as connection:
        put_state(connection, COSIGNING_PAUSED, "")
    return voucher
