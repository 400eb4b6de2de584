"""As what somebody signs at the command line, and what she is told before."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coop.client import Client
    from coop.documents.consent import Notice
    from coop.keys import SigningKey


def acting(client: "Client", signing: "SigningKey", standing: Mapping[str, Any]) -> dict[str, str]:
    """The members of an event that say who speaks: none for the record's own key.

    Args:
        client: To the hub, as the signer.
        signing: Hers.
        standing: Of the record, as the hub tells it.
    """
    if standing["did"] == signing.did:
        return {}
    records = client.get("/v1/me/keys")["records"]
    mine = [
        one["digest"]
        for record in records
        if record["pid"] == standing["pid"]
        for one in record["representatives"]
        if one["did"] == signing.did and one["in_force"]
    ]
    return {"actor": "representative", "representation": mine[0]} if mine else {}


def told_before(client: "Client", *, quiet: bool) -> "Notice":
    """What she is told before she signs, shown; her signature is bound to exactly these words."""
    from coop.canonical import sha256
    from coop.cli.patient import ConsentRefusedError
    from coop.documents.consent import Notice

    found = client.get("/v1/notices:current")
    if sha256(found["text"].encode()).hex() != found["notice"]["sha256"]:
        raise ConsentRefusedError("notice: its digest is not that of the words shown")
    if not quiet:
        print(found["text"])
    return Notice.model_validate(found["notice"])
