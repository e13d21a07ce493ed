"""Reports: records to statistics, tables, figures and pages; knows nothing of torch."""

from reports.comparison import compare
from reports.following import not_following
from reports.masking import evidence
from reports.problems import refuted_certificates
from reports.published import PAPERS
from reports.report import FORMATS, write_report, write_run_report
from reports.runs import load_run
from reports.selection import combined, selected

__all__ = [
    "FORMATS",
    "PAPERS",
    "combined",
    "compare",
    "evidence",
    "load_run",
    "not_following",
    "refuted_certificates",
    "selected",
    "write_report",
    "write_run_report",
]
