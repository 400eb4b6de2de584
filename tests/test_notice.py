"""What patients are told: complete by law, exact for good, and bound to what they sign."""

from hashlib import sha256

import pytest
import yaml

from consent.notice import ELEMENTS, BadNoticeError, NoticeText, parse, shipped
from consent.notice_store import NoticeTakenError, by_digest, every, in_force, publish
from coop.db import Database
from coop.errors import NotFoundError

DIGESTS = {"en-1": "e76e94121475f0bb2eb8801ecc9276bc75ef7baa05865462c929aeff922fe3d4"}


def fields() -> dict[str, object]:
    return shipped()[-1].model_dump(by_alias=True)


def notice(**changes: object) -> NoticeText:
    return parse(yaml.safe_dump({**fields(), **changes}).encode())


def test_no_word_of_a_notice_that_patients_signed_under_ever_changes():
    assert {f"{each.language}-{each.version}": each.sha256 for each in shipped()} == DIGESTS


def test_what_is_shown_holds_every_passage_and_is_what_the_digest_is_of():
    told = shipped()[-1]
    assert told.sha256 == sha256(told.text().encode()).hexdigest() == told.reference().sha256
    for name in ELEMENTS:
        assert told.passage(name) in told.text()


def test_every_element_of_the_law_has_a_passage():
    named = {source for element in ELEMENTS.values() for source in element.sources}
    wanted = [f"45 CFR 164.508(c)(1)({number})" for number in ("i", "ii", "iii", "iv", "v", "vi")]
    wanted += [f"45 CFR 164.508(c)(2)({number})" for number in ("i", "ii", "iii")]
    wanted += ["45 CFR 164.508(c)(4)", *(f"GDPR 7({number})" for number in range(1, 5))]
    assert set(wanted) <= named


def test_the_notice_in_force_is_true_of_any_cooperative():
    words = shipped()[-1].text().lower()
    assert not [fact for fact in ("demonstration", "made-up", "1988", "public") if fact in words]


@pytest.mark.parametrize("name", ["headline", *ELEMENTS])
def test_a_missing_or_empty_passage_is_named(name: str):
    without = {key: value for key, value in fields().items() if key != name}
    for content in (without, {**without, name: ""}):
        with pytest.raises(BadNoticeError, match=f"notice.{name}"):
            parse(yaml.safe_dump(content).encode())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"a: [", b"x" * 70_000, b"!!python/object/apply:os.getcwd []"]
)
def test_what_is_no_notice_is_refused(content: bytes):
    with pytest.raises(BadNoticeError):
        parse(content)
    with pytest.raises(BadNoticeError, match="no such passage"):
        notice(headings={"what": "Was", "other": "?"})


def test_a_changed_word_is_a_new_version_and_the_newest_is_in_force(database: Database):
    german = notice(language="de", headings={"what": "Worum es geht"}, what="Ihre Akte.")
    changed = notice(what="Another sentence.")
    second = notice(what="Another sentence.", version="2")
    with database.unit_of_work() as connection:
        publish(connection, german, 1)
        publish(connection, german, 2)
        publish(connection, shipped()[-1], 2)
        with pytest.raises(NoticeTakenError, match="next number"):
            publish(connection, changed, 2)
        assert in_force(connection).version == "1"
        publish(connection, second, 3)
    with database.reading() as connection:
        assert (in_force(connection).version, in_force(connection, "de")) == ("2", german)
        assert in_force(connection, "fr") == second
        assert by_digest(connection, shipped()[-1].sha256) == shipped()[-1]
        assert [f"{e.language}-{e.version}" for e in every(connection)] == ["de-1", "en-1", "en-2"]
        with pytest.raises(NotFoundError):
            by_digest(connection, "0" * 64)
    assert "**Worum es geht.** Ihre Akte." in german.text()
