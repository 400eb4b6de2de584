"""What a study asks of a patient's policy, as the question that `consent.decide` answers."""

from typing import Literal

from consent.decide import Request
from coop.documents.study import Study

Action = Literal["train-federated", "evaluate", "infer-aggregate"]


def question_of(study: Study, action: Action, at: int, *, epsilon_micro: int) -> Request:
    """What a study asks at the instant `at`.

    Args:
        study: The study.
        action: What would be done with her record.
        at: UTC seconds.
        epsilon_micro: What it may cost her, held against her own cap.
    """
    return Request(
        action=action,
        purpose=study.purpose,
        data_class=study.data_class,
        study_id=study.study_id,
        organisation=study.proposer,
        commercial=study.commercial,
        at=at,
        disease=study.disease,
        further=tuple(study.further_purposes),
        epsilon_micro=epsilon_micro,
    )
