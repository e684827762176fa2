"""What an output is, told by its name: a file of one of these forms, or else a directory."""

from __future__ import annotations

from pipeline.errors import OutputError
from pipeline.wording import setting

PARQUET, CSV, JSONL = "Parquet", "CSV", "JSON Lines"
_TEXT = {".csv": CSV, ".jsonl": JSONL, ".ndjson": JSONL}
_PACKED = {"": None, ".gz": "gzip", ".zst": "zstd"}
_FORMS = {
    ".parquet": (PARQUET, None),
    **{text + end: (form, by) for text, form in _TEXT.items() for end, by in _PACKED.items()},
}
# Tables of kinds that are not written; a directory of such a name would be a mistake.
_OTHERS = (".json", ".tsv", ".arrow", ".feather", ".ipc", ".xlsx", ".txt", ".gz", ".zst", ".zip")


def form_of(name: str) -> str | None:
    """Return the form of a file of this name; None for a directory."""
    return _found(name)[0]


def compression_of(name: str) -> str | None:
    """Return what compresses a text file of this name, if anything does."""
    return _found(name)[1]


def _found(name: str) -> tuple[str | None, str | None]:
    name = name.lower()  # as that of an input is taken
    return next((each for end, each in _FORMS.items() if name.endswith(end)), (None, None))


def check_form(name: str) -> None:
    """Refuse the name of a kind of table that is not written. Raises OutputError."""
    if form_of(name) is None and name.lower().endswith(_OTHERS):
        raise OutputError(
            f"{setting('output')}: {name} would be of a kind that is not written.",
            f"Name a file that ends with {', '.join(_FORMS)}, or a directory.",
        )
