"""What the tests of the producer share."""

import pytest

from pipeline.producer import text_bytes


@pytest.fixture
def hand_out(monkeypatch):
    """Let CSV files hand out at most so many bytes at a time, as a slow file system may.

    A small read buffer does not do that: what is asked of it goes past it where it is empty.
    """
    real = text_bytes.Tap

    def limit(most: int) -> None:
        class Dribble(real):
            def readinto(self, buffer):
                return super().readinto(memoryview(buffer)[:most])

        monkeypatch.setattr(text_bytes, "Tap", Dribble)

    return limit
