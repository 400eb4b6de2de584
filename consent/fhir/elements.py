"""Reading the elements of a FHIR resource, each once, and noting everything that is wrong.

Core: pure, no I/O.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from consent.fhir.refusals import Problem, Why
from coop.canonical import Json

_MODIFIERS: Final = frozenset({"modifierExtension", "implicitRules"})


class Element:
    """One object of a resource, with its FHIRPath and where problems are noted.

    Args:
        value: Its members.
        path: Its FHIRPath.
        found: Problems of the whole resource; grows while it is read.
    """

    def __init__(self, value: Mapping[str, Json], path: str, found: list[Problem]) -> None:
        self._value = value
        self.path = path
        self._found = found

    def refuse(self, why: Why, message: str, name: str = "") -> None:
        """Note what is wrong with this element, or with its member `name`."""
        where = f"{self.path}.{name}" if name else self.path
        self._found.append(Problem(why=why, where=where, message=message))

    def has(self, name: str) -> bool:
        """Whether the member stands here."""
        return name in self._value

    def only(self, *names: str, unsupported: Collection[str] = ()) -> None:
        """Note every member that is none of `names`."""
        for name, value in self._value.items():
            if value is None or value in ("", [], {}):
                self.refuse(Why.INVALID, "must not be empty", name)
            elif name in names:
                continue
            elif name in _MODIFIERS:
                self.refuse(Why.UNKNOWN_MODIFIER, "not understood here", name)
            elif name in unsupported:
                self.refuse(Why.UNSUPPORTED, "cannot be kept here", name)
            else:
                self.refuse(Why.UNKNOWN_ELEMENT, "not an element of this version", name[:64])

    def text(self, name: str) -> str | None:
        """A text member; None if it is absent or no text."""
        value = self._value.get(name)
        if isinstance(value, str) and value:
            return value
        if name in self._value:
            self.refuse(Why.INVALID, "must be text", name)
        return None

    def flag(self, name: str) -> bool | None:
        """A true or false member."""
        value = self._value.get(name)
        if isinstance(value, bool):
            return value
        if name in self._value:
            self.refuse(Why.INVALID, "must be true or false", name)
        return None

    def part(self, name: str) -> "Element | None":
        """An object member."""
        value = self._value.get(name)
        if isinstance(value, dict):
            return Element(value, f"{self.path}.{name}", self._found)
        if name in self._value:
            self.refuse(Why.INVALID, "must be an object", name)
        return None

    def parts(self, name: str) -> "Iterator[Element]":
        """The objects of a list member."""
        value = self._value.get(name, [])
        if not isinstance(value, list):
            self.refuse(Why.INVALID, "must be a list", name)
            return
        for place, item in enumerate(value):
            path = f"{self.path}.{name}[{place}]"
            if isinstance(item, dict):
                yield Element(item, path, self._found)
            else:
                self._found.append(
                    Problem(why=Why.INVALID, where=path, message="must be an object")
                )

    def codings(self) -> list[tuple[str, str]]:
        """(system, code) of every coding of this CodeableConcept."""
        return [coding.coding() for coding in self.parts("coding")]

    def coding(self) -> tuple[str, str]:
        """(system, code) of this Coding; empty where one is missing."""
        return self.text("system") or "", self.text("code") or ""
