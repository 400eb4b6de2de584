"""Following a training run live: each round, who took part, who is waited for, what is spent."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.progress import Progress

    from coop.client import Client

ENDED: Final = frozenset({"finished", "failed", "cancelled"})
_POLL_S: Final = 1.0
_WHY: Final = {
    "node.outside-hours": "trains at other hours",
    "node.stopped": "its staff stopped all use",
    "round.site-offline": "is not connected",
    "round.no-answer": "does not answer",
    "round.not-approved": "its approval is missing",
    "round.withdrawn": "a withdrawal came while it answered",
    "budget.exhausted": "its budget for this study is spent",
}


def why(waiting: Mapping[str, str]) -> str:
    """`zurich (is not connected), budapest (trains at other hours)`."""
    return ", ".join(f"{site} ({_WHY.get(code, code)})" for site, code in sorted(waiting.items()))


def follow(client: "Client", run: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The run when it has ended; until then every round on a line of its own, under a bar.

    Args:
        client: To the hub.
        run: As it was ordered.
        quiet: Print nothing.
    """
    path, told, waited = f"/v1/rounds/{run['order_sha256']}", 0, ""
    details = client.get(path)
    with _bar(quiet=quiet) as bar:
        task = bar.add_task(run["study_id"], total=None)
        say = _silent if quiet else bar.console.print
        spent = _spent(client, details)
        while True:
            bar.update(task, total=details["rounds"] + 1, completed=details["round"])
            for record in details["records"][told:]:
                say(_line(record["credentialSubject"], details, spent))
            told = len(details["records"])
            waiting = why(details["waiting"])
            if waiting and waiting != waited:
                say(f"waiting for {waiting}")
            waited = waiting
            if details["state"] in ENDED:
                return {name: v for name, v in details.items() if name not in {"order", "records"}}
            time.sleep(_POLL_S)
            details = client.get(path)


def _line(
    record: Mapping[str, Any], details: Mapping[str, Any], spent: Callable[[int], str]
) -> str:
    number, rounds = int(record["round"]), int(details["rounds"])
    what = f"round {number} of {rounds}" if record["phase"] == "train" else "evaluation"
    took = f"{len(record['accepted'])} of {len(details['sites'])} hospitals"
    without = why({entry["site"]: entry["code"] for entry in record["refused"]})
    parts = [f"{what:18}", took, spent(number), f"without {without}" if without else ""]
    return "   ".join(part for part in parts if part)


def _spent(client: "Client", details: Mapping[str, Any]) -> Callable[[int], str]:
    """What the rounds so far cost a patient, beside what the study may cost her."""
    from coop.documents.envelope import open_document
    from coop.documents.study import MICRO, Study
    from coop.documents.training import Order

    try:
        from federated.accounting import epsilon_after
    except ImportError:  # a researcher's machine without the numeric stack: the rest is told
        return lambda _number: ""
    order: Order = open_document(Order, details["order"], issuers=None).subject
    answer = client.get(f"/v1/studies/{order.study_id}", version=order.version)
    budget = open_document(Study, answer["document"], issuers=None).subject.budget

    def said(number: int) -> str:
        return f"epsilon {epsilon_after(order, number):.3f} of {budget.epsilon_micro / MICRO:g}"

    return said


def _bar(*, quiet: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    shown = sys.stdout.isatty() and not quiet
    return Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown
    )


def _silent(_text: str) -> None:
    """Print nothing."""
