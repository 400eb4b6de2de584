"""Routes of the notices: the exact words in force, and every wording anybody ever signed under."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict

from consent import notice_store
from consent.notice import ELEMENTS, NoticeText
from coop.documents.consent import Notice
from coop.doors import Doors, Principal


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ListedNotice(_Answer):
    """A notice, and whether it is the one to show now."""

    notice: Notice
    in_force: bool


class NoticesAnswer(_Answer):
    """Every notice, by language and version."""

    notices: list[ListedNotice]


class Passage(_Answer):
    """One passage, and the law that asks for it."""

    element: str
    heading: str
    text: str
    sources: list[str]


class NoticeAnswer(_Answer):
    """One notice: `text` is the exact wording, whose SHA-256 stands in what was signed."""

    notice: Notice
    text: str
    passages: list[Passage]


def routes(doors: Doors) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["consent"])

    @doors.route(router, "GET", "/v1/notices", Principal.PUBLIC)
    def notices() -> NoticesAnswer:
        """Every wording patients were asked to sign under."""
        with doors.database.reading() as connection:
            found = notice_store.every(connection)
        newest = {each.language: each.sha256 for each in found}
        return NoticesAnswer(
            notices=[
                ListedNotice(notice=each.reference(), in_force=newest[each.language] == each.sha256)
                for each in found
            ]
        )

    @doors.route(router, "GET", "/v1/notices:current", Principal.PUBLIC)
    def current(
        language: Annotated[str, Query(max_length=35)] = notice_store.LANGUAGE,
    ) -> NoticeAnswer:
        """The wording to show now, in this language or else in English."""
        with doors.database.reading() as connection:
            return _answer(notice_store.in_force(connection, language))

    @doors.route(router, "GET", "/v1/notices/{sha256}", Principal.PUBLIC)
    def notice(sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]) -> NoticeAnswer:
        """One wording, by the digest that stands in the consent."""
        with doors.database.reading() as connection:
            return _answer(notice_store.by_digest(connection, sha256))

    return router


def _answer(found: NoticeText) -> NoticeAnswer:
    return NoticeAnswer(
        notice=found.reference(),
        text=found.text(),
        passages=[
            Passage(
                element=name,
                heading=found.headings.get(name, element.heading),
                text=found.passage(name),
                sources=list(element.sources),
            )
            for name, element in ELEMENTS.items()
        ],
    )
