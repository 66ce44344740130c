"""Attribution by weight rows: exact, differential and loss scores, their ranking, verification and significance.

Members, which were trained on known parts of the units, also judge the scores of any method.

Docstrings cite equations by number: (2) the mean of the members and (3) the weight row of a removal are in
`ensdiff.ensemble` and `ensdiff.codes`, (4) the exact counterfactual in `ensdiff.attribution.exact`, (5) and (6) its
derivative and Gram matrix in `ensdiff.attribution.differential`, (7) the denoising loss in `ensdiff.attribution.loss`,
(9) the judgement of scores in `ensdiff.attribution.judging`, (10) their combination with the members' losses in
`ensdiff.attribution.combination`, and (11) their significance in `ensdiff.attribution.conformal`.
"""

from ensdiff.attribution.attribute import attribute
from ensdiff.attribution.audit import Audit, Recall, audit_recall
from ensdiff.attribution.calibration import Calibration
from ensdiff.attribution.combination import Posterior, combine
from ensdiff.attribution.conformal import held_out_null, in_out_difference, random_groups_null, unseen_scores
from ensdiff.attribution.contrast import Contrast, contrast
from ensdiff.attribution.differential import gram, jacobian, predicted_counterfactuals, quadratic_influence
from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.exact import exact_influence
from ensdiff.attribution.forms import Forms, gram_forms, loss_forms, score_words, stream
from ensdiff.attribution.gradients.by_member import gradient_scores
from ensdiff.attribution.gradients.config import GradientConfig
from ensdiff.attribution.judging import Judgement, choose, cross_predictions, judge, judge_scores
from ensdiff.attribution.loss import LossMatrix, loss_matrix
from ensdiff.attribution.ranking import Top
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.sufficient import NullPlan, NullWarning, count_candidates, null_needed, plan_null
from ensdiff.attribution.values import GroupValues, group_values

__all__ = [
    "Attribution",
    "Audit",
    "Calibration",
    "Contrast",
    "Forms",
    "GradientConfig",
    "GroupValues",
    "Judgement",
    "LossConfig",
    "LossMatrix",
    "NullPlan",
    "NullWarning",
    "Posterior",
    "Recall",
    "Top",
    "attribute",
    "audit_recall",
    "choose",
    "combine",
    "contrast",
    "count_candidates",
    "cross_predictions",
    "exact_influence",
    "gradient_scores",
    "gram",
    "gram_forms",
    "group_values",
    "held_out_null",
    "in_out_difference",
    "jacobian",
    "judge",
    "judge_scores",
    "loss_forms",
    "loss_matrix",
    "null_needed",
    "plan_null",
    "predicted_counterfactuals",
    "quadratic_influence",
    "random_groups_null",
    "score_words",
    "stream",
    "unseen_scores",
]
