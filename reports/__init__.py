"""Reports: records to statistics, tables, figures and pages; knows nothing of torch."""

from reports.masking import evidence
from reports.problems import refuted_certificates
from reports.report import write_report
from reports.runs import load_run

__all__ = ["evidence", "load_run", "refuted_certificates", "write_report"]
