"""`coop ledger` and `coop dividends`: check the books, print them, recompute every dividend.

Exit 0: everything holds. Exit 1: it does not, or it could not be checked. Exit 2: wrong usage.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from coop.cli.output import show

if TYPE_CHECKING:
    from coop.client import Client
    from coop.db import Database
    from coop.documents.dividend import Dividends, DividendWindow
    from coop.journal.trust import Trust

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The credit ledger.")
dividends_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Dividends.")

_Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
_State = Annotated[
    Path | None,
    typer.Option("--state", metavar="FOLDER", help="Read this hub folder's database directly."),
]
_NOT_CHECKED: Final = "signatures: NOT CHECKED"


@app.command()
def check(state: _State = None, as_json: _Json = False) -> None:
    """Check every invariant over every row of the ledger."""
    answer = _check_local(state) if state else _asked("/v1/ledger/check")
    nouns = ("transfers", "journals", "accounts", "holds", "pools", "windows")
    lines = [
        ", ".join(f"{answer[noun]} {noun}" for noun in nouns),
        *(f"FAIL {found['invariant']} {found['what']}" for found in answer["findings"]),
        "every invariant holds" if answer["ok"] else "THE LEDGER IS BROKEN",
    ]
    show(answer, as_json, "\n".join(lines))
    raise typer.Exit(0 if answer["ok"] else 1)


@app.command()
def statement(
    account: Annotated[str, typer.Argument(help="Its code; your own by default.")] = "mine",
    as_json: _Json = False,
) -> None:
    """Print an account's balance and its newest transfers."""
    from coop.money import NanoCredits, to_text

    answer = _asked(f"/v1/ledger/accounts/{account}")
    rows = [
        f"{line['journal_id']:8} {to_text(NanoCredits(line['amount_nano'])):>24} "
        f"{line['kind']:10} {line['other']}"
        for line in answer["lines"]
    ]
    held = to_text(NanoCredits(answer["held_nano"]))
    balance = to_text(NanoCredits(answer["balance_nano"]))
    title = f"{answer['account']}: {balance} credits, {held} of them held"
    show(answer, as_json, "\n".join([title, *rows]))


@app.command()
def export(
    form: Annotated[str, typer.Argument(metavar="{beancount|hledger|csv}")],
    state: _State = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every account by itself (with --state).")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Print the books in another program's language, for it to check them."""
    from coop.ledger_export import EXPORTS, Format

    if form not in set(Format):
        raise typer.BadParameter("must be beancount, hledger or csv")
    if state:
        database = _database(state)
        with database.reading() as connection:
            text = EXPORTS[Format(form)](connection, full=full)
        database.close()
    else:
        with _client() as client:
            text = client.get_text(f"/v1/ledger/export/{form}")
    show({"format": form, "text": text}, as_json, text.rstrip("\n"))


@dividends_app.callback()
def _dividends() -> None:
    """Recompute every dividend."""


@dividends_app.command()
def verify(
    model: Annotated[str | None, typer.Option("--model", metavar="ID", help="Only this.")] = None,
    arithmetic_only: Annotated[
        bool, typer.Option("--arithmetic-only", help="Do not check signatures and log proofs.")
    ] = False,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", metavar="FILE", help="Keys to trust; default COOP_TRUST_FILE."),
    ] = None,
    state: _State = None,
    as_json: _Json = False,
) -> None:
    """Recompute every dividend from its published inputs; exit 1 on any difference."""
    from coop.documents.dividend import Dividends

    trusted = None if arithmetic_only else _trusted(trust)
    results: dict[str, dict[str, Any]] = {}
    with _FolderSource(state) if state else _client() as source:
        for model_id in [model] if model else source.get("/v1/dividends")["models"]:
            published = Dividends.model_validate(source.get(f"/v1/dividends/{model_id}"))
            results[model_id] = _verified(source, published, trusted)
    unchecked = trusted is None and not arithmetic_only
    same = not any(result["differences"] for result in results.values())
    lines = [_sentence(model_id, result) for model_id, result in results.items()]
    lines += [f"FAIL {line}" for result in results.values() for line in result["differences"]]
    if trusted is None:
        why = "" if arithmetic_only else " (give --trust FILE, or say --arithmetic-only)"
        lines.append(_NOT_CHECKED + why)
    ok = same and not unchecked
    facts = {"ok": ok, "signatures_checked": trusted is not None, "models": results}
    show(facts, as_json, "\n".join(lines))
    raise typer.Exit(0 if ok else 1)


class _FolderSource:
    """What the hub publishes about dividends, read from its folder: for after it has stopped."""

    def __init__(self, state: Path) -> None:
        from coop.hub.folder import HubFolder
        from coop.journal.store import Journal

        self._database = _database(state)
        hub = HubFolder.open(state)
        self._journal = Journal(self._database, hub.log_key, hub.origin, lambda: 0)

    def get(self, path: str) -> Any:  # noqa: ANN401  (JSON of the route)
        """The answer of one of the three public routes."""
        from coop import members
        from coop.pools import models_with_pools, published

        name = path.rpartition("/")[2]
        with self._database.reading() as connection:
            if path == "/v1/dividends":
                return {"models": models_with_pools(connection)}
            if path.startswith("/v1/receipts/"):
                sites = members.site_dids(connection)
                return self._journal.receipt(connection, name, sites=sites)
            return published(connection, name).model_dump(mode="json")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _verified(
    client: "Client | _FolderSource", published: "Dividends", trust: "Trust | None"
) -> dict[str, Any]:
    from coop.dividend_audit import differences

    windows = [_window(client, each.document, each.digest, trust) for each in published.windows]
    return {
        "windows": len(windows),
        "fees": len(published.fees),
        "distributed_nano": sum(window.revenue_nano for window in windows),
        "differences": differences(published, windows),
    }


def _window(
    client: "Client | _FolderSource", document: dict[str, Any], digest: str, trust: "Trust | None"
) -> "DividendWindow":
    """The window's subject; with trust: signed by the hub and in the log."""
    from coop.canonical import document_digest
    from coop.documents.dividend import DividendWindow
    from coop.documents.envelope import WrongDocumentError, open_document
    from coop.journal.receipts import check_bundle

    if document_digest(document) != digest:
        raise WrongDocumentError("window: the document is not the one its digest names")
    if trust is None:
        return DividendWindow.model_validate(document["credentialSubject"])
    logged = check_bundle(client.get(f"/v1/receipts/{digest}"), trust)
    if logged.digest != digest or logged.kind != DividendWindow.kind:
        raise WrongDocumentError("window: the log holds another document")
    return open_document(DividendWindow, document, issuers={trust.hub}).subject


def _sentence(model_id: str, result: dict[str, Any]) -> str:
    from coop.money import NanoCredits, to_text

    mark = "FAIL" if result["differences"] else "ok  "
    credits_ = to_text(NanoCredits(result["distributed_nano"]))
    return f"{mark} {model_id}: {result['windows']} windows, {result['fees']} fees, {credits_}"


def _check_local(state: Path) -> dict[str, Any]:
    from coop.ledger_check import check as check_ledger

    database = _database(state)
    with database.reading() as connection:
        found = asdict(check_ledger(connection))
    database.close()
    return {"ok": not found["findings"], **found}


def _database(state: Path) -> "Database":
    from coop.db import Database
    from coop.errors import NotFoundError
    from coop.settings import Settings

    url = Settings(state=state).database()
    if url.startswith("sqlite") and not (state / "coop.sqlite").exists():
        raise NotFoundError(f"{state} holds no hub database")
    return Database(url)


def _trusted(path: Path | None) -> "Trust | None":
    from coop.journal.trust import Trust
    from coop.settings import Settings

    found = path or Settings().trust_file
    return Trust.load(found) if found else None


def _asked(path: str) -> dict[str, Any]:
    with _client() as client:
        answer: dict[str, Any] = client.get(path)
    return answer


def _client() -> "Client":
    from coop.client import Client
    from coop.settings import Settings

    settings = Settings()
    token = settings.api_key.get_secret_value() if settings.api_key else None
    return Client(settings.hub_url, settings.ca_file, token=token)
