"""`coop`: the one command line. Groups load only when they are used, so `coop --help` is quick."""

import sys
from importlib import import_module
from typing import Any, Final, NoReturn

import click
import typer
import typer.main
from typer.core import TyperGroup

from coop.errors import CoopError

_GROUPS: Final[dict[str, tuple[str, str, str]]] = {
    # name: (module, attribute, help)
    "demo": ("coop.cli.demo", "app", "The whole cooperative on four real hospitals' records."),
    "hub": ("coop.cli.hub", "app", "Run the cooperative's central service."),
    "hospital": ("coop.cli.proofs", "app", "Join, import, approve and run as a hospital."),
    "patient": ("coop.cli.keys", "app", "Enrol, decide, withdraw, see what used your record."),
    "study": ("coop.cli.study", "app", "Propose and train studies."),
    "model": ("coop.cli.model", "app", "Released models: list, card, verify, export."),
    "infer": ("coop.cli.infer", "infer_app", "Ask a released model about your own rows."),
    "cohort": ("coop.cli.infer", "cohort_app", "Ask the hospitals a noised question."),
    "usage": ("coop.cli.infer", "usage_app", "What you asked and what it cost."),
    "ledger": ("coop.cli.ledger", "app", "Check, print and export the credit ledger."),
    "dividends": ("coop.cli.ledger", "dividends_app", "Recompute every dividend."),
    "verify": ("coop.cli.verify", "app", "Verify documents offline."),
    "simulate": ("coop.cli.simulate", "app", "The same training code in one process."),
    "audit": ("coop.cli.audit", "app", "Attack a training to test the privacy it claims."),
    "portal": (
        "coop.cli.portal",
        "app",
        "The window for patients, researchers, hospitals and all.",
    ),
    "doctor": ("coop.cli.doctor", "app", "What this machine has and lacks."),
}


class _Lazy(TyperGroup):
    """A command group that imports a subcommand only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _GROUPS:
            return None
        module, attribute, text = _GROUPS[cmd_name]
        command = typer.main.get_command(getattr(import_module(module), attribute))
        command.name, command.help = cmd_name, command.help or text
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in _GROUPS.items()])


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _coop() -> None:
    """Health data cooperative: hospitals learn together, patients decide, contributors earn."""


def main() -> NoReturn:
    """Run the command line: exit 0 on success, 1 on a refused or failed operation, 2 on misuse."""
    try:
        app()
    except CoopError as error:
        print(str(error), file=sys.stderr)
    except BrokenPipeError:
        pass
    except Exception as error:
        # By name: SQLAlchemy and pydantic are start-up that most commands need not pay.
        match type(error).__name__:
            case "OperationalError":
                print("db.unavailable: the database does not answer or is full", file=sys.stderr)
            case "ValidationError" if getattr(error, "title", "") == "Settings":
                print(_wrong_settings(error), file=sys.stderr)
                sys.exit(2)
            case _:
                raise
    sys.exit(1)


def _wrong_settings(error: Any) -> str:  # noqa: ANN401  (pydantic's ValidationError, see above)
    lines = []
    for one in error.errors(include_input=False):
        about = f"COOP_{'.'.join(map(str, one['loc'])).upper()}: " if one["loc"] else ""
        said = one["msg"].removeprefix("Value error, ")
        lines.append(f"{about}{said} (docs/reference/settings.md)")
    return "\n".join(lines)
