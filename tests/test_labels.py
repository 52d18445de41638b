import numpy as np
import pytest

from panoda.labels import (
    SPACES,
    LabelSpace,
    get_label_space,
    remap_report,
    remap_table,
    remap_targets,
)
from panoda.labels.spaces import generated_palette

# Written by hand from the published definitions, in the order of the source's ids.
EXPECTED = {
    ("cs19", "cs13"): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 12, 12, 255, 12, 12],
    ("camvid11", "cs13"): [10, 2, 5, 0, 1, 8, 7, 4, 12, 11, 255],
    # building fence other pedestrian pole roadline road sidewalk vegetation vehicles wall sign sky ground
    # bridge track guardrail light static dynamic water terrain
    ("synpass22", "cs13"): [
        *(2, 4, 255, 11, 5, 0, 0, 1, 8, 12, 3, 7, 10, 255),
        *(255, 255, 255, 6, 255, 255, 255, 9),
    ],
    ("indoor13", "indoor8"): [255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 5, 6, 7],
    ("nyu40", "indoor8"): [
        *(6, 3, 255, 255, 1, 4, 5, 2, 7, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0),
        *(255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255),
    ],
}


def test_every_space_has_unique_names_and_colours():
    for space in map(get_label_space, SPACES):
        assert len(set(space.names)) == space.num_classes
        # Two classes of the published ADE20K palette share a colour.
        assert len(set(space.palette)) == space.num_classes - (space.name == "ade150")
    assert {name: get_label_space(name).num_classes for name in SPACES} == {
        **{"cs19": 19, "cs13": 13, "camvid11": 11, "synpass22": 22},
        **{"indoor13": 13, "indoor8": 8, "nyu40": 40, "ade150": 150},
    }


def test_every_remap_has_an_expectation():
    assert set(EXPECTED) == {(a, b) for a in SPACES for b in remap_targets(a)}


@pytest.mark.parametrize("pair", EXPECTED, ids="->".join)
def test_remaps_value_by_value(pair):
    table = remap_table(*pair)
    expected = EXPECTED[pair]
    assert table.dtype == np.uint8 and table[: len(expected)].tolist() == expected
    assert len(expected) == get_label_space(pair[0]).num_classes and (table[len(expected) :] == 255).all()


@pytest.mark.parametrize("pair", [("indoor13", "indoor8"), ("nyu40", "indoor8"), ("cs19", "cs13")])
def test_remaps_keep_the_names_that_both_spaces_have(pair):
    old, new = map(get_label_space, pair)
    table = remap_table(*pair)
    shared = set(old.names) & set(new.names)
    assert len(shared) >= 8
    assert all(new.names[table[old.index(name)]] == name for name in shared)


def test_spot_values_of_published_spaces():
    ade = get_label_space("ade150")
    assert [ade.names[i] for i in (0, 1, 2, 11, 12, 20, 80, 136, 149)] == [
        *("wall", "building", "sky", "sidewalk", "person", "car", "bus", "traffic light", "flag"),
    ]
    assert (ade.palette[0], ade.palette[20], ade.palette[149]) == (
        (120, 120, 120),
        (0, 102, 200),
        (92, 0, 255),
    )
    assert ade.palette[6] == ade.palette[48] == (140, 140, 140)
    synpass = get_label_space("synpass22")
    assert synpass.palette[synpass.index("terrain")] == (145, 170, 100)
    assert synpass.palette[synpass.index("fence")] == (100, 40, 40)
    nyu = get_label_space("nyu40")
    assert (nyu.names[0], nyu.names[21], nyu.names[39]) == ("wall", "ceiling", "other prop")
    assert get_label_space("indoor8").names == (
        *("ceiling", "chair", "door", "floor", "sofa", "table", "wall", "window"),
    )


def test_generated_palette_is_that_of_voc():
    assert generated_palette(20)[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert generated_palette(20)[7] == (64, 0, 0) and generated_palette(20)[19] == (0, 64, 128)
    assert len(set(generated_palette(254))) == 254


def test_remap_report():
    report = remap_report("camvid11", "cs13")
    assert report.dropped == ("bicyclist",) and report.merged == {}
    assert report.empty == ("wall", "traffic light", "terrain")
    report = remap_report("cs19", "cs13")
    assert report.dropped == ("train",) and report.empty == ()
    assert report.merged == {
        "person": ("person", "rider"),
        "car": ("car", "truck", "bus", "motorcycle", "bicycle"),
    }
    assert remap_report("synpass22", "cs13").merged == {"road": ("road line", "road")}
    assert remap_report("cs19", "cs19").dropped == ()


def test_identity_keeps_classes_and_ignores_the_rest():
    table = remap_table("cs19", "cs19")
    assert table[:19].tolist() == list(range(19))
    assert (table[19:] == 255).all()


def test_colours_and_errors():
    space = get_label_space("cs19")
    assert space.colourise(np.array([[0, 18, 255]])).tolist() == [[[128, 64, 128], [119, 11, 32], [0, 0, 0]]]
    assert space.index("sky") == 10
    with pytest.raises(ValueError, match="has no class 'moon'"):
        space.index("moon")
    with pytest.raises(ValueError, match="known: cs19"):
        get_label_space("cs20")
    with pytest.raises(ValueError, match="no remap cs13->camvid11"):
        remap_table("cs13", "camvid11")
    with pytest.raises(ValueError, match="a occur more than once"):
        LabelSpace("x", ("a", "a"), ((0, 0, 0), (1, 1, 1)))


# --- spaces of one's own ---------------------------------------------------------------------------


def test_own_space(tmp_path):
    own, other = tmp_path / "own.yaml", tmp_path / "other.yaml"
    own.write_text(
        "names: [road, lane, house]\npalette: [[1, 2, 3], [4, 5, 6], [7, 8, 9]]\n"
        "to:\n  cs13: {road: road, lane: road}\n  other.yaml: {house: home, lane: null}\n"
    )
    other.write_text("names: [x, home]\n")
    space = get_label_space(str(own))
    assert space.name == str(own) and space.palette[1] == (4, 5, 6)
    assert remap_table(str(own), "cs13")[:4].tolist() == [0, 0, 255, 255]
    assert remap_table(str(own), str(other))[:4].tolist() == [255, 255, 1, 255]
    assert remap_table(str(own), str(own))[:4].tolist() == [0, 1, 2, 255]
    assert remap_report(str(own), "cs13").dropped == ("house",)
    assert remap_report(str(own), "cs13").merged == {"road": ("road", "lane")}
    assert get_label_space(str(other)).palette == ((128, 0, 0), (0, 128, 0))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no such label space file"),
        ("names: [a", "cannot be read as YAML"),
        ("names: [a]\nnames: [b]", "names stands here twice; remove one"),
        ("- a", "expected the keys names"),
        ("names: [a]\ncolours: []", "found names, colours"),
        ("names: [a, 1]", "names must be a list of texts"),
        ("names: []", "0 classes"),
        ("names: [a, b]\npalette: [[1, 2, 3]]", "2 names but 1 colours"),
        ("names: [a]\npalette: [[1, 2, 256]]", "palette must be a list"),
        ("names: [a]\nto: {cs13: [a]}", "to: must be"),
        ("names: [a]\nto: {cs13: {a: moon}}", "to: cs13: cs13 has no class 'moon'"),
        ("names: [a]\nto: {cs13: {b: road}}", "has no class 'b'"),
        ("names: [a]\nto: {cs19: {a: road}}", "no remap .*->cs13"),
    ],
)
def test_own_space_errors(tmp_path, text, match):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        get_label_space(str(path)), remap_table(str(path), "cs13")
    assert "own.yaml" in str(caught.value)
