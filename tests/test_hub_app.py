"""The parts wired together: what one part does, another notices."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from doors_world import PID, world

from coop.db import Database
from coop.dividend_audit import recompute
from coop.economy import Economy
from coop.errors import InvariantError
from coop.hub.failures import OutOfRangeError, refusal_of
from coop.hub.folder import HubFolder, LegalMode
from coop.journal.audit import audit
from coop.journal.store import Journal
from coop.ledger import Leg, post
from coop.money import NANO
from coop.pools import holding_table
from coop.settings import Settings

NOW = 1_800_000_000
MODEL = "heart-v1-0123abcd"


def test_who_withdraws_at_any_door_stops_earning_in_the_same_moment(
    tmp_path: Path, database: Database
):
    """On both databases: the whole hub, from sign-in to withdrawal."""
    with world(tmp_path, database.url) as hub:
        journal = Journal(database, hub.folder.log_key, hub.folder.origin, lambda: NOW)
        economy = Economy(database, journal, hub.folder.hub_key, lambda: NOW)
        with database.unit_of_work() as connection:
            economy.open_pools(connection, MODEL, {"cleveland": [PID]}, {"cleveland": 1})

        def shares() -> int:
            with database.reading() as connection:
                query = sa.select(holding_table.c.shares).where(holding_table.c.pid == PID)
                return int(connection.execute(query).scalar_one())

        hub.actors["ada"].ok("POST", f"/v1/consents/{PID}/suspend", {})
        assert shares() == 1
        hub.actors["staff-cleveland"].ok("POST", f"/v1/consents/{PID}/revoke", {})
        assert shares() == 0
        with database.reading() as connection:
            assert audit(connection, journal).kinds["consent"] == 3
        growth = hub.actors["budapest"].ok("GET", "/v1/sites/budapest/checkpoints?since=0")
        size = hub.actors["public"].ok("GET", "/v1/log/size")["size"]
        assert len(growth["entries"]) == size
        standing = hub.actors["budapest"].ok("GET", f"/v1/sites/budapest/checkpoints?since={size}")
        assert (standing["entries"], growth["checkpoint"]) == ([], standing["checkpoint"])


def test_fees_of_questions_without_a_model_reach_whoever_permits_the_study(
    tmp_path: Path, database: Database
):
    """On both databases: the staff closes the window, anyone recomputes it."""
    with world(tmp_path, database.url) as hub:
        study = hub.objects["study_id"]
        close = f"/v1/dividends/{study}:close"
        coop = hub.actors["staff-coop"]
        assert coop.send("POST", close, {}).status_code == 404  # nothing was asked yet
        with database.unit_of_work() as connection:
            for key, legs in {
                "pay": [Leg("issuance", "researcher:1", 5 * NANO)],
                "ask": [Leg("researcher:1", f"revenue:{study}", 3 * NANO)],
            }.items():
                post(connection, key=key, kind=key, legs=legs, now=NOW)

        assert coop.ok("POST", close, {})["revenue_nano"] == 3 * NANO
        public = hub.actors["public"]
        published = public.ok("GET", f"/v1/dividends/{study}")
        assert [(pool["site"], pool["shares"]) for pool in published["pools"]] == [("cleveland", 1)]
        assert recompute(published) == 1
        earned = hub.actors["ada"].ok("GET", "/v1/me/credits")["waiting_nano"]
        assert earned == published["windows"][0]["split"][f"pool:{study}:cleveland"] > NANO

        hub.actors["ada"].ok("POST", f"/v1/consents/{PID}/revoke", {})
        with database.unit_of_work() as connection:
            legs = [Leg("researcher:1", f"revenue:{study}", NANO)]
            post(connection, key="again", kind="ask", legs=legs, now=NOW)
        coop.ok("POST", close, {})  # the second fee finds nobody of hers: she left
        assert hub.actors["ada"].ok("GET", "/v1/me/credits")["waiting_nano"] == earned
        assert recompute(public.ok("GET", f"/v1/dividends/{study}")) == 2
        assert public.ok("GET", "/v1/ledger/check")["findings"] == []


def test_the_hub_remembers_its_name_and_its_law(tmp_path: Path):
    settings = Settings(state=tmp_path / "hub", hub_url="https://hub.example:8440")
    HubFolder.init(settings, legal_mode=LegalMode.EHDS, origin="hub.example/log", now=NOW)
    found = HubFolder.open(settings.state)
    assert (found.origin, found.legal_mode) == ("hub.example/log", LegalMode.EHDS)
    assert found.hub_url == "https://hub.example:8440"
    assert found.hub_key.did != found.log_key.did
    assert found.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("origin", ["", "Has Capitals", "space here", "/leading", "x" * 129])
def test_an_origin_no_checkpoint_can_hold_is_refused(tmp_path: Path, origin: str):
    settings = Settings(state=tmp_path / "hub")
    with pytest.raises(Exception, match="origin"):
        HubFolder.init(settings, legal_mode=LegalMode.EHDS, origin=origin, now=NOW)
    assert not settings.state.exists()


def test_a_failed_statement_is_the_callers_mistake_only_when_it_is():
    mistake = sa.exc.StatementError("too large", "SELECT", {}, OverflowError())
    assert isinstance(refusal_of(mistake), OutOfRangeError)
    broken = sa.exc.IntegrityError("unique", {}, RuntimeError())
    assert isinstance(refusal_of(broken), InvariantError)
    assert (
        refusal_of(sa.exc.OperationalError("locked", {}, RuntimeError())).code == "db.unavailable"
    )
