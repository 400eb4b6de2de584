"""A hospital's approval: what it signs, what it refuses to sign, and how it takes it back."""

import threading
from types import SimpleNamespace

import orjson
import pytest
import sqlalchemy as sa
from coop_world import HOSPITAL, now, world
from coop_world import digest as digest_of
from typer.testing import CliRunner

from coop import members, studies
from coop.backup import backup_folder
from coop.cli import app
from coop.documents.envelope import issue, open_document
from coop.documents.study import Approval
from coop.errors import InvalidInputError
from coop.keys import SigningKey
from federated import witnesses
from federated.accounting import ImpossiblePlanError, epsilon_of_rho
from federated.approval import (
    NotApprovedError,
    StudyAlteredError,
    approve,
    approved_studies,
    approved_study,
    review,
    revoke,
    software_version,
)
from federated.budget import Line
from federated.fab import fab_hash
from federated.join import join
from federated.round import answer_round
from federated.site import Site, TrustPinnedError
from federated.study_limits import (
    PriceTooHighError,
    PurposeForPeopleError,
    StudyExpiredError,
    UnknownPurposeError,
)


@pytest.fixture(scope="module")
def coop(tmp_path_factory):
    with world(tmp_path_factory.mktemp("coop")) as made:
        yield made


def kept(coop, document):
    with coop.site.database.reading() as connection:
        return approved_study(connection, coop.site, digest_of(document))


def test_an_approval_names_exactly_what_was_reviewed_and_the_hub_gets_it(coop):
    study, document = coop.study("approve-one")
    signed = coop.approve(study)
    said = open_document(Approval, signed, issuers={coop.site.key.did}).subject
    assert said.study_sha256 == digest_of(document)
    assert (said.site, said.epsilon_cap_micro) == (HOSPITAL, 1_000_000)
    assert (said.software, said.fab_sha256) == (software_version(), fab_hash())
    assert said.witnesses == {
        name: site.key.did for name, site in coop.sites.items() if name != HOSPITAL
    }
    assert said.expires == study.expires
    with coop.database.reading() as connection:
        (hubs,) = studies.approvals_of(connection, digest_of(document))
    assert hubs.document == signed
    assert kept(coop, document).approval == said


def test_a_restored_ledger_is_not_believed_and_only_a_new_version_trains(coop, tmp_path):
    study, document = coop.study("before-restore")
    coop.approve(study)
    backup_folder(coop.site.folder, tmp_path / "backup", database="node.sqlite")
    answer_round(coop.site, coop.mirror, coop.ready("spent-since").input())
    arguments = ["hospital", "restore", str(tmp_path / "backup"), "--state", str(tmp_path / "new")]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert orjson.loads(done.stdout)["approvals_ended"] >= 1
    restored = Site.open(tmp_path / "new")
    with restored.database.reading() as connection, pytest.raises(NotApprovedError):
        approved_study(connection, restored, digest_of(document)).check_in_force(now())
    for name in ("before-restore", "spent-since"):
        with pytest.raises(StudyAlteredError):
            approve(restored, coop.client, name, now=now())
    restored.close()


def test_approving_again_gives_the_same_document_even_after_an_import(coop):
    study, _ = coop.study("approve-twice")
    signed = coop.approve(study)
    coop.newcomers(1)
    assert coop.approve(study) == signed


def test_a_review_shows_the_price_and_every_reason_to_refuse(coop):
    coop.study("review-good")
    good = review(coop.site, coop.client, "review-good", now=now())
    assert (good["delta"], good["problems"]) == ("0.000001", [])
    assert good["epsilon"]["training_and_evaluation"] == "0.96"
    assert 0.2 < float(good["epsilon"]["cohort_questions"]) < 0.3
    assert 0.99 < float(good["epsilon"]["together"]) <= 1
    assert good["plan"]["rounds"] == 4
    coop.study("review-bad", purpose="DUO:9999999", budget__delta_pico=10_000_000)
    bad = review(coop.site, coop.client, "review-bad", now=now())
    assert [problem["code"] for problem in bad["problems"]] == [
        "approval.unknown-purpose",
        "approval.price-too-high",
    ]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"purpose": "DUO:9999999"}, UnknownPurposeError),
        ({"disease": None}, UnknownPurposeError),
        ({"further_purposes": ["DUO:0000011", "DUO:9999999"]}, UnknownPurposeError),
        ({"purpose": "DUO:0000001"}, PurposeForPeopleError),
        ({"further_purposes": ["DUO:0000034"]}, PurposeForPeopleError),
        ({"uses": ["train-federated", "sell"]}, UnknownPurposeError),
        ({"budget__epsilon_micro": 2_000_000}, PriceTooHighError),
        ({"budget__delta_pico": 10_000_000}, PriceTooHighError),
        ({"recipe__population": 10**9}, PriceTooHighError),
        ({"budget__cohort_rho_nano": 10**9}, PriceTooHighError),
        ({"budget__reserve_percent": 50}, ImpossiblePlanError),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_study_outside_the_hospitals_limits_is_not_signed(coop, request, changes, error):
    study, document = coop.study(
        f"refuse-{len(changes)}{sum(map(ord, request.node.name))}", **changes
    )
    with pytest.raises(error):
        coop.approve(study)
    with pytest.raises(NotApprovedError):
        kept(coop, document)


def test_a_dearer_study_needs_an_explicit_cap_and_three_is_the_most(coop):
    study, document = coop.study("opt-in", budget__epsilon_micro=2_900_000)
    with pytest.raises(PriceTooHighError):
        coop.approve(study)
    for cap in ("3.1", "0", "-1", "NaN", "much", "0.0000001"):
        with pytest.raises(InvalidInputError):
            coop.approve(study, epsilon_cap=cap)
    coop.approve(study, epsilon_cap="3")
    assert kept(coop, document).approval.epsilon_cap_micro == 3_000_000


def test_the_cap_holds_training_evaluation_and_cohort_questions_together(coop):
    # Each part alone is well below the cap of 1; a patient who joins all of it would lose 1.03.
    study, document = coop.study("composed", budget__epsilon_micro=992_000)
    shown = review(coop.site, coop.client, "composed", now=now())["epsilon"]
    assert float(shown["training_and_evaluation"]) < 1
    assert float(shown["cohort_questions"]) < 1 < float(shown["together"])
    with pytest.raises(PriceTooHighError, match=f"cohort_rho.* {shown['together']}"):
        coop.approve(study, epsilon_cap="1")
    with pytest.raises(NotApprovedError):
        kept(coop, document)
    coop.approve(study, epsilon_cap=shown["together"])
    # It bounds what the ledger lets her pay: every line of this version to its end.
    ends = [kept(coop, document).lines.end_of(line) for line in Line]
    whole = epsilon_of_rho(sum(ends), study.budget.delta_pico / 1e12)
    assert 1 < whole <= float(shown["together"])


def test_an_expired_study_is_not_signed(coop):
    study, _ = coop.study("soon-over", expires=now() + 3600)
    with pytest.raises(StudyExpiredError):
        approve(coop.site, coop.client, study.study_id, now=now() + 3600)


def test_a_second_text_under_an_approved_name_is_not_signed(coop):
    study, _ = coop.study("one-text")
    coop.approve(study)

    class Lying:
        """The hub's answers, with another study put in."""

        def get(self, path, **params):
            answer = coop.client.get(path, **params)
            if path.startswith("/v1/studies"):
                other = study.model_copy(update={"commercial": True})
                answer["document"] = issue(other, SigningKey.generate(), now())
            return answer

    with pytest.raises(StudyAlteredError):
        approve(coop.site, Lying(), study.study_id, now=now())
    coop.study("another-name")
    with pytest.raises(StudyAlteredError):
        approve(coop.site, Lying(), "another-name", now=now())


def test_a_hub_that_names_a_new_key_for_a_hospital_gets_no_signature(coop):
    study, _ = coop.study("new-key")
    renamed = SigningKey.generate().did
    table = members.site_table
    with coop.database.unit_of_work() as connection:
        connection.execute(sa.update(table).where(table.c.name == "budapest").values(did=renamed))
    with pytest.raises(witnesses.WitnessChangedError):
        coop.approve(study)
    with coop.database.unit_of_work() as connection:
        connection.execute(
            sa.update(table)
            .where(table.c.name == "budapest")
            .values(did=coop.sites["budapest"].key.did)
        )
    coop.approve(study)


def test_a_hub_that_leaves_hospitals_out_does_not_lower_how_many_must_cosign(coop):
    study, _ = coop.study("left-out")

    class Hiding:
        def get(self, path, **params):
            if path == "/v1/members/sites":
                return {"sites": []}
            return coop.client.get(path, **params)

        def post(self, path, body):
            return coop.client.post(path, body)

    signed = approve(coop.site, Hiding(), study.study_id, now=now())
    assert set(signed["credentialSubject"]["witnesses"]) == {"budapest", "zurich"}


def test_a_hub_that_invents_a_hospital_gets_no_signature_before_somebody_compared_its_key(coop):
    study, _ = coop.study("invented")
    invented = SigningKey.generate().did

    class Inventing:
        def get(self, path, **params):
            answer = coop.client.get(path, **params)
            if path == "/v1/members/sites":
                answer["sites"].append({"name": "atlantis", "did": invented})
            return answer

        def post(self, path, body):
            return coop.client.post(path, body)

    before = witnesses.known(coop.site)
    shown = review(coop.site, Inventing(), study.study_id, now=now())
    assert shown["unknown_witnesses"] == {"atlantis": invented}
    assert shown["witnesses"] == before
    with pytest.raises(
        witnesses.WitnessUnknownError, match=f"coop hospital accept atlantis={invented}"
    ):
        approve(coop.site, Inventing(), study.study_id, now=now())
    assert witnesses.known(coop.site) == before  # it counts nowhere: no lease, no approval


class Listing:
    """A hub that lists these hospitals."""

    def __init__(self, **sites):
        self.sites = sites

    def get(self, path, **_params):
        assert path == "/v1/members/sites"
        return {"sites": [{"name": name, "did": did} for name, did in self.sites.items()]}


@pytest.fixture
def basel(tmp_path):
    """A hospital that joined with Bern; Chur is a member since."""
    site = Site.create(tmp_path / "basel", "basel")
    keys = {name: SigningKey.generate().did for name in ("hub", "log", "bern", "chur")}
    trust = {
        "v": 1, "hub": keys["hub"], "log": keys["log"], "origin": "test/log",
        "sites": {"basel": site.key.did, "bern": keys["bern"]}, "k": 1,
    }  # fmt: skip
    site.pin(trust, "https://hub.test", None)
    hub = Listing(basel=site.key.did, bern=keys["bern"], chur=keys["chur"])
    yield SimpleNamespace(site=site, keys=keys, hub=hub, trust=trust)
    site.close()


def test_an_accepted_hospital_counts_as_a_witness_until_it_has_left(basel):
    bern, both = {"bern": basel.keys["bern"]}, {n: basel.keys[n] for n in ("bern", "chur")}
    assert witnesses.known(basel.site) == bern
    assert witnesses.unknown(basel.site, basel.hub) == {"chur": basel.keys["chur"]}
    for _ in range(2):
        accepted = witnesses.accept(basel.site, basel.hub, {"chur": basel.keys["chur"]})
        assert accepted == both
    assert witnesses.agreed(basel.site, basel.hub) == both
    assert witnesses.end(basel.site, "chur") == bern
    with pytest.raises(InvalidInputError, match="does not count"):
        witnesses.end(basel.site, "chur")
    assert witnesses.unknown(basel.site, basel.hub) == {"chur": basel.keys["chur"]}
    assert witnesses.accept(basel.site, basel.hub, {"chur": basel.keys["chur"]}) == both
    assert basel.site.hub_url == "https://hub.test"


def test_what_the_cooperative_does_not_list_exactly_so_is_not_accepted(basel):
    """A slip of the pen locks nobody out."""
    other = SigningKey.generate().did
    for name, did in {
        "chr": basel.keys["chur"], "chur": other, "basel": basel.site.key.did, "bern": other,
    }.items():  # fmt: skip
        with pytest.raises(witnesses.WitnessUnknownError, match="letter by letter"):
            witnesses.accept(basel.site, basel.hub, {name: did})
    moved = Listing(**{**basel.hub.sites, "bern": other})
    with pytest.raises(TrustPinnedError):
        witnesses.accept(basel.site, moved, {"bern": other})
    assert witnesses.known(basel.site) == {"bern": basel.keys["bern"]}


@pytest.mark.parametrize("name", ["Zug; rm -rf ~", "$(reboot)", "", "bern\n"])
def test_a_hub_puts_no_words_into_the_command_that_a_person_copies(basel, name):
    listing = Listing(**{**basel.hub.sites, name: SigningKey.generate().did})
    with pytest.raises(witnesses.WitnessChangedError, match="no hospital's name"):
        witnesses.agreed(basel.site, listing)
    with pytest.raises(witnesses.WitnessChangedError, match="no key"):
        witnesses.agreed(basel.site, Listing(zug="did:key:$(reboot)"))


def test_hospitals_accepted_at_once_are_all_accepted(basel):
    keys = {f"site{number}": SigningKey.generate().did for number in range(16)}
    hub = Listing(**basel.hub.sites, **keys)
    threads = [
        threading.Thread(target=witnesses.accept, args=(basel.site, hub, {name: did}))
        for name, did in keys.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(witnesses.known(basel.site)) == {"bern", *keys}


def test_pinning_again_leaves_no_hospital_out(basel):
    witnesses.accept(basel.site, basel.hub, {"chur": basel.keys["chur"]})
    basel.site.pin({**basel.trust, "sites": {}}, "https://hub.test", None)
    assert set(witnesses.known(basel.site)) == {"bern", "chur"}


def test_joining_once_more_changes_nothing_about_who_counts(basel, monkeypatch):
    """Whatever a hub answers to a repeat: no hospital is left out, and none comes in."""
    answers = [{}, {f"fake{number}": SigningKey.generate().did for number in range(2)}]

    class Hub:
        def __init__(self, *_args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_args):
            pass

        def post(self, *_args):
            return {"trust": {**basel.trust, "sites": answers.pop(0)}}

    monkeypatch.setattr("federated.join.Client", Hub)
    folder = basel.site.folder
    while answers:
        token = "coop_join_" + "x" * 43
        join(folder, "basel", token=token, hub_url="https://hub.test", ca_file=None).close()
        assert witnesses.known(basel.site) == {"bern": basel.keys["bern"]}


def test_an_approval_can_be_taken_back_once_and_given_again(coop):
    study, document = coop.study("back-and-forth")
    first = coop.approve(study)
    revoke(coop.site, digest_of(document), now=now())
    with pytest.raises(NotApprovedError):
        kept(coop, document).check_in_force(now())
    with pytest.raises(NotApprovedError):
        revoke(coop.site, digest_of(document), now=now())
    again = coop.approve(study)
    assert again != first
    kept(coop, document).check_in_force(now())
    with pytest.raises(NotApprovedError):
        kept(coop, document).check_in_force(study.expires)


def test_the_staffs_list_shows_revoked_approvals_too(coop):
    study, document = coop.study("listed")
    coop.approve(study)
    revoke(coop.site, digest_of(document), now=now())
    with coop.site.database.reading() as connection:
        entry = next(
            one for one in approved_studies(connection) if one["study_id"] == study.study_id
        )
    assert entry["revoked_at"] is not None
    assert entry["study"] == study
