"""The error tree: what went wrong decides what the runner does about it.

    ClassifyError                  exit code
    ├── UsageError                     2      nothing was sent, nothing was written
    │   ├── SettingsError                     a setting is unknown, ill-typed or impossible
    │   ├── InputError                        the input cannot be read as a table
    │   ├── OutputError                       the output cannot be written there
    │   └── ResumeRefused                     the run directory belongs to a different run
    ├── TooManyErrors                  3      more rows failed than `max_errors` allows
    ├── EndpointRefused                4      token, permission, credits, model: no retry helps
    ├── OutputBusy                     5      another run holds this output
    ├── StoppedEarly                  75      deadline, limit, outage, full disk; resumable
    ├── Interrupted              130, 143     a signal; resumable
    ├── RevisionMoved                         known answers are of another model; stays inside
    └── RequestError                          one request; never leaves the worker pool
        ├── Retryable                         the endpoint's fault: the same request may succeed
        └── RowsRejected                      the rows' fault: split until the bad row stands alone

Every error says `what` happened, to which file, row or setting, and, apart from that, the `fix`:
what to do. Both are fields, with the data beside them (`status`, `wait_s`, ...), so that nobody has
to search words for what they mean. A bug is whatever else is raised: exit code 1.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pipeline.wording import shown

EXIT_COMPLETE = 0
EXIT_ROWS_FAILED = 3


class ClassifyError(Exception):
    """The root of the tree; `exit_code` is what the command line ends with.

    `what` happened and the `fix` are sentences; as a text (`str`) the error is both. A setting in
    them is written by `pipeline.wording.setting`, and shown as whoever reads it would write it.
    `summary` is the summary of the run that this ended, None where no run had begun.
    """

    exit_code: int = 1
    summary: dict[str, Any] | None = None

    def __init__(self, what: str = "", fix: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        between = "\n" if "\n" in self.what else " "
        return shown(between.join(filter(None, (self.what, self.fix))))

    def __reduce__(self) -> tuple[Any, ...]:
        # Fields and not arguments, so that any error of the tree crosses a process border whole.
        return type(self).__new__, (type(self),), self.__dict__


class UsageError(ClassifyError):
    """Wrong usage, settings or input; nothing was sent or written."""

    exit_code = 2

    def after_sending(self) -> StoppedEarly:
        """Return what to raise instead once requests were sent, which exit code 2 says were not."""
        kept = "What was answered is kept, for the same input and output."
        again = "Run the same command again to continue."
        return StoppedEarly(self.what, " ".join(filter(None, (self.fix, kept, again))))


class SettingsError(UsageError):
    """A setting is unknown, has the wrong type or an impossible value."""


class InputError(UsageError):
    """The input cannot be read as the table that the settings describe."""


class OutputError(UsageError):
    """The output cannot be written where the settings say."""


class ResumeRefused(UsageError):
    """The run directory was made from another input or with other result-changing settings."""


class TooManyErrors(ClassifyError):
    """More rows failed than `max_errors` allows; complete, or stopped and resumable."""

    exit_code = 3


class EndpointRefused(ClassifyError):
    """The endpoint refuses the account or the model; resumable once that is fixed.

    `status` is the HTTP status, None where no answer came. `at_fault` is what has to change.
    `is_page` is True for the words of a web page, as gateways and firewalls send them.
    """

    exit_code = 4

    def __init__(
        self,
        what: str,
        fix: str = "",
        *,
        status: int | None = None,
        at_fault: Literal["token", "address", "model", "dialect", "texts"] = "address",
        is_page: bool = False,
    ) -> None:
        super().__init__(what, fix)
        self.status = status
        self.is_page = is_page
        self.at_fault = at_fault


class OutputBusy(ClassifyError):
    """Another run holds this output, or took it over."""

    exit_code = 5


class StoppedEarly(ClassifyError):
    """Stopped by a deadline, a limit, an outage or a full disk; resumable."""

    exit_code = 75


class Interrupted(ClassifyError):
    """A signal stopped the run; `signal_number` is 2 (SIGINT) or 15 (SIGTERM)."""

    def __init__(self, what: str, fix: str = "", *, signal_number: int) -> None:
        super().__init__(what, fix)
        self.signal_number = signal_number
        # 128 + n is the shell's convention for a process that signal n ended.
        self.exit_code = 128 + signal_number


class RevisionMoved(ClassifyError):
    """The endpoint tells another model revision than the stored answers that were used so far.

    Nothing of this run was labelled by the endpoint before, so the run begins again with
    `revision`, by itself, and asks again for what is stored under another one.
    """

    def __init__(self, revision: str, stored: str) -> None:
        super().__init__(f"The model's revision is {revision}, and known answers are of {stored}.")
        self.revision = revision
        self.stored = stored


class Cause(StrEnum):
    """Why a request failed in a way that a retry may resolve; each has its own rule in `patience`.

    WORKER_LOST is no fault of the endpoint: what sent the request is gone.
    """

    LOADING = "loading"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server error"
    TIMEOUT = "timeout"
    CONNECTION = "connection lost"
    UNREADABLE = "unreadable answer"
    WORKER_LOST = "worker lost"


class Unreachable(StrEnum):
    """Why no connection could be made, if that is known."""

    UNKNOWN_HOST = "unknown host"
    REFUSED = "connection refused"


class RequestError(ClassifyError):
    """One request failed; the worker pool handles it and nothing else sees it."""


class Retryable(RequestError):
    """The endpoint's fault, not the rows'.

    `status` is the HTTP status, None where no answer came. `wait_s` is the server's own hint in
    seconds (`Retry-After`, `RateLimit` or `estimated_time`), None where it gave none.
    `unreachable` is why no connection could be made, None where one was or nobody knows.
    """

    def __init__(
        self,
        cause: Cause,
        what: str,
        *,
        status: int | None = None,
        wait_s: float | None = None,
        unreachable: Unreachable | None = None,
    ) -> None:
        super().__init__(what)
        self.cause = cause
        self.status = status
        self.wait_s = wait_s
        self.unreachable = unreachable


class RowsRejected(RequestError):
    """The server refused the content of the request (400, 413, 422): some row in it is at fault.

    `given_up` is True if it kept failing with another status, while other rows were answered.
    """

    def __init__(self, status: int, what: str, *, given_up: bool = False) -> None:
        super().__init__(what)
        self.status = status
        self.given_up = given_up
