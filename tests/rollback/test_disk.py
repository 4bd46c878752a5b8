import os
import threading

import pytest

from amp_hooks.rollback.disk import Pointer, same_file


@pytest.fixture
def files(tmp_path):
    """Files a and b, and the text of last_checkpoint."""
    for name in "ab":
        (tmp_path / name).touch()
    return str(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "last_checkpoint"


def test_the_later_wins(tmp_path, files):
    a, b, text = files
    pointer = Pointer(str(tmp_path))
    assert pointer.named is None
    assert pointer.offer(a, 10)
    assert pointer.named == text.read_text() == a
    assert not pointer.offer(b, 9)
    assert pointer.named == a
    assert pointer.offer(b, 10)
    assert pointer.named == b


def test_a_run_begun_anew_does_not_hide_an_old_one_at_once(tmp_path, files):
    a, b, text = files
    text.write_text(a)
    pointer = Pointer(str(tmp_path))
    assert not pointer.offer(b, 0)
    assert pointer.named == a
    assert pointer.offer(a, 0)  # names it already
    assert pointer.offer(b, 1)
    assert pointer.named == b


@pytest.mark.parametrize("left", ["", "\0\0\0\0", "/nowhere/iter_9.pth", "\n"])
def test_a_pointer_to_nothing_is_replaced_at_once(tmp_path, files, left):
    a, _, text = files
    text.write_text(left)
    assert Pointer(str(tmp_path)).offer(a, 0)
    assert text.read_text() == a


def test_unreadable_text(tmp_path, files):
    files[2].write_bytes(b"\xff\xfe\xfa")
    assert Pointer(str(tmp_path)).offer(files[0], 0)


def test_paths_do_not_depend_on_the_folder_one_is_in(tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pointer = Pointer(str(tmp_path))
    pointer.offer("a", 3)
    assert pointer.named == files[0]
    assert same_file("a", files[0])


def test_a_disk_that_refuses_costs_no_run(tmp_path, files):
    a, b, text = files
    pointer = Pointer(str(tmp_path))
    pointer.offer(a, 1)
    (tmp_path / "last_checkpoint.tmp").mkdir()  # the temporary cannot be opened
    assert not pointer.offer(b, 2)
    assert text.read_text() == a
    (tmp_path / "last_checkpoint.tmp").rmdir()
    assert pointer.offer(b, 2)


def test_many_threads(tmp_path):
    pointer = Pointer(str(tmp_path))

    def offer(start):
        for i in range(start, 60, 4):
            pointer.offer(str(tmp_path / f"iter_{i}"), i)

    threads = [threading.Thread(target=offer, args=(i + 1,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pointer.named == str(tmp_path / "iter_59")
    assert os.listdir(tmp_path) == ["last_checkpoint"]
