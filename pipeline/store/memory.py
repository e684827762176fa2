"""The five verbs on a dict: for tests, and for runs whose state need not outlive the process."""

from __future__ import annotations

from threading import Lock


class MemoryObjects:
    """Objects in memory, for as long as this object lives."""

    place = "(memory)"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._creating = Lock()

    def create(self, name: str, content: bytes) -> bool:
        """Store an object unless its name is taken. Return False if it is."""
        with self._creating:
            if name in self._objects:
                return False
            self._objects[name] = bytes(content)
            return True

    def put(self, name: str, content: bytes) -> None:
        """Store an object, replacing what has its name."""
        self._objects[name] = bytes(content)

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, None if there is none."""
        return self._objects.get(name)

    def list(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder."""
        found = [name for name in list(self._objects) if name.startswith(folder)]
        return sorted(name for name in found if "/" not in name[len(folder) :])

    def delete(self, name: str) -> None:
        """Delete an object; a missing one is fine."""
        self._objects.pop(name, None)
