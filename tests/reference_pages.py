"""Writes docs/reference/*.md from the code itself: commands, settings, error codes, routes.

`python tests/reference_pages.py` rewrites the pages (`make fix` does); `test_docs.py` fails when
one of them differs from what the code says today.
"""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import click
import typer.main

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/reference"
PACKAGES = ["coop", "consent", "federated", "inference_gateway"]
NOTE = "<!-- Written by tests/reference_pages.py; edit the code, then `make fix`. -->\n\n"


def first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def commands() -> str:
    from coop.cli import app

    lines = ["# Commands\n", "Every command takes `--json` where it answers with facts; exit 0 is"]
    lines += ["success, 1 a refused or failed operation, 2 wrong usage.\n"]

    def walk(command: click.Command, path: str) -> None:
        context = click.Context(command, info_name=path)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(found, f"{path} {name}")
            if not getattr(command, "invoke_without_command", False):
                return
        lines.append(f"\n## `{path}`\n\n{first_line(command.help)}\n")
        rows = []
        for parameter in command.params:
            if parameter.name == "help" or not (record := parameter.get_help_record(context)):
                continue
            names = (
                [parameter.human_readable_name]
                if isinstance(parameter, click.Argument)
                else [*parameter.opts, *parameter.secondary_opts]
            )
            meaning = re.sub(r"\s*\\?\[(default|required).*", "", first_line(record[1]))
            rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {meaning} |")
        if rows:
            lines.append("| argument | meaning |\n|---|---|")
            lines.extend(rows)

    walk(typer.main.get_command(app), "coop")
    return NOTE + "\n".join(lines) + "\n"


def settings() -> str:
    from coop.settings import Settings

    lines = [
        "# Settings\n",
        "Environment variables, read once at start. No secret has a default.\n",
    ]
    lines.append("| variable | default | meaning |\n|---|---|---|")
    for name, field in Settings.model_fields.items():
        default = (
            "" if field.default is None else f"`{field.default}`" if field.default != "" else ""
        )
        lines.append(f"| `COOP_{name.upper()}` | {default} | {first_line(field.description)} |")
    return NOTE + "\n".join(lines) + "\n"


def every_error() -> dict[str, type]:
    from coop.errors import CoopError

    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if ".migrations" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: dict[str, type] = {}
    todo = [CoopError]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.split(".")[0] in PACKAGES:
            found[f"{kind.code} {kind.__name__}"] = kind
    return found


def errors() -> str:
    from coop.problems import status_of

    lines = [
        "# Error codes\n",
        "Stable codes: on the command line, in problem documents, in logs.\n",
    ]
    lines.append("| code | HTTP | meaning |\n|---|---|---|")
    seen = set()
    for key in sorted(found := every_error()):
        kind = found[key]
        if kind.code not in seen:
            seen.add(kind.code)
            lines.append(f"| `{kind.code}` | {status_of(kind.kind)} | {first_line(kind.__doc__)} |")
    return NOTE + "\n".join(lines) + "\n"


def routes() -> str:
    import tempfile

    from fastapi.routing import APIRoute, iter_route_contexts

    from coop.hub.app import create_app
    from coop.hub.folder import HubFolder, LegalMode
    from coop.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state=Path(folder) / "hub", port=0)
        HubFolder.init(settings, legal_mode=LegalMode.STRICTEST, origin="docs.test/log", now=0)
        app = create_app(settings)
        found = sorted(
            (context.path, method, context.original_route)
            for context in iter_route_contexts(app.routes)
            if isinstance(context.original_route, APIRoute)
            for method in context.original_route.methods
        )
    lines = [
        "# Routes of the hub\n",
        "Who may call: the route's principals; everybody else is refused.\n",
    ]
    lines.append("| route | who | what |\n|---|---|---|")
    for path, method, route in found:
        who = ", ".join((route.openapi_extra or {}).get("x-principals", []))
        lines.append(f"| `{method} {path}` | {who} | {first_line(route.endpoint.__doc__)} |")
    return NOTE + "\n".join(lines) + "\n"


PAGES = {"commands": commands, "settings": settings, "errors": errors, "routes": routes}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PAGES:
        (FOLDER / f"{name}.md").write_text(PAGES[name]())


if __name__ == "__main__":
    main()
