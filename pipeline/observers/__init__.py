"""Observers: what people and machines see of a run; none of them changes it."""

from pipeline.observers.event_log import EventLog
from pipeline.observers.metrics import Metrics
from pipeline.observers.notebook import NotebookProgress, in_kernel, result_html
from pipeline.observers.progress import progress_for

__all__ = [
    "EventLog",
    "Metrics",
    "NotebookProgress",
    "in_kernel",
    "progress_for",
    "result_html",
]
