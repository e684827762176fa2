"""The report: one HTML page on a run, for the people who work with its labels."""

from pipeline.report.live import serve_live
from pipeline.report.page import write_report

__all__ = ["serve_live", "write_report"]
