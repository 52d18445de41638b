"""Path patterns: what they match, in which order, and which label they name."""

import pytest

from panoda.data.formats.patterns import LabelFinder, Match, check_pattern, find
from panoda.system.errors import DataError


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder, pattern):
    return [(m.path, m.id, m.group) for m in find(folder, pattern)]


def test_group_takes_as_little_and_id_the_rest(tmp_path):
    tree(tmp_path, "a/0001TP_006_690.png", "a/none.png")
    assert found(tmp_path, "a/{group}_{id}.png") == [("a/0001TP_006_690.png", "006_690", "0001TP")]


def test_what_occurs_twice_must_match_the_same(tmp_path):
    tree(tmp_path, "ulm/ulm_1.png", "ulm/bonn_1.png")
    assert found(tmp_path, "{group}/{group}_{id}.png") == [("ulm/ulm_1.png", "1", "ulm")]


def test_one_name_or_across_folders(tmp_path):
    tree(tmp_path, "img/x/1.png", "img/x/y/2.png", "img/3.png")
    assert found(tmp_path, "img/{id}.png") == [("img/3.png", "3", None)]
    assert found(tmp_path, "img/*/{id}.png") == [("img/x/1.png", "1", None)]
    assert sorted(found(tmp_path, "img/{id:path}.png")) == [
        ("img/3.png", "3", None),
        ("img/x/1.png", "x/1", None),
        ("img/x/y/2.png", "x/y/2", None),
    ]


def test_suffix_in_both_cases_but_names_as_they_are(tmp_path):
    tree(tmp_path, "A.PNG", "b.png", "c.jpg", ".hidden.png", "._b.png", "notes.txt", "d.png.txt")
    assert [m[0] for m in found(tmp_path, "{id}.png")] == ["A.PNG", "b.png"]
    assert [m[0] for m in found(tmp_path, "*")] == ["A.PNG", "b.png", "c.jpg"]
    assert found(tmp_path, "a.png") == []


def test_letters_that_mean_something_elsewhere(tmp_path):
    tree(tmp_path, "a+b (1)/x[1].png", "a+b (1)/x1.png")
    assert [m[1] for m in found(tmp_path, "a+b (1)/x[{id}].png")] == ["1"]


def test_missing_folders_and_loops_end(tmp_path):
    tree(tmp_path, "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert found(tmp_path, "no/{group}/{id}.png") == []
    assert found(tmp_path, "a/{id:path}.png") == [("a/1.png", "1", None)]


def test_the_first_label_that_exists_is_taken(tmp_path):
    tree(tmp_path, "gt/1_.png", "gt/2_ids.PNG", "gt/2_.png")
    labels = LabelFinder(tmp_path)
    patterns = ["gt/{id}_ids.png", "gt/{id}_.png"]
    assert labels.find(Match("x", "1", None), patterns) == "gt/1_.png"
    assert labels.find(Match("x", "2", None), patterns) == "gt/2_ids.PNG"
    assert labels.find(Match("x", "3", None), patterns) is None


def test_braces_in_a_file_name_are_not_tokens(tmp_path):
    tree(tmp_path, "img/{group}.png", "gt/{group}.png")
    match = next(find(tmp_path, "img/{id}.png"))
    assert LabelFinder(tmp_path).find(match, ["gt/{id}.png"]) == "gt/{group}.png"


@pytest.mark.parametrize("pattern", ["", "/a", "../a", "a//b", "a/./b", "a\\b", "a/"])
def test_paths_that_leave_the_folder_are_refused(pattern):
    with pytest.raises(DataError, match="expected a path relative"):
        check_pattern(pattern)
