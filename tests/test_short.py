"""What the short suite leaves out."""

from tests import short


def test_slow_variants_of_which_a_quicker_one_is_there():
    took = {
        "f.py::a[x]": 3.0,
        "f.py::a[y]": 2.0,
        "f.py::b[x]": 9.0,
        "f.py::gone[x]": 1.0,
    }
    names = ["f.py::a[x]", "f.py::a[y]", "f.py::a[z]", "f.py::b[x]", "f.py::c"]
    # a[z] was quick, or is new; b has no other.
    assert short.left_out(names, took) == {"f.py::a[x]", "f.py::a[y]"}
    assert short.left_out(names[:2], took) == {"f.py::a[x]"}
    assert short.left_out(names[:1], took) == set()


def test_what_is_known_names_tests_that_are_there(request):
    """Or the file is of another time; see tests/short.py."""
    known = {short.function(name) for name in short.read()}
    there = {
        f"{path.relative_to(request.config.rootpath)}::{line[4:].partition('(')[0]}"
        for path in (request.config.rootpath / "tests").rglob("test_*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def test_")
    }
    assert known <= there, sorted(known - there)
