"""Joining a cooperative: keys made here, public halves shown, the hub's keys pinned for good."""

from pathlib import Path

from coop.client import Client
from coop.errors import ConflictError
from coop.members import join_request
from federated.site import Site
from federated.supernode import make_key


class OtherHospitalError(ConflictError):
    """The folder was made for a hospital of another name."""

    code = "site.other-hospital"


def join(folder: Path, name: str, *, token: str, hub_url: str, ca_file: Path | None) -> Site:
    """Make (or reopen) the hospital in `folder` and join the hub with a single-use token.

    Steps: (1) the keys are made here and stay here; (2) the token is spent with proof of the site
    key; (3) what the hub answers is pinned: from now on no other hub or log key is believed. A
    repeat after a crash between (2) and (3) gets the same answer, since the keys are the same.

    Args:
        folder: This hospital's state.
        name: The name the token was made for.
        token: From `coop hospital invite`.
        hub_url: `https://host:port`.
        ca_file: The hub's certificate authority; None means the system's.

    Raises:
        OtherHospitalError: The folder is another hospital's.
    """
    # (1)
    exists = (folder / "site.key").exists()
    site = Site.open(folder) if exists else Site.create(folder, name)
    if site.name != name:
        # Its pseudonyms and documents bear the name it was made with.
        site.close()
        raise OtherHospitalError(f"{folder}: is {site.name}'s; join as {name} from another folder")
    supernode_key = make_key(folder / "supernode.key")
    # (2)
    with Client(hub_url, ca_file) as client:
        answer = client.post("/v1/members/join", join_request(token, name, site.key, supernode_key))
    # (3)
    trust = dict(answer["trust"])
    if exists and site.joined:
        # A repeat: which hospitals count was settled at the first, and by people since.
        trust["sites"] = dict(site.trust.sites)
    site.pin(trust, hub_url, ca_file.read_text() if ca_file else None)
    return site
