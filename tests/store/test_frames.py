"""A growing file made of objects: joined as it grows, and nothing of it lost or doubled by that."""

import pytest

from pipeline.store import frames
from pipeline.store.disk import DiskObjects
from pipeline.store.frames import FramesFile
from tests.store.memory_store import MemoryObjects, Refusing


@pytest.fixture(params=["disk", "memory"])
def objects(request, tmp_path):
    return DiskObjects(tmp_path) if request.param == "disk" else MemoryObjects()


@pytest.fixture(autouse=True)
def joined_soon(monkeypatch):
    monkeypatch.setattr(frames, "MOST_SMALL", 4)
    monkeypatch.setattr(frames, "JOINED_BYTES", 100)


@pytest.fixture
def opened():
    """Open the file as its owner does; it is closed at the end."""
    made = []

    def open_(objects):
        made.append(FramesFile(objects, "answers/"))
        made[-1].open()
        return made[-1]

    yield open_
    for file in made:
        file.close()


def told(objects):
    """What another machine finds: all bytes, and how many items are in them."""
    file = FramesFile(objects, "answers/")
    with file.reader() as reader:
        content = reader.read()
    assert file.size() == len(content)
    return content, file.items()


def work(file, begin, end):
    """Append and sync, each time a line of one item; return all of them."""
    lines = [b"%06d\n" % number for number in range(begin, end)]
    for line in lines:
        file.append(line, 1)
        file.sync()
    return b"".join(lines)


@pytest.mark.parametrize("refuses", [False, True])
def test_what_was_appended_is_there_after_each_sync(opened, objects, refuses):
    """Whatever has been joined, and even if nothing that it replaces can be deleted."""
    file = opened(Refusing(objects) if refuses else objects)
    content = b""
    for number in range(60):
        content += work(file, number, number + 1)
        assert told(objects) == (content, number + 1)
    listed = len(objects.list("answers/"))
    assert listed == 60 if refuses else listed <= 60 * 7 / 100 + 5
    file.close()
    again = opened(objects)  # which deletes what counts for nothing
    assert len(objects.list("answers/")) <= 60 * 7 / 100 + 5
    assert again.read(10_000, 0) == content
    content += work(again, 60, 75)
    assert told(objects) == (content, 75)


@pytest.mark.parametrize("size", [1, 30, 99, 100, 101, 250])
def test_large_appends_are_joined_by_their_size(opened, objects, size):
    file = opened(objects)
    content = b""
    for number in range(20):
        piece = bytes([number]) * size
        file.append(piece, 1)
        file.sync()
        content += piece
    assert told(objects) == (content, 20)
    assert len(objects.list("answers/")) <= len(content) / 100 + 5


@pytest.mark.parametrize("kept", range(2**5))
def test_whatever_is_left_of_what_was_joined_counts_for_nothing(opened, objects, kept):
    """A kill may leave any of the objects that were being deleted."""
    file = opened(Refusing(objects))
    content = work(file, 0, 5)
    assert len(objects.list("answers/")) == 5
    joined = next(name for name in objects.list("answers/") if "-00000005-" in name)
    small = [name for name in objects.list("answers/") if name != joined]
    for number, name in enumerate(small):
        if not kept >> number & 1:
            objects.delete(name)
    assert told(objects) == (content, 5)
    file = opened(objects)
    assert objects.list("answers/") == [joined]
    content += work(file, 5, 30)
    assert told(objects) == (content, 30)


def test_an_owner_that_was_frozen_takes_nothing_of_the_next_one_with_it(opened, objects):
    """It wakes and joins its own objects, whose numbers the next owner has gone on from."""
    frozen = opened(objects)
    before = work(frozen, 0, 4)
    other = opened(objects)
    after = work(other, 100, 103)
    late = work(frozen, 4, 9)
    after += work(other, 103, 120)
    content, items = told(objects)
    assert sorted(content.splitlines()) == sorted((before + late + after).splitlines())
    assert items == 9 + 20
    third = opened(objects)
    work(third, 200, 220)
    assert told(objects)[1] == 9 + 20 + 20


def test_a_reader_finds_all_while_objects_are_joined(opened, objects):
    """What it has listed is deleted before it reads it; it looks again, and reads on."""
    writer = opened(objects)
    content = [work(writer, 0, 32)]

    class Late:
        listings = 0

        def list(self, folder):
            found = objects.list(folder)
            self.listings += 1
            if self.listings <= 3:
                at = 30 * self.listings
                content.append(work(writer, at, at + 30))
            return found

        def __getattr__(self, name):
            return getattr(objects, name)

    file = FramesFile(Late(), "answers/")
    with file.reader() as reader:
        assert reader.read() == b"".join(content)


def test_a_reader_never_returns_a_part_of_it(opened, objects):
    work(opened(objects), 0, 3)

    class Gone:
        def get(self, name):
            return None

        def __getattr__(self, name):
            return getattr(objects, name)

    with pytest.raises(OSError, match="are missing"):
        FramesFile(Gone(), "answers/").reader()


def test_what_is_appended_while_it_is_stored_is_counted_once(opened, objects, monkeypatch):
    """Another thread may store between the two steps of an append."""
    file, write = opened(objects), frames.os.pwrite

    def writing(*given):
        written = write(*given)
        file.sync()
        return written

    monkeypatch.setattr(frames.os, "pwrite", writing)
    content = work(file, 0, 3)
    assert told(objects) == (content, 3)


def test_only_the_end_is_read_if_no_more_is_wanted(opened, objects):
    writer = opened(objects)
    content = work(writer, 0, 100)
    for wanted in (0, 1, 50, 300, 699, 700, 10_000):
        with FramesFile(objects, "answers/").reader(wanted) as reader:
            found = reader.read()
        assert content.endswith(found)
        assert min(wanted + 1, len(content)) <= len(found) <= wanted + 200 + 35


def test_what_is_torn_is_cut_off_and_the_rest_joined(opened, objects):
    writer = opened(objects)
    content = work(writer, 0, 12)
    writer.close()
    for size in (80, 60, 10):
        file = opened(objects)
        file.cut(size)
        assert file.append(b"!") == size
        file.sync()
        assert told(objects)[0] == content[:size] + b"!"
        content = content[:size] + b"!"
        file.close()


def test_a_name_of_somebody_else_is_left_alone(opened, objects):
    objects.put("answers/notes", b"x")
    file = opened(objects)
    work(file, 0, 9)
    file.delete()
    assert objects.list("answers/") == ["answers/notes"]


@pytest.mark.parametrize("before", range(1, 7))
def test_what_another_owner_discarded_does_not_come_back(opened, objects, before):
    """An owner that was frozen, and woke, brings what it did not store yet at most."""
    frozen = opened(objects)
    work(frozen, 0, before)
    FramesFile(objects, "answers/").delete()
    assert not FramesFile(objects, "answers/").exists()
    content = work(frozen, before, before + 7)
    assert told(objects)[0] == content
