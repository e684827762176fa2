"""Observers: what people and machines see of a run; none of them changes it."""

from pipeline.observers.event_log import EventLog
from pipeline.observers.metrics import Metrics
from pipeline.observers.progress import JsonProgress, PlainProgress, TerminalProgress

__all__ = ["EventLog", "JsonProgress", "Metrics", "PlainProgress", "TerminalProgress"]
