"""Which hospitals this one counts as witnesses of the log: those whose keys its people compared.

The hub lists the members, and a hub that lies could list hospitals that do not exist: their
cosignatures, made by itself, would make any grant usable. So a hospital that joins later counts
here, and studies are approved here again, only once somebody has compared its key by another way.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import sqlalchemy as sa

from coop.canonical import parse_object
from coop.client import Client
from coop.documents.envelope import open_document
from coop.documents.study import Approval
from coop.errors import ConflictError, InvalidInputError
from coop.keys import public_of
from federated.approval_store import approved
from federated.site import Site

_SHOWN_MAX: Final = 5


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
    """The other hospitals' dids that count here: named at the join, or accepted since."""
    with site.database.reading() as connection:
        pinned = {**site.trust.sites, **pinned_by_approvals(connection, site.key.did)}
    pinned.pop(site.name, None)
    return dict(sorted(pinned.items()))


def unknown(site: Site, client: Client) -> dict[str, str]:
    """Hospitals the hub lists whose keys nobody here has compared yet.

    Raises:
        WitnessChangedError: A known hospital now has another key.
    """
    listed = client.get("/v1/members/sites")["sites"]
    others = {str(entry["name"]): str(entry["did"]) for entry in listed}
    own = others.pop(site.name, site.key.did)
    pinned = known(site)
    changed = sorted(name for name, did in others.items() if pinned.get(name, did) != did)
    if changed or own != site.key.did:
        raise WitnessChangedError(
            f"witnesses: the hub names a new key for {(changed or [site.name])[0]}; "
            "ask that hospital by telephone before going on"
        )
    return {name: did for name, did in sorted(others.items()) if name not in pinned}


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


def accept(site: Site, named: Mapping[str, str]) -> dict[str, str]:
    """Count these hospitals as witnesses from now on; a person here has compared their keys.

    Args:
        site: This hospital.
        named: Their dids by name.

    Returns:
        All that count now.

    Raises:
        InvalidInputError: No did, this hospital's own name, or a key that another one has.
        TrustPinnedError: Another key of that hospital is pinned.
    """
    taken = {did: name for name, did in {**known(site), site.name: site.key.did}.items()}
    for name, did in named.items():
        public_of(did)
        if name == site.name or taken.setdefault(did, name) != name:
            raise InvalidInputError(f"{name}: is this hospital itself, or has another one's key")
    trust = replace(site.trust, sites={**site.trust.sites, **named})
    site.pin(trust.to_json(), site.hub_url, None)
    return known(site)
