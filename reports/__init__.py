"""Reports: records to statistics, tables, figures and pages; knows nothing of torch."""

from reports.report import write_report

__all__ = ["write_report"]
