"""`coop portal`: the window for patients, researchers and the public; `--hospital` inside."""

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from coop.errors import InvalidInputError

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def portal(
    *,
    hospital: Annotated[bool, typer.Option("--hospital", help="The hospital's console.")] = False,
    state: Annotated[
        Path, typer.Option("--state", help="The hospital's folder, for --hospital.")
    ] = Path(".coop/hospital"),
    port: Annotated[
        int | None, typer.Option(help="Port; the setting COOP_PORTAL_PORT by default.")
    ] = None,
) -> None:
    """Serve the portal on this machine until Ctrl-C."""
    import uvicorn

    from coop.settings import Settings
    from ui.asgi import make_app
    from ui.session import Portal

    settings = Settings()
    chosen = port or settings.portal_port
    origin = settings.portal_url or f"http://localhost:{chosen}"
    if hospital:
        address = state / "local.url"
        token = state / "staff.token"
        if not token.exists() and settings.node_token is None:
            raise InvalidInputError(
                f"{state}: no node has run here; start it with `coop hospital run`, name its "
                "folder with --state, or set COOP_NODE_URL and COOP_NODE_TOKEN"
            )
        here = Portal(
            hub_url=settings.hub_url,
            node_url=address.read_text().strip() if address.exists() else settings.node_url,
            node_token=token.read_text().strip()
            if token.exists()
            else (settings.node_token.get_secret_value() if settings.node_token else ""),
        )
        sign_in = None
    else:
        if not settings.oidc_issuer or settings.oidc_client_secret is None:
            raise InvalidInputError(
                "COOP_OIDC_ISSUER and COOP_OIDC_CLIENT_SECRET: name the sign-in service "
                "(docs/reference/settings.md); `make demo-serve` brings its own"
            )
        here = Portal(hub_url=settings.hub_url, ca_file=settings.ca_file, demo=settings.demo)
        sign_in = {
            "issuer": settings.oidc_issuer,
            "client_id": settings.oidc_client_id,
            "client_secret": settings.oidc_client_secret.get_secret_value(),
            # A fresh one at every start signs everybody out, which is what a restart should do.
            "cookie_secret": secrets.token_urlsafe(32),
        }
    print(f"portal: {origin}", file=sys.stderr)
    application = make_app(here, origin=origin, sign_in=sign_in, hospital=hospital)
    uvicorn.run(application, host="127.0.0.1", port=chosen, log_level="warning", access_log=False)
