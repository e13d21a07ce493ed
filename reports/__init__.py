"""Reports: records to statistics, tables, figures and pages; knows nothing of torch."""

from reports.masking import evidence
from reports.report import write_report
from reports.runs import load_run
from reports.tables import refuted_certificates

__all__ = ["evidence", "load_run", "refuted_certificates", "write_report"]
