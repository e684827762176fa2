"""The output in a dataset of the Hugging Face Hub: all of its files appear by one commit.

The commit names the one before it, which was the newest when the output was drafted. If somebody
has committed meanwhile the Hub refuses it, and nothing of theirs is overwritten unseen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError, StoppedEarly
from pipeline.store.objects import writing
from pipeline.store.remote_output import RemoteOutput
from pipeline.system import remote
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.objects import Objects

_STALE = 412


class HubOutput(RemoteOutput):
    """An output at an address such as `hf://datasets/owner/name/labelled.parquet`."""

    has_mark = False

    def __init__(self, address: str, objects: Objects) -> None:
        super().__init__(address, objects)
        self._parent: str | None = None

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:
        super().check(inputs, limit=limit)
        try:
            place, _ = self._newest()
            self._check_right(place)
        except OSError as error:
            raise OutputError(
                f"{setting('output')}: {self.place} cannot be written: {error.strerror}.",
                "Make the dataset first, and check the address and the token (HF_TOKEN).",
            ) from error
        if place.repo_type != "dataset" or not place.path_in_repo:
            raise OutputError(
                f"{setting('output')}: {self.place} names no file or folder of a dataset.",
                "Give an address such as hf://datasets/owner/name/labelled.parquet.",
            )

    def _check_right(self, place: Any) -> None:
        """Refuse a token that may not write, before all is paid for. Raises OSError."""
        from huggingface_hub import HfApi

        with remote.of_hub(self.place):
            HfApi().auth_check(place.repo_id, repo_type=place.repo_type, write=True)

    def check_rename(self) -> None:
        pass  # see `_check_right`

    def begin_draft(self) -> None:
        super().begin_draft()
        _, self._parent = self._newest()

    def publish(self) -> None:
        with writing(self.place), tempfile.TemporaryDirectory(prefix="classify-") as directory:
            files: dict[str, Any] = {"": self._draft}
            if self.is_file:
                self._draft.seek(0)
            else:
                files = {name: Path(directory, name) for _, name in self._parts}
                for part, name in self._parts:
                    stop_point()
                    files[name].write_bytes(self._part(part))
            self._commit(files)

    def _commit(self, files: dict[str, Any]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()
        place, _ = self._newest()
        at = place.path_in_repo
        changes: list[Any] = [
            CommitOperationAdd(f"{at}/{name}".rstrip("/"), file) for name, file in files.items()
        ]
        old = [name for name in self._names() if name not in files]
        changes += [CommitOperationDelete(f"{at}/{name}") for name in old]
        try:
            HfApi().create_commit(
                place.repo_id,
                changes,
                commit_message=f"Add {at}, labelled by classify-pipeline",
                repo_type=place.repo_type,
                revision=place.revision,
                parent_commit=self._parent,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == _STALE:
                raise StoppedEarly(
                    f"{self.place}: somebody has committed to the dataset while the output was put "
                    "together.",
                    "Run the same command again to continue: nothing is sent again.",
                ) from error
            with remote.of_hub(self.place):
                raise

    def _newest(self) -> tuple[Any, str]:
        """Return what the address means, and the newest commit there. Raises OSError."""
        from huggingface_hub import HfApi, HfFileSystem

        with remote.of_hub(self.place):
            place: Any = HfFileSystem().resolve_path(self.place)
            found = HfApi().repo_info(
                place.repo_id, repo_type=place.repo_type, revision=place.revision
            )
        return place, str(found.sha)
