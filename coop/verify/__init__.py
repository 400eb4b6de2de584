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
from coop.verify.consents import verify_consent, verify_receipt
from coop.verify.rounds import verify_round
from coop.verify.tallies import verify_tally
from coop.verify.withheld import NotConvictedError, verify_withheld

__all__ = [
    "NoTrustFileError",
    "NotConvictedError",
    "Report",
    "Trust",
    "TrustFileError",
    "VerificationError",
    "open_as",
    "verify_consent",
    "verify_document_by_kind",
    "verify_log",
    "verify_passport",
    "verify_receipt",
    "verify_round",
    "verify_tally",
    "verify_withheld",
]
