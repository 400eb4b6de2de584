"""`coop demo`: the whole cooperative on one machine."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def demo(
    *,
    serve: bool = typer.Option(False, "--serve/--no-serve", help="Keep the portal up at the end."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on standard output."),
    folder: Path = typer.Option(Path(".coop/demo"), help="Where the demo keeps its state."),  # noqa: B008  (typer's way)
) -> None:
    """Tell the whole story on the bundled records of four hospitals, then audit it."""
    from coop.demo.story import tell

    raise typer.Exit(tell(folder=folder.absolute(), serve=serve, as_json=as_json))
