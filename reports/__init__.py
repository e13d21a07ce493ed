"""Reports: turn records into statistics, tables, figures and pages, without importing torch."""

from reports.evidence.masking import evidence
from reports.evidence.problems import refuted_certificates
from reports.following import not_following
from reports.measures.measure import measure
from reports.published.numbers import PAPERS
from reports.report import FORMATS, write_report, write_run_report
from reports.runs.comparison import compare
from reports.runs.run import load_run
from reports.runs.selection import combined, selected

__all__ = [
    "FORMATS",
    "PAPERS",
    "combined",
    "compare",
    "evidence",
    "load_run",
    "measure",
    "not_following",
    "refuted_certificates",
    "selected",
    "write_report",
    "write_run_report",
]
