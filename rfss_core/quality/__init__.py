"""Quality: split, metrics, intervals, gate, prediction, decisions, report."""

from rfss_core.quality.bootstrap import Interval, bootstrap_interval
from rfss_core.quality.decision import Decision, decide
from rfss_core.quality.gate import Gate, GateResult
from rfss_core.quality.metrics import METRICS_LIBRARY, ClassMetric, case_metrics
from rfss_core.quality.picture import Picture, largest_slice
from rfss_core.quality.prediction import CalibrationCase, CalibrationPoint, QualityPrediction, predict_quality
from rfss_core.quality.report import (
    Comparison,
    ModelFact,
    QuarantineRow,
    ReportContent,
    render_report,
    typical_cases,
    write_report,
)
from rfss_core.quality.signals import SegmentedCase, case_signals
from rfss_core.quality.split import Split, split_patients
from rfss_core.quality.summary import CaseMeasurement, QualitySummary, summarise

__all__ = [
    "METRICS_LIBRARY",
    "CalibrationCase",
    "CalibrationPoint",
    "CaseMeasurement",
    "ClassMetric",
    "Comparison",
    "Decision",
    "Gate",
    "GateResult",
    "Interval",
    "ModelFact",
    "Picture",
    "QualityPrediction",
    "QualitySummary",
    "QuarantineRow",
    "ReportContent",
    "SegmentedCase",
    "Split",
    "bootstrap_interval",
    "case_metrics",
    "case_signals",
    "decide",
    "largest_slice",
    "predict_quality",
    "render_report",
    "split_patients",
    "summarise",
    "typical_cases",
    "write_report",
]
