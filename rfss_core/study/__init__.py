"""Studies: grids of evaluations on the same splits, and the tables and plots of their results."""

from rfss_core.study.evaluation import CaseResult, Evaluation
from rfss_core.study.plan import Plan, PlannedRow, plan_study
from rfss_core.study.result import RowResult
from rfss_core.study.settings import StudySettings, load_study, shipped_studies

__all__ = [
    "CaseResult",
    "Evaluation",
    "Plan",
    "PlannedRow",
    "RowResult",
    "StudySettings",
    "load_study",
    "plan_study",
    "shipped_studies",
]
