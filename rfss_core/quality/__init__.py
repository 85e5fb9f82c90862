"""Quality: split, metrics, intervals, gate, prediction, decisions, report."""

from rfss_core.quality.bootstrap import Interval, bootstrap_interval
from rfss_core.quality.content import Comparison, ModelFact, QuarantineRow, QueueRow, ReportContent
from rfss_core.quality.decision import AcceptancePoint, Decision, acceptance_curve, decide
from rfss_core.quality.gate import Gate, GateEvidence, GateResult
from rfss_core.quality.leak import SplitCase, refuse_leak, split_cases
from rfss_core.quality.metrics import METRICS_LIBRARY, ClassMetric, case_metrics, slice_metrics
from rfss_core.quality.picture import Picture, largest_slice
from rfss_core.quality.prediction import CalibrationCase, CalibrationPoint, QualityPrediction, predict_quality
from rfss_core.quality.priority import Candidate, Priority, rank_candidates
from rfss_core.quality.report import render_report, typical_cases, write_report
from rfss_core.quality.signals import SIGNALS, CaseSignals, SegmentedCase, case_signals, signals_of
from rfss_core.quality.split import Split, choose_patients, split_patients, with_reviewed
from rfss_core.quality.summary import MORE_METRICS, CaseMeasurement, QualitySummary, summarise
from rfss_core.quality.thirds import THIRDS, dice_by_third
from rfss_core.quality.voxels import VoxelPoint
from rfss_core.quality.worth import SignalWorth

__all__ = [
    "METRICS_LIBRARY",
    "MORE_METRICS",
    "SIGNALS",
    "THIRDS",
    "AcceptancePoint",
    "CalibrationCase",
    "CalibrationPoint",
    "Candidate",
    "CaseMeasurement",
    "CaseSignals",
    "ClassMetric",
    "Comparison",
    "Decision",
    "Gate",
    "GateEvidence",
    "GateResult",
    "Interval",
    "ModelFact",
    "Picture",
    "Priority",
    "QualityPrediction",
    "QualitySummary",
    "QuarantineRow",
    "QueueRow",
    "ReportContent",
    "SegmentedCase",
    "SignalWorth",
    "Split",
    "SplitCase",
    "VoxelPoint",
    "acceptance_curve",
    "bootstrap_interval",
    "case_metrics",
    "case_signals",
    "choose_patients",
    "decide",
    "dice_by_third",
    "largest_slice",
    "predict_quality",
    "rank_candidates",
    "refuse_leak",
    "render_report",
    "signals_of",
    "slice_metrics",
    "split_cases",
    "split_patients",
    "summarise",
    "typical_cases",
    "with_reviewed",
    "write_report",
]
