"""Which hospitals this one counts as witnesses of the log: those whose keys its people compared.

The hub lists the members, and a hub that lies could list hospitals that do not exist: their
cosignatures, made by itself, would make any grant usable. So a hospital that joins later counts
here, and studies are approved here again, only once somebody has compared its key by another way.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import orjson
import sqlalchemy as sa

from coop.canonical import parse_object
from coop.client import Client
from coop.documents.envelope import open_document
from coop.documents.study import Approval
from coop.errors import ConflictError, InvalidInputError
from coop.keys import public_of
from coop.members import SITE_NAME
from federated.approval_store import approved
from federated.site import Site, get_state, put_state

_SHOWN_MAX: Final = 5
_ENDED: Final = "witnesses_ended"


class WitnessChangedError(ConflictError):
    """The hub names another key for a hospital than the one pinned here before."""

    code = "approval.witness-changed"


class WitnessUnknownError(ConflictError):
    """The hub names hospitals whose keys nobody here has compared."""

    code = "approval.witness-unknown"


def pinned_by_approvals(connection: sa.Connection, did: str) -> dict[str, str]:
    """The other hospitals' keys pinned by approvals that this hospital (`did`) signed."""
    pinned: dict[str, str] = {}
    for text in connection.execute(
        sa.select(approved.c.approval).order_by(approved.c.at)
    ).scalars():
        pinned |= open_document(Approval, parse_object(text), issuers={did}).subject.witnesses
    return pinned


def known(site: Site) -> dict[str, str]:
    """The other hospitals' dids that count here: named at the join or accepted since, not ended.

    What any approval pinned counts for all: one that was signed while this hospital stood alone
    needs witnesses, too, once there are some.
    """
    with site.database.reading() as connection:
        pinned = {**site.trust.sites, **pinned_by_approvals(connection, site.key.did)}
        ended = _ended(connection)
    return {
        name: did
        for name, did in sorted(pinned.items())
        if name != site.name and did != site.key.did and name not in ended
    }


def unknown(site: Site, client: Client) -> dict[str, str]:
    """Hospitals the hub lists whose keys nobody here has compared yet.

    Raises:
        WitnessChangedError: A known hospital now has another key, or the list holds no names.
    """
    others = _listed(client)
    own = others.pop(site.name, site.key.did)
    counted = known(site)
    pinned = {**site.trust.sites, **counted}
    changed = sorted(name for name, did in others.items() if pinned.get(name, did) != did)
    if changed or own != site.key.did:
        raise WitnessChangedError(
            f"witnesses: the hub names a new key for {(changed or [site.name])[0]}; "
            "ask that hospital by telephone before going on"
        )
    return {name: did for name, did in sorted(others.items()) if name not in counted}


def agreed(site: Site, client: Client) -> dict[str, str]:
    """The other hospitals' dids that an approval signed now pins.

    A hub that leaves hospitals out of its list cannot lower how many must cosign, and one that
    invents some gets no approval.

    Raises:
        WitnessChangedError, WitnessUnknownError: Somebody must speak with that hospital first.
    """
    fresh = unknown(site, client)
    if fresh:
        shown = " ".join(f"{name}={did}" for name, did in list(fresh.items())[:_SHOWN_MAX])
        more = f" and {len(fresh) - _SHOWN_MAX} more" if len(fresh) > _SHOWN_MAX else ""
        raise WitnessUnknownError(
            "witnesses: new hospitals are listed; compare their keys with them by telephone, then "
            f"run coop hospital accept {shown}{more}"
        )
    return known(site)


def accept(site: Site, client: Client, named: Mapping[str, str]) -> dict[str, str]:
    """Count these hospitals as witnesses from now on; a person here has compared their keys.

    Args:
        site: This hospital.
        client: To the hub.
        named: Their dids by name, as they said them.

    Returns:
        All that count now.

    Raises:
        WitnessUnknownError: The hub does not list such a hospital with this key: mistyped, or not
            a member.
        TrustPinnedError: Another key of that hospital is pinned.
    """
    listed = _listed(client)
    for name, did in named.items():
        if name == site.name or listed.get(name) != did:
            raise WitnessUnknownError(
                f"{name}: the cooperative lists no other hospital of this name with this key; "
                "compare letter by letter"
            )
    trust = replace(site.trust, sites={**site.trust.sites, **named})
    site.pin(trust.to_json(), site.hub_url, None)
    with site.database.unit_of_work() as connection:
        _keep_ended(connection, _ended(connection) - set(named))
    return known(site)


def end(site: Site, name: str) -> dict[str, str]:
    """Count a hospital no longer, as when it has left: its cosignature would be waited for.

    Returns:
        All that count now.

    Raises:
        InvalidInputError: It does not count.
    """
    if name not in known(site):
        raise InvalidInputError(f"{name}: does not count as a witness here")
    with site.database.unit_of_work() as connection:
        _keep_ended(connection, _ended(connection) | {name})
    return known(site)


def _listed(client: Client) -> dict[str, str]:
    """The members by name, as the hub lists them.

    Raises:
        WitnessChangedError: Something in it is no name or no key: it would be shown as a command.
    """
    listed = client.get("/v1/members/sites")["sites"]
    found = {str(entry["name"]): str(entry["did"]) for entry in listed}
    for name, did in found.items():
        try:
            public_of(did)
        except InvalidInputError as error:
            raise WitnessChangedError("witnesses: the hub lists what is no key") from error
        if not SITE_NAME.fullmatch(name):
            raise WitnessChangedError("witnesses: the hub lists what is no hospital's name")
    return found


def _ended(connection: sa.Connection) -> set[str]:
    return set(orjson.loads(get_state(connection, _ENDED) or "[]"))


def _keep_ended(connection: sa.Connection, names: Collection[str]) -> None:
    put_state(connection, _ENDED, orjson.dumps(sorted(names)).decode())
