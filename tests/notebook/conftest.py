"""Real kernels, as Jupyter starts them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _no_settings_of_jupyter(monkeypatch, tmp_path_factory):
    """Neither the kernels nor the start-up files of whoever runs the tests are used."""
    own = tmp_path_factory.mktemp("jupyter")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(own / name))


@dataclass
class Cell:
    """What came of a cell so far: what it printed, displayed (and made of that), gave, raised."""

    name: str
    printed: str = ""
    displays: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    raised: str = ""
    traceback: str = ""
    ended: bool = False

    def shown(self, kind: str = "text/plain") -> list[str]:
        """All that was displayed and then made of that, in order."""
        return [each[kind] for display in self.displays.values() for each in display]


class Kernel:
    """A kernel of this interpreter; `work` does a cell as a notebook does."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        self.directory = directory
        # Sockets in a directory of its own: no port that somebody else could take.
        self._manager = KernelManager(
            kernel_name="python3", transport="ipc", connection_file=str(sockets / "kernel.json")
        )
        self._manager.start_kernel(cwd=str(directory), env={**os.environ})
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE_S)

    def start(self, code: str) -> Cell:
        """Begin a cell."""
        return Cell(self._client.execute(code))

    def interrupt(self) -> None:
        """Press the button with the black square."""
        self._manager.interrupt_kernel()

    def wait(self, cell: Cell, until: Callable[[], bool] = lambda: False) -> Cell:
        """Read what a cell does until something has come of it, or it has ended."""
        while not cell.ended and not until():
            message = self._client.get_iopub_msg(timeout=PATIENCE_S)
            if message["parent_header"].get("msg_id") == cell.name:
                self._read(cell, message["msg_type"], message["content"])
        return cell

    def work(self, code: str) -> Cell:
        """Do a cell to its end."""
        return self.wait(self.start(code))

    @staticmethod
    def _read(cell: Cell, kind: str, content: dict[str, Any]) -> None:
        match kind:
            case "status":
                cell.ended = content["execution_state"] == "idle"
            case "stream":
                cell.printed += content["text"]
            case "display_data" | "update_display_data":
                shown = cell.displays.setdefault(content["transient"]["display_id"], [])
                shown.append(content["data"])
            case "execute_result":
                cell.result = content["data"]
            case "error":
                cell.raised = f"{content['ename']}: {content['evalue']}"
                cell.traceback = "\n".join(content["traceback"])
            case _:
                pass

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def sockets():
    """A place for the sockets of a kernel, whose paths may have about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as place:
        yield Path(place)


@pytest.fixture
def kernel(tmp_path, sockets):
    """A fresh kernel that works in `tmp_path`."""
    started = Kernel(tmp_path, sockets)
    yield started
    started.close()
