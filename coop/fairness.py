"""Whether a model serves its subgroups well enough to answer: the floor of its approved study.

The floor stands in the study, so every hospital votes for it with the approval it signs. What is
held against it are the released figures, which carry noise: a group is *below* only if it is
surely so, and the model then answers nothing. Pure.
"""

from collections.abc import Sequence
from typing import Final, Literal

from coop.documents.study import Evaluation
from coop.documents.training import Fairness, GroupMetric

SURE: Final = 2
"""Standard deviations of the noise: so far below it is not the noise."""


def fairness(evaluation: Evaluation, metrics: Sequence[GroupMetric]) -> Fairness | None:
    """What the figures say of the study's floor; None if it has none.

    Steps: (1) a group whose AUC lies below the floor by more than two standard deviations of the
    noise is below; (2) if one is, so is the model; (3) it passes if every group lies above the
    floor by as much; (4) else nobody can say, and the passport says that.
    """
    floor = evaluation.floor_micro
    if floor is None:
        return None
    found = {metric.group: metric for metric in metrics}
    # (1)
    said = {group: _standing(found.get(group), floor) for group in evaluation.groups}
    below = [group for group, verdict in said.items() if verdict == "below"]
    # (2), (3), (4)
    sure = all(verdict == "passed" for verdict in said.values())
    verdict: Literal["passed", "below", "uncertain"] = (
        "below" if below else "passed" if sure else "uncertain"
    )
    return Fairness(floor_micro=floor, verdict=verdict, below=below)


def _standing(metric: GroupMetric | None, floor: int) -> Literal["passed", "below", "uncertain"]:
    if metric is None or metric.auc_micro is None or metric.auc_sd_micro is None:
        return "uncertain"
    if metric.auc_micro + SURE * metric.auc_sd_micro < floor:
        return "below"
    return "passed" if metric.auc_micro - SURE * metric.auc_sd_micro >= floor else "uncertain"
