"""`coop infer`, `coop cohort`, `coop usage`: ask a model, ask the hospitals, see the bill."""

import csv
import time
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from coop.cli.output import show
from coop.client import Client
from coop.errors import CoopError, InvalidInputError, Kind
from coop.money import NanoCredits, to_text
from coop.settings import Settings

infer_app = typer.Typer(add_completion=False)
cohort_app = typer.Typer(add_completion=False)
usage_app = typer.Typer(add_completion=False)

_WAIT_S: Final = 20  # one long poll for a cohort answer
_POLLS_MAX: Final = 10  # the hub itself gives up on silent hospitals before this
_COSIGNED_WITHIN_S: Final = 5  # hospitals cosign within a second or two
_EMPTY: Final = {"FP64": 0.0, "BYTES": "", "BOOL": False}  # stands where a value is missing
_FLAGS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Key = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="A repeat with the same key is not charged again."),
]
Receipt = Annotated[
    Path | None,
    typer.Option("--receipt", metavar="FILE", help="Keep the receipt, for coop verify receipt."),
]


class MissingKeyError(CoopError):
    """A researcher's command needs an API key in `COOP_API_KEY`."""

    code = "cli.no-api-key"
    kind = Kind.UNAUTHENTICATED


@infer_app.command()
def infer(  # noqa: PLR0913, PLR0917  (the options of a command line)
    model: Annotated[str, typer.Argument(help="Id of a released model (`coop model list`).")],
    file: Annotated[
        Path,
        typer.Option("--input", exists=True, dir_okay=False, help="CSV with a header, or JSON."),
    ],
    study: Annotated[str | None, typer.Option(help="Study; by default the model's.")] = None,
    purpose: Annotated[str | None, typer.Option(help="DUO code; by default the model's.")] = None,
    key: Key = None,
    receipt: Receipt = None,
    as_json: AsJson = False,
) -> None:
    """Ask a released model about your own rows. An empty cell or null is a missing value.

    The rows travel to the gateway and are not stored there; the receipt holds a keyed commitment to
    them, which the printed nonce opens.
    """
    with _client() as client:
        path = f"/v2/models/{model}"
        body = _body(file, client.get(path)["inputs"])
        if study is None or purpose is None:
            # Declared for the caller from the public card; the gateway checks them anyway.
            card = client.get(f"/v1/models/{model}")
            study, purpose = study or card["study_id"], purpose or card["purpose"]
        headers = {"Coop-Study": study, "Coop-Purpose": purpose}
        if key is not None:
            headers["Idempotency-Key"] = key
        answer = client.respond("POST", f"{path}/infer", body, headers)
    risk = orjson.loads(answer.content)["outputs"][0]["data"]
    fee = NanoCredits(int(answer.headers["Coop-Credits-Charged"]))
    facts = {
        "model": model,
        "study": study,
        "purpose": purpose,
        "risk": risk,
        "fee_nano": fee,
        "receipt": answer.headers["Coop-Receipt"],
        "nonce": answer.headers["Coop-Receipt-Nonce"],
    }
    lines = [f"row {at + 1:>5}  risk {value:.3f}" for at, value in enumerate(risk)]
    lines.append(f"charged {to_text(fee)} credits")
    lines += [f"receipt {facts['receipt']}", f"nonce   {facts['nonce']}"]
    show(facts, as_json, "\n".join(lines))
    _keep(answer.headers["Coop-Receipt"], receipt)


@cohort_app.command()
def cohort(  # noqa: PLR0913, PLR0917  (the options of a command line)
    study: Annotated[str, typer.Argument(help="Id of your study.")],
    file: Annotated[
        Path,
        typer.Option("--query", exists=True, dir_okay=False, help="JSON: where, release, …"),
    ],
    version: Annotated[int | None, typer.Option(help="Study version; by default newest.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it costs.")] = False,
    key: Key = None,
    receipt: Receipt = None,
    as_json: AsJson = False,
) -> None:
    """Ask every hospital that approved your study a question that they answer with noise."""
    with _client() as client:
        body = {
            "kind": "cohort",
            "study_id": study,
            "version": version or _newest(client, study),
            "query": _json(file),
        }
        if estimate:
            price = client.post("/v1/jobs:estimate", body)
            show(price, as_json, _estimate_text(price))
            return
        job = client.post("/v1/jobs", body, headers={"Idempotency-Key": key or _fresh_key()})
        for _ in range(_POLLS_MAX):
            if job["state"] != "running":
                break
            job = client.get(f"/v1/jobs/{job['id']}", wait=_WAIT_S)
        result = client.get(f"/v1/jobs/{job['id']}/result")
    show(result, as_json, _result_text(result))
    _keep(result["receipt_sha256"], receipt)


@usage_app.command()
def usage(as_json: AsJson = False) -> None:
    """What you asked and what it cost, by day and model."""
    with _client() as client:
        found = client.get("/v1/usage")
    rows = [
        f"{_day(line['day'])}  {line['mode']:6}  {line['model']:32}  {line['answers']:>6} answers  "
        f"{line['rows']:>8} rows  {to_text(NanoCredits(line['fee_nano']))} credits"
        for line in found["usage"]
    ]
    show(found, as_json, "\n".join(rows) or "nothing was asked yet")


def _client() -> Client:
    settings = Settings()
    if settings.api_key is None:
        raise MissingKeyError("COOP_API_KEY: set it to a researcher's API key (docs/quickstart.md)")
    return Client(settings.hub_url, settings.ca_file, token=settings.api_key.get_secret_value())


def _keep(digest: str, file: Path | None) -> None:
    """Save the receipt, after the paid answer is shown; waits some seconds for cosignatures."""
    if file is None:
        return
    bundle: dict[str, Any] = {}
    with _client() as client:
        for _ in range(_COSIGNED_WITHIN_S):
            bundle = client.get(f"/v1/receipts/{digest}")
            if str(bundle["proof"]).count("\n\u2014 ") > 1:  # the log's own signature is one
                break
            time.sleep(1)
    file.write_bytes(orjson.dumps(bundle))


def _newest(client: Client, study: str) -> int:
    document = client.get(f"/v1/studies/{study}")["document"]
    return int(document["credentialSubject"]["version"])


def _body(file: Path, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    if file.suffix.lower() == ".csv":
        kinds = {tensor["name"]: tensor["datatype"] for tensor in tensors}
        rows = _csv_rows(file, kinds)
    else:
        found = _json(file)
        if isinstance(found, dict) and "inputs" in found:
            return found  # an Open Inference Protocol request as it is
        rows = found if isinstance(found, list) else [found]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidInputError(f"{file.name}: must hold rows as JSON objects, or CSV lines")
    inputs = [tensor for each in tensors if (tensor := _tensor(each, rows)) is not None]
    if not inputs:
        names = ", ".join(tensor["name"] for tensor in tensors)
        raise InvalidInputError(f"{file.name}: no value the model reads; it reads {names}")
    return {"inputs": inputs}


def _tensor(declared: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    name, datatype = declared["name"], declared["datatype"]
    values = [row.get(name) for row in rows]
    missing = [str(at) for at, value in enumerate(values) if value is None]
    if len(missing) == len(rows):
        return None
    nothing = _EMPTY[datatype]
    tensor: dict[str, Any] = {
        "name": name,
        "datatype": datatype,
        "shape": [len(rows)],
        "data": [nothing if value is None else value for value in values],
    }
    return tensor | ({"parameters": {"missing": " ".join(missing)}} if missing else {})


def _csv_rows(file: Path, kinds: dict[str, str]) -> list[dict[str, Any]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            lines = list(csv.DictReader(text, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file.name}: not CSV in UTF-8 ({error})") from error
    for at, line in enumerate(lines):
        if None in line:
            raise InvalidInputError(f"{file.name} line {at + 2}: has more cells than the header")
    return [
        {
            name: _cell(cell, kinds[name], f"{file.name} line {at + 2}, {name}")
            for name, cell in line.items()
            if name in kinds and cell
        }
        for at, line in enumerate(lines)
    ]


def _cell(cell: str, datatype: str, where: str) -> float | str | bool:
    if datatype == "BYTES":
        # As a hospital's import reads words: the model knows them in lower case, and one it does
        # not know would be answered as the reference category.
        return cell.strip().lower()
    if datatype == "BOOL":
        if cell.strip().lower() not in _FLAGS:
            raise InvalidInputError(f"{where}: must be true or false")
        return _FLAGS[cell.strip().lower()]
    try:
        return float(cell)
    except ValueError as error:
        raise InvalidInputError(f"{where}: must be a number") from error


def _json(file: Path) -> Any:  # noqa: ANN401  (whatever the user's file holds; the hub checks it)
    try:
        return orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"{file.name}: not JSON ({error})") from error


def _fresh_key() -> str:
    from coop.keys import random_bytes

    return random_bytes(16).hex()


def _day(seconds: int) -> str:
    from coop.keys import iso

    return iso(seconds)[:10]


def _estimate_text(price: dict[str, Any]) -> str:
    return (
        f"costs {to_text(NanoCredits(price['fee_nano']))} credits\n"
        f"privacy: epsilon at most {price['epsilon_upper_micro'] / 1e6:.3f} for a patient\n"
        f"asks {', '.join(price['sites'])}; the count's noise has sd "
        f"{price['count_sd_micro'] / 1e6:.1f}"
    )


def _table_lines(table: dict[str, Any] | None) -> list[str]:
    """A histogram or a survival table in words."""
    if table is None:
        return []
    edges, cells = (", ".join(map(str, table[name])) for name in ("edges", "cells"))
    noise = table["cell_sd_micro"] / 1e6
    lines = [f"edges {edges}; counts {cells} (noise sd of each {noise:.1f})"]
    if "suppressed" in table:
        return [*lines, f"not read any further: {table['suppressed']}"]
    for percent, value in table.get("quantiles_micro", {}).items():
        said = "outside the edges" if value is None else f"{value / 1e6:g}"
        lines.append(f"{percent} % lie below {said}")
    for point in table.get("survival", []):
        share = point["surviving_micro"] / 1e4
        lines += [f"{share:.1f} % without the event until {point['until']}"]
    return lines


def _result_text(result: dict[str, Any]) -> str:
    lines = [f"count {result['count']} (noise sd {result['count_sd_micro'] / 1e6:.1f})"]
    if "mean_risk_micro" in result:
        mean, spread = result["mean_risk_micro"] / 1e6, result["mean_risk_sd_micro"] / 1e6
        lines.append(f"mean risk {mean:.3f} (noise sd {spread:.3f})")
    lines += _table_lines(result.get("table"))
    lines.append(f"answered by {', '.join(result['sites'])}")
    lines += [f"{refusal['site']}: {refusal['code']}" for refusal in result["refused"]]
    lines.append(f"charged {to_text(NanoCredits(result['fee_nano']))} credits")
    lines.append(f"receipt {result['receipt_sha256']}")
    return "\n".join(lines)
