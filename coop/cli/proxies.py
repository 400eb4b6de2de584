"""`coop patient proxy`: who may decide for you, named by your own key.

The command belongs to the group in `coop.cli.patient`.
"""

import time
from typing import Annotated

import typer

from coop.cli.output import day, last_second, show
from coop.cli.patient import (
    HERE,
    AsJson,
    KeyFile,
    Record,
    app,
    hub_client,
    load_key,
    raise_if_refused,
    record_of,
)

__all__ = ["app"]


@app.command()
def proxy(
    did: Annotated[str, typer.Argument(metavar="DID", help="Their own key, did:key:…")],
    until: Annotated[
        str | None, typer.Option(help="The last day, like 2031-05-04; needed unless --end.")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End their right instead, at once.")] = False,
    key: KeyFile = HERE,
    record: Record = None,
    as_json: AsJson = False,
) -> None:
    """Name somebody who may decide for you until a day, with a key of their own; or end that.

    They decide with `coop patient --key THEIRS`, and every decision says who made it. You can
    always decide otherwise, and end their right.
    """
    from coop.documents.envelope import issue
    from coop.documents.people import Representation
    from coop.errors import NotFoundError
    from coop.passkeys import check_did

    now = int(time.time())
    if end == (until is not None):
        raise typer.BadParameter("say until when, or --end", param_hint="--until")
    signing = load_key(key)
    with hub_client(signing) as client:
        pid, site = record_of(client, record)
        if until is not None:
            ends = last_second(until, "--until", now=now)
            subject = Representation(
                pid=pid,
                site=site,
                did=check_did(did),
                role="proxy",
                valid_from=now,
                valid_until=ends,
            )
            document = issue(subject, signing, now)
            (result,) = client.post("/v1/keys", {"documents": [document]})["results"]
            raise_if_refused(result["problem"])
            facts = {"pid": pid, "did": did, "until": ends, "ended": False}
            show(facts, as_json, f"{did} may decide for you until {day(ends)}")
            return
        records = client.get("/v1/me/keys")["records"]
        named = [
            one["digest"]
            for known in records
            if known["pid"] == pid
            for one in known["representatives"]
            if one["did"] == did and one["in_force"]
        ]
        if not named:
            raise NotFoundError("DID: nobody with this key may decide for you")
        for digest in named:
            client.post(f"/v1/keys/{pid}/end", {"representation": digest})
    facts = {"pid": pid, "did": did, "until": now, "ended": True}
    show(facts, as_json, f"{did} may no longer decide for you, at once")
