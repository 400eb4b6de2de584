"""What a study asks of a patient's policy, as the question that `consent.decide` answers."""

from typing import Literal

from consent.decide import Request
from coop.documents.study import Study

Action = Literal["train-federated", "evaluate", "infer-aggregate"]


def question_of(study: Study, action: Action, at: int, *, epsilon_micro: int) -> Request:
    """What a study asks at the instant `at`: of all her data, since rows bear no dates.

    A study cannot say which of a row's values were recorded when, so a record whose owner opened
    only part of her data by its date stays out as a whole.

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
        # Of the public plan, never a count of today: held against what she wants to be among, a
        # count would tell who decided what.
        population=study.recipe.population,
    )
