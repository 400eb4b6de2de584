"""Notices that a cooperative publishes beside those of the package, kept for good."""

from collections.abc import Collection, Mapping
from typing import Final

import sqlalchemy as sa

from consent.notice import NoticeText, parse, shipped
from coop.canonical import jcs
from coop.db import metadata
from coop.documents.consent import Notice
from coop.errors import ConflictError, InvalidInputError, Kind, NotFoundError

LANGUAGE: Final = "en"

consent_notice = sa.Table(
    "consent_notice",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("language", sa.String(35), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("language", "version"),
)


class NoticeTakenError(ConflictError):
    """The version is published with other words."""

    code = "consent.notice-taken"


class UnknownNoticeError(InvalidInputError):
    """What she signed names no wording that this cooperative has published."""

    code = "consent.unknown-notice"
    kind = Kind.UNPROCESSABLE


def publish(connection: sa.Connection, notice: NoticeText, now: int) -> None:
    """Keep a notice; it is in force once its version is the newest of its language. Idempotent.

    Raises:
        NoticeTakenError: The version exists with other words.
    """
    for known in every(connection):
        if (known.language, known.version) == (notice.language, notice.version):
            if known.sha256 == notice.sha256:
                return
            raise NoticeTakenError(
                f"notice.version: {notice.language}-{notice.version} is published with other words;"
                " give the changed one the next number"
            )
    body = jcs(notice.model_dump(mode="json", by_alias=True)).decode()
    connection.execute(
        consent_notice.insert().values(
            sha256=notice.sha256,
            language=notice.language,
            version=int(notice.version),
            body=body,
            at=now,
        )
    )


def every(connection: sa.Connection) -> list[NoticeText]:
    """All notices, by language and version."""
    bodies = connection.execute(sa.select(consent_notice.c.body)).scalars()
    found = {each.sha256: each for each in (*shipped(), *(parse(b.encode()) for b in bodies))}
    return sorted(found.values(), key=lambda each: (each.language, int(each.version)))


def in_force(connection: sa.Connection, language: str = LANGUAGE) -> NoticeText:
    """The newest notice of a language; of English where there is none.

    Raises:
        NotFoundError: There is none at all.
    """
    notices = every(connection)
    for wanted in (language, LANGUAGE):
        mine = [each for each in notices if each.language == wanted]
        if mine:
            return mine[-1]
    raise NotFoundError("language: no notice is published in it")


def by_digest(connection: sa.Connection, digest: str) -> NoticeText:
    """The notice with this text.

    Raises:
        NotFoundError: It was never published here.
    """
    for each in every(connection):
        if each.sha256 == digest:
            return each
    raise NotFoundError("sha256: no such notice was published here")


def check_shown(notice: Notice | None, known: Mapping[str, Notice]) -> None:
    """Return if this wording is among the `known`, the published ones, and named as published.

    Raises:
        UnknownNoticeError: It is not, or none was shown.
    """
    if notice is None or known.get(notice.sha256) != notice:
        raise UnknownNoticeError(
            "notice: must name the wording she was shown, one of those at /v1/notices"
        )


def published(connection: sa.Connection, digests: Collection[str]) -> dict[str, Notice]:
    """Those of `digests` that name a published notice, each as a consent must name it."""
    known = {each.sha256: each.reference() for each in shipped()}
    query = sa.select(consent_notice.c.body).where(consent_notice.c.sha256.in_(digests))
    own = (parse(body.encode()) for body in connection.execute(query).scalars())
    known |= {each.sha256: each.reference() for each in own}
    return {digest: known[digest] for digest in digests if digest in known}
