"""What a patient is told before she decides: exact words, kept for good, bound to her signature.

A notice has one passage for every element that the law wants in an authorisation (HIPAA, 45 CFR
164.508(c)) or beside a consent (GDPR Art. 7 and 13), so none can be forgotten; its text is those
passages in a fixed order, and the SHA-256 of that text stands in what she signs. A changed word is
a new version.

Core: pure but for reading the notices that ship with the package.
"""

from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coop.canonical import sha256
from coop.documents.consent import Notice
from coop.errors import InvalidInputError, Kind

_Words = Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]+$")
_BYTES_MAX: Final = 65_536
_CFR: Final = "45 CFR 164.508"


class BadNoticeError(InvalidInputError):
    """The file is no complete notice."""

    code = "consent.bad-notice"
    kind = Kind.UNPROCESSABLE


class NoticeText(BaseModel):
    """The passages of one notice in one language; each is one paragraph of plain words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$", max_length=35)
    """BCP 47."""
    version: str = Field(pattern=r"^[1-9][0-9]{0,5}$")
    headline: str = _Words
    what: str = _Words
    who_uses: str = _Words
    recipients: str = _Words
    purposes: str = _Words
    until: str = _Words
    signature: str = _Words
    stopping: str = _Words
    after_stopping: str = _Words
    free_choice: str = _Words
    passing_on: str = _Words
    privacy: str = _Words
    credits: str = _Words
    controller: str = _Words
    rights: str = _Words
    copy_: str = Field(alias="copy", min_length=1, max_length=2000)
    headings: dict[str, str] = Field(default_factory=dict)
    """Headings in the notice's own language, by element; English ones by default."""

    def text(self) -> str:
        """The exact wording, as it is shown: Markdown."""
        parts = [f"# {self.headline}"]
        for name, element in ELEMENTS.items():
            parts.append(f"**{self.headings.get(name, element.heading)}.** {self.passage(name)}")
        return "\n\n".join(parts) + "\n"

    def passage(self, name: str) -> str:
        """The passage of one element."""
        return str(getattr(self, "copy_" if name == "copy" else name))

    @property
    def sha256(self) -> str:
        """Hex digest of the text: what her signature is bound to."""
        return sha256(self.text().encode()).hex()

    def reference(self) -> Notice:
        """What a consent event says about the wording shown."""
        return Notice(
            uri=f"urn:coop:notice:{self.language}-{self.version}",
            language=self.language,
            version=self.version,
            sha256=self.sha256,
        )


class Element(NamedTuple):
    """A passage, and where the law asks for it."""

    heading: str
    sources: tuple[str, ...]


ELEMENTS: Final[dict[str, Element]] = {
    "what": Element("What is used", (f"{_CFR}(c)(1)(i)", "GDPR 7(2)")),
    "who_uses": Element("Who uses it", (f"{_CFR}(c)(1)(ii)",)),
    "recipients": Element("Who receives something", (f"{_CFR}(c)(1)(iii)", "GDPR 13(1)(e)")),
    "purposes": Element("What for", (f"{_CFR}(c)(1)(iv)", "GDPR 13(1)(c)")),
    "until": Element("Until when", (f"{_CFR}(c)(1)(v)", "GDPR 13(2)(a)")),
    "signature": Element("Your signature", (f"{_CFR}(c)(1)(vi)", "GDPR 7(1)")),
    "stopping": Element("How to stop", (f"{_CFR}(c)(2)(i)", "GDPR 7(3)")),
    "after_stopping": Element("What stays after you stop", (f"{_CFR}(b)(5)", "GDPR 7(3)")),
    "free_choice": Element("Nothing depends on it", (f"{_CFR}(c)(2)(ii)", "GDPR 7(4)")),
    "passing_on": Element("Whether it is passed on", (f"{_CFR}(c)(2)(iii)",)),
    "privacy": Element("How you are protected", ("GDPR 5(1)(f)",)),
    "credits": Element("What comes back", ("GDPR 7(4)",)),
    "controller": Element("Who answers for it", ("GDPR 13(1)(a)", "GDPR 13(1)(b)")),
    "rights": Element("Your other rights", ("GDPR 13(2)(b)", "GDPR 13(2)(d)", "GDPR 17")),
    "copy": Element("Your copy", (f"{_CFR}(c)(4)",)),
}
"""Every passage in the order in which it is read."""


def parse(content: bytes) -> NoticeText:
    """The notice in a YAML file.

    Raises:
        BadNoticeError: It is none; the message names the passage that is missing or wrong.
    """
    if len(content) > _BYTES_MAX:
        raise BadNoticeError(f"notice: longer than {_BYTES_MAX} bytes")
    try:
        value: Any = yaml.safe_load(content)
        found = NoticeText.model_validate(value)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadNoticeError("notice: not YAML in UTF-8") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadNoticeError(f"notice.{where}: {error.errors()[0]['msg']}") from error
    if unknown := sorted(set(found.headings) - set(ELEMENTS)):
        raise BadNoticeError(f"notice.headings.{unknown[0][:40]}: there is no such passage")
    return found


@lru_cache(maxsize=1)
def shipped() -> tuple[NoticeText, ...]:
    """The notices of this package, oldest first."""
    folder = files("consent").joinpath("notices")
    found = [parse(f.read_bytes()) for f in folder.iterdir() if f.name.endswith(".yaml")]
    return tuple(sorted(found, key=lambda each: (each.language, int(each.version))))
