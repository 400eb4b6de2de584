"""Who may speak for a record: the history of its key, and the people who decide for the patient."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from coop.canonical import digest
from coop.documents.envelope import Subject
from coop.documents.provision import TIME_MAX
from coop.documents.study import Name, Part, Sha256

GUARDIANS_MAX: Final = 7
_NEXT_KEY: Final = b"coop/next-key/v1"
Role = Literal["parent", "guardian", "proxy", "executor"]


class Authority(Part):
    """The paper that a representative's right rests on; the paper itself stays at the hospital."""

    kind: Literal["birth-record", "court-order", "power-of-attorney", "will", "other"]
    document_sha256: str = Sha256


class KeyEvent(Subject):
    """One step in the history of a record's key.

    `rotate` is signed by the key whose hash was committed to before, `recover` by a guardian each
    (it takes effect with the threshold-th who names the same key), `revoke-all` by the record's
    key, an earlier one of it, or the registry or hospital for whoever is entitled.
    """

    kind: ClassVar[str] = "key-event"

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    site: str = Name
    sequence: int = Field(ge=1)
    previous: str = Sha256
    """The enrolment or key event that gave the record the key it has."""
    event: Literal["rotate", "recover", "revoke-all"]
    key: str | None = None
    """The new key's did."""
    next_key_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the key after that (`committed`)."""
    guardians: list[str] | None = None
    """With `rotate`: who can recover the key from now on; None leaves it as it is."""
    threshold: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key is None) != (self.event == "revoke-all"):
            raise ValueError("key: a new one belongs in rotate and recover, and nowhere else")
        if self.event == "revoke-all" and self.next_key_sha256 is not None:
            raise ValueError("next_key_sha256: there is no next key")
        if self.event != "rotate" and (self.guardians, self.threshold) != (None, None):
            raise ValueError("guardians: only rotate changes them")
        check_guardians(self.guardians, self.threshold)
        return self


class Representation(Subject):
    """Somebody who may decide for the patient, from then until then.

    Signed by the hospital, whose registrar saw the paper; a proxy may be named by the patient's own
    key instead. For a minor `valid_until` is the second she comes of age.
    """

    kind: ClassVar[str] = "representation"

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    site: str = Name
    did: str
    """The representative's own key."""
    role: Role
    authority: Authority | None = None
    """None where the patient's own signature is the authority."""
    valid_from: int = Field(ge=0, le=TIME_MAX)
    valid_until: int = Field(ge=0, le=TIME_MAX)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.valid_from >= self.valid_until:
            raise ValueError("valid_until: must be later than valid_from")
        return self


class RepresentationEnd(Subject):
    """The end of a representation before its time; open to whoever is entitled to restrict."""

    kind: ClassVar[str] = "representation-end"

    pid: str = Field(pattern=r"^[a-z2-7]{26}$")
    site: str = Name
    representation_sha256: str = Sha256


PEOPLE: Final[dict[str, type[KeyEvent | Representation | RepresentationEnd]]] = {
    KeyEvent.kind: KeyEvent,
    Representation.kind: Representation,
    RepresentationEnd.kind: RepresentationEnd,
}
"""The documents beside enrolments that say who may speak for a record, by kind."""


def committed(did: str) -> str:
    """What stands for a key before it is used: who knows this hash cannot make its signature."""
    return digest(_NEXT_KEY, did).hex()


def check_guardians(guardians: Sequence[str] | None, threshold: int | None) -> None:
    """Return if so many of these guardians can be asked for.

    Raises:
        ValueError: They cannot.
    """
    if (guardians is None) != (threshold is None):
        raise ValueError("guardians: come with a threshold")
    if guardians is None or threshold is None:
        return
    if len(set(guardians)) != len(guardians) or len(guardians) > GUARDIANS_MAX:
        raise ValueError(f"guardians: at most {GUARDIANS_MAX}, each named once")
    if not min(1, len(guardians)) <= threshold <= len(guardians):
        raise ValueError("threshold: must be from 1 to the number of guardians")
