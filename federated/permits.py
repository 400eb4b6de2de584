"""Who may take part: the rows here, narrowed by consents this hospital verified itself.

No count leaves through here: callers get a set and never say how large it is.
"""

from collections.abc import Iterable

from consent.decide import Effect, Request, decide
from consent.questions import Action, question_of
from coop.documents.study import Study
from federated.accounting import price_of
from federated.mirror import HeldLease


def consent_request(study: Study, action: Action, at: int) -> Request:
    """What a study asks of a patient's policy at the instant `at`."""
    return question_of(study, action, at, epsilon_micro=_price(study, action))


def permitted(lease: HeldLease, pids: Iterable[str], request: Request) -> set[str]:
    """Those of `pids` whose verified, cosigned policy permits `request`.

    Args:
        lease: The consent state; the caller checked that it is still in force.
        pids: Patients with rows here.
        request: What is asked.
    """
    # A grant counts only under a checkpoint that the other hospitals cosigned: a hub alone cannot
    # slip one in. What narrowed since then is in the standing already.
    usable = (pid for pid in pids if pid in lease.usable)
    return {
        pid for pid in usable if decide(lease.standings.get(pid), request).effect is Effect.PERMIT
    }


def shown_by(lease: HeldLease, pids: Iterable[str]) -> dict[str, int]:
    """Where in the log the newest consent document of each of `pids` stands."""
    return {pid: lease.standings[pid].log_index for pid in pids}


def _price(study: Study, action: Action) -> int:
    """What the study may cost a patient in epsilon, held against her own cap.

    Cohort questions stand on a line of their own, so taking part in them is held against the whole:
    the plan and that line together.
    """
    if action != "infer-aggregate":
        return study.budget.epsilon_micro
    return price_of(study.budget, study.recipe.schedule).together_micro
