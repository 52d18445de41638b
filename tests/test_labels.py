import numpy as np
import pytest

from panoda.labels import SPACES, get_label_space, remap_table, shared_classes


def test_every_space_has_unique_names_and_colours():
    for space in SPACES.values():
        assert len(set(space.names)) == space.num_classes
        assert len(set(space.palette)) == space.num_classes


def test_cs19_to_cs13_value_by_value():
    expected = [*range(12), 11, 12, 12, 12, 255, 12, 12]
    table = remap_table("cs19", "cs13")
    assert table[:19].tolist() == expected
    assert (table[19:] == 255).all()


def test_camvid_to_cs13_value_by_value():
    assert remap_table("camvid11", "cs13")[:12].tolist() == [10, 2, 5, 0, 1, 8, 7, 4, 12, 11, 255, 255]
    assert shared_classes("camvid11", "cs13") == (0, 1, 2, 4, 5, 7, 8, 10, 11, 12)


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
