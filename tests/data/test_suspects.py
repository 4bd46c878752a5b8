import pytest

from amp_hooks.data.suspects import Batch, Suspects, to_blame


def bad(suspects, iteration, images, healthy_after=True):
    found = suspects.bad([Batch(iteration, images.split())])
    if healthy_after:
        suspects.healthy_step()
    return found


def test_the_second_bad_iteration_makes_a_suspect():
    suspects = Suspects(suspect_after=2, max_images=100)
    assert bad(suspects, 3, "a b") == []
    assert bad(suspects, 9, "c a") == ["a"]
    assert suspects.images == {"a"}
    assert suspects.iterations("a") == [3, 9]
    assert suspects.count("b") == 1


def test_of_a_streak_only_the_first_iteration_is_evidence():
    """Twice the whole data set passes by while the weights are broken."""
    suspects = Suspects(suspect_after=2, max_images=100)
    for start in (0, 45):
        for i in range(start, start + 40):
            assert bad(suspects, i, f"image{i % 10}", healthy_after=False) == []
        suspects.healthy_step()
    assert suspects.state()["evidence"] == dict(image0=[0], image5=[45])


def test_the_first_of_two_streaks_is_evidence_twice():
    suspects = Suspects(suspect_after=2, max_images=100)
    for start in (0, 10):
        found = bad(suspects, start, "a b", healthy_after=False)
        bad(suspects, start + 1, "c d", healthy_after=True)
    assert found == ["a", "b"]
    assert suspects.count("c") == 0


def test_a_known_suspect_explains_its_batch():
    suspects = Suspects(suspect_after=2, max_images=100)
    for i, images in enumerate(["x a", "x b", "x c", "x c", "c d"]):
        bad(suspects, i, images)
    assert suspects.images == {"x"}
    assert suspects.count("c") == 1


def test_an_image_twice_in_one_iteration_counts_once():
    suspects = Suspects(suspect_after=2, max_images=100)
    assert suspects.bad([Batch(4, ["a"]), Batch(5, ["a"])]) == []
    assert suspects.iterations("a") == [4]


@pytest.mark.parametrize("max_images", [2, 3, 10])
def test_memory_is_bounded_and_the_oldest_with_least_evidence_goes(max_images):
    suspects = Suspects(suspect_after=3, max_images=max_images)
    bad(suspects, 0, "twice")
    bad(suspects, 1, "twice")
    for i in range(2, 100):
        bad(suspects, i, f"once{i}")
    kept = list(suspects.state()["evidence"])
    assert kept == ["twice", *(f"once{i}" for i in range(101 - max_images, 100))]


def test_suspects_are_never_forgotten():
    suspects = Suspects(suspect_after=1, max_images=2)
    assert bad(suspects, 0, "a b c") == ["a", "b"]
    assert bad(suspects, 1, "d") == []
    assert suspects.images == {"a", "b"}


def test_state_comes_back_with_streak_and_suspects():
    suspects = Suspects(suspect_after=2, max_images=100)
    bad(suspects, 0, "a b")
    bad(suspects, 5, "a c", healthy_after=False)
    again = Suspects(suspect_after=2, max_images=100)
    again.load_state(suspects.state())
    assert again.state() == suspects.state()
    assert again.images == {"a"}
    assert bad(again, 6, "b") == []  # still in the streak
    assert bad(again, 7, "b") == ["b"]
    fewer = Suspects(suspect_after=2, max_images=1)
    fewer.load_state(suspects.state())
    assert fewer.images == {"a"}


def test_blame_goes_to_what_failed_on_the_ranks_that_are_named():
    good, failed = Batch(0, ["a"]), Batch(1, ["b"], failed=True)
    other = Batch(1, ["c"], failed=True)
    accumulations = [[good, failed], [other]]
    assert to_blame(accumulations, [0]) == [(0, failed)]
    assert to_blame(accumulations, [0, 1]) == [(0, failed), (1, other)]


def test_blame_goes_to_everyone_for_gradients_and_to_nobody_twice():
    first, second = Batch(0, ["a"]), Batch(1, ["b"])
    accumulations = [[first, second], [Batch(1, ["c"])]]
    assert [b.images for _, b in to_blame(accumulations, [])] == [["a"], ["b"], ["c"]]
    first.blamed = True
    assert to_blame(accumulations, [0]) == [(0, second)]
    # The verdict of an accumulation stays bad after the batch that was to blame for it.
    first.failed = True
    assert to_blame([[first, second]], [0]) == []
