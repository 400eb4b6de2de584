"""Operational logs as JSON lines: a static message and allow-listed attributes, nothing else.

The log helps operators; the audit trail is the transparency log (`coop.journal`). An attribute that
is not on the list is dropped and counted, so that no record of a patient can slip into a log file.
"""

import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

ALLOWED: Final = frozenset(
    {
        "event", "level", "timestamp", "code", "site", "study", "version", "order", "round",
        "phase",
        "port", "path", "method", "status", "attempt", "job", "seconds", "process",
        "error_type", "size", "reason", "model", "dropped_attributes",
    }
)  # fmt: skip


def configure() -> None:
    """Set up logging for this process: JSON lines on standard error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _allow_listed,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger() -> structlog.typing.FilteringBoundLogger:
    """A logger; pass attributes as keywords: `logger().info("round answered", round=3)`."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return bound


def _allow_listed(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    kept = {name: value for name, value in event.items() if name in ALLOWED}
    if len(kept) < len(event):
        kept["dropped_attributes"] = len(event) - len(kept)
    return kept
