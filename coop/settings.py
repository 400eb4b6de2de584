"""The one Settings object: read once at the composition roots, passed on as an argument.

Every setting is an environment variable `COOP_NAME`, documented in `docs/reference/settings.md`.
"""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """How this process runs. No secret has a default."""

    model_config = SettingsConfigDict(
        env_prefix="COOP_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    state: Path = Field(
        default=Path(".coop/hub"), description="Folder of this process's keys, database and files."
    )
    database_url: str = Field(
        default="", description="SQLAlchemy URL; empty means SQLite in the state folder."
    )
    host: str = Field(default="127.0.0.1", description="Address the server listens on.")
    port: int = Field(default=8440, description="Port the server listens on; 0 picks a free one.")
    hub_url: str = Field(
        default="https://127.0.0.1:8440", description="Where clients reach the hub."
    )
    ca_file: Path | None = Field(
        default=None, description="Certificate authority that signed the hub's certificate."
    )
    api_key: SecretStr | None = Field(
        default=None, description="Researcher's API key for the CLI and SDK."
    )
    trust_file: Path | None = Field(
        default=None, description="Keys to trust when verifying offline."
    )
    witnesses_file: Path | None = Field(
        default=None,
        description="Outside witnesses of the log, `VKEY URL` a line; none by default.",
    )
    oidc_issuer: str = Field(default="", description="OpenID Connect issuer that signs people in.")
    oidc_client_id: str = Field(
        default="coop-portal", description="Client id of the portal at that issuer."
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="Client secret of the portal."
    )
    portal_port: int = Field(default=8460, description="Port of the portal.")
    portal_url: str = Field(
        default="", description="Public address of the portal; empty means http://localhost:PORT."
    )
    node_url: str = Field(
        default="http://127.0.0.1:8450", description="The hospital node's loopback API."
    )
    node_token: SecretStr | None = Field(
        default=None, description="Staff token for the hospital node's loopback API."
    )
    demo: bool = Field(
        default=False, description="Demo: people are made up, and the portal's pages say so."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_mistyped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A setting that is nearly one of ours is a slip: ignoring it would leave the default."""
        known = [f"COOP_{name.upper()}" for name in cls.model_fields]
        for name in os.environ:  # noqa: TID251  (the one place that reads settings)
            if name.startswith("COOP_") and name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.85)
                if near:
                    raise ValueError(f"{name} is unknown; did you mean {near[0]}?")
        return values

    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{(self.state / 'coop.sqlite').absolute()}"
