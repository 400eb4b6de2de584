"""Offline verification: what a file says, who signed it, that the log holds it, who saw the log.

Nothing here asks the network or believes the document under test: keys come from the trust file
alone. Every function returns a report of the steps taken or raises; a report is never half true.
"""

from coop.journal.trust import NoTrustFileError, Trust, TrustFileError
from coop.verify.bundles import (
    Report,
    VerificationError,
    open_as,
    verify_document_by_kind,
    verify_log,
    verify_passport,
)
from coop.verify.cohorts import ChallengeError, verify_cohort
from coop.verify.consents import verify_consent, verify_receipt
from coop.verify.files import RewrittenFileError, checkpoint_in, read_file
from coop.verify.growth import verify_entry, verify_growth
from coop.verify.hidden import HIDDEN, verify_hidden
from coop.verify.permits import NoPermitError
from coop.verify.rounds import verify_round
from coop.verify.tallies import verify_tally
from coop.verify.withheld import NotConvictedError, verify_withheld

__all__ = [
    "HIDDEN",
    "ChallengeError",
    "NoPermitError",
    "NoTrustFileError",
    "NotConvictedError",
    "Report",
    "RewrittenFileError",
    "Trust",
    "TrustFileError",
    "VerificationError",
    "checkpoint_in",
    "open_as",
    "read_file",
    "verify_cohort",
    "verify_consent",
    "verify_document_by_kind",
    "verify_entry",
    "verify_growth",
    "verify_hidden",
    "verify_log",
    "verify_passport",
    "verify_receipt",
    "verify_round",
    "verify_tally",
    "verify_withheld",
]
