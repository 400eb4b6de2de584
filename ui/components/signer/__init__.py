"""The signing component: keys are made and used in the patient's browser, never here.

Only these things leave the browser: for joining {code_id, did, mac, proof}, for signing
{did, signature}. The private key is a non-extractable CryptoKey in IndexedDB, or a passkey that the
device keeps; the code's secret and the passphrase are read and dropped inside the component
(`signer.js`, twin of `coop.canonical`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import streamlit as st

from ui.session import passkeys
from ui.wording import SIGNER_TEXT

_HERE: Final = Path(__file__).parent
_mount = st.components.v2.component(
    "coop_signer",
    html=(_HERE / "signer.html").read_text(),
    css=(_HERE / "signer.css").read_text(),
    js=(_HERE / "signer.js").read_text(),
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What the browser sent in this rerun; a value is present for exactly one rerun."""

    enrolled: dict[str, str] | None
    signed: dict[str, str] | None


def signer(
    *,
    mode: Literal["join", "sign"],
    did: str | None,
    statement: dict[str, Any] | None,
    summary: list[list[str]],
    key: str = "",
) -> Signed:
    """Show the component.

    Args:
        mode: `join` makes a key for a hospital's code; `sign` signs `statement`.
        did: Whose key must sign.
        statement: The unsigned document with its proof options.
        summary: Label and value pairs shown above the exact text.
        key: Tells two of them on one page apart.
    """
    result = _mount(
        key=f"signer-{mode}{key}",
        data={
            "mode": mode,
            "did": did,
            "statement": statement,
            "summary": summary,
            "text": SIGNER_TEXT,
            "passkeys": passkeys(),
        },
        on_enrolled_change=_nothing,
        on_signed_change=_nothing,
    )
    return Signed(enrolled=_pairs(result.enrolled), signed=_pairs(result.signed))


def _pairs(value: Any) -> dict[str, str] | None:  # noqa: ANN401  (whatever the browser sent)
    return {str(name): str(item) for name, item in dict(value).items()} if value else None


def _nothing() -> None:
    """Triggers are read from the result; Streamlit wants a callback to declare them."""
