"""Verifying a tally: that N of M is what the rows add up to, and how one patient was counted."""

from collections.abc import Mapping
from typing import Final

from consent.proofs import tally
from coop.canonical import Json, from_b64u, jcs, sha256
from coop.documents.envelope import Opened
from coop.documents.study import Study
from coop.documents.tally import Tally
from coop.journal import note
from coop.journal.trust import Trust
from coop.verify.bundles import Report, VerificationError, Work, object_of

_MEMBERS: Final = {"v", "tally", "study", "rows"}


def verify_tally(
    file: Mapping[str, Json], trust: Trust, mine: Mapping[str, Json] | None = None
) -> Report:
    """Verify a tally.

    Steps: (1) study and tally are logged and signed, and fit each other; (2) the log signed the
    checkpoint that was counted, and the tally was logged after it; (3) the rows are those the tally
    names; (4) each hides yes or no, none stands twice, and all add up; (5) with `mine`, a receipt
    bundle of one's own newest consent at that size: the row it belongs to.

    It shows that the sum is right, not that the registry put each patient's true answer in: each
    checks her own by (5).

    Raises:
        VerificationError: (1), (2), (3) or (5) fails.
        TallyError, BitProofError: (4) fails.
    """
    if set(file) != _MEMBERS or file["v"] != 1:
        raise VerificationError(f"tally: needs v=1 and exactly {sorted(_MEMBERS)}")
    work = Work(trust=trust)
    # (1)
    study = work.logged(Study, file["study"])
    made = work.logged(Tally, file["tally"])
    said, place = made.subject, work.seen[-1]
    named = (said.study_sha256, said.study_id, said.version)
    if named != (study.digest, study.subject.study_id, study.subject.version):
        raise VerificationError("tally: of another study than the one in the file")
    # (2)
    about = _about(made, trust)
    if not work.seen[0].index < about.log_size <= place.index:
        raise VerificationError("tally: the size it counts lies before its study or after itself")
    work.step(f"tally: of the log at {about.log_size}, whose checkpoint the log signed")
    # (3)
    rows = from_b64u(str(file["rows"]))
    if sha256(rows).hex() != said.rows_sha256:
        raise VerificationError("rows: not those that the tally names")
    # (4)
    tally.check(
        about,
        rows,
        patients=said.patients,
        consented=said.consented,
        blinding=bytes.fromhex(said.blinding),
    )
    work.step(f"rows: {said.patients}, each holds yes or no, and they add up to {said.consented}")
    facts: dict[str, Json] = {
        "site": said.site,
        "study_id": said.study_id,
        "version": said.version,
        "study_sha256": said.study_sha256,
        "log_size": about.log_size,
        "patients": said.patients,
        "consented": said.consented,
        "digest": made.digest,
    }
    # (5)
    if mine is None:
        work.step("each patient's own row: NOT CHECKED, give your consent with --mine")
    else:
        facts["mine"] = _own(work, about, rows, mine)
    return work.report("tally", facts)


def _about(made: Opened[Tally], trust: Trust) -> tally.About:
    said = made.subject
    seen = note.open_checkpoint(said.checkpoint, origin=trust.origin, log_did=trust.log)
    if said.log != trust.log:
        raise VerificationError("tally: of another log than the trust file's")
    return tally.About(
        log=said.log,
        origin=seen.origin,
        log_size=seen.size,
        root=seen.root.hex(),
        site=said.site,
        study_sha256=said.study_sha256,
        action=said.action,
        at=said.at,
    )


def _own(work: Work, about: tally.About, rows: bytes, mine: Mapping[str, Json]) -> Json:
    document = object_of(mine.get("document"), "document")
    found = tally.place_of(about, rows, jcs(document))
    if found is None:
        raise VerificationError(
            f"mine: this consent has no row; it must be your newest one at {about.site} below "
            f"entry {about.log_size} of the log"
        )
    counted = "permits" if found.counted else "does not permit"
    work.step(f"your row: number {found.row}, counted as one who {counted} it")
    return {"row": found.row, "counted": found.counted}
