import math
from pathlib import Path

import pytest
import torch
from torch import nn

from panoda.evaluation.evaluate import (
    Evaluation,
    azimuth_limits,
    column_sectors,
    evaluate_model,
    latitude_limits,
    row_bands,
)
from panoda.inference.metrics import iou as iou_of


class FakeSplit:
    """Images whose first channel holds the class the model will predict."""

    folder = Path("fake/test")

    def __init__(
        self, pred, label, *, valid=None, projection="erp", full_circle=True, top=35.0, bottom=-35.0
    ):
        self.pred, self.label = pred, label
        self.valid = torch.ones_like(label, dtype=torch.bool) if valid is None else valid
        self.projection, self.full_circle = projection, full_circle
        self.lat_top_deg, self.lat_bottom_deg = top, bottom
        self.band = (math.radians(top), math.radians(bottom))
        self.height, self.width = pred.shape[1:]

    def __len__(self):
        return len(self.pred)

    def __getitem__(self, i):
        image = self.pred[i].to(torch.uint8).expand(3, -1, -1).clone()
        return {
            "image": image,
            "label": self.label[i].to(torch.uint8),
            "valid": self.valid[i],
            "id": str(i),
            "index": i,
        }


class ReadClass(nn.Module):
    """Logits of 4 at the class written into the image, 0 elsewhere."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        return (
            4.0 * nn.functional.one_hot(x[:, 0].round().long(), self.num_classes).permute(0, 3, 1, 2).float()
        )


@pytest.fixture(autouse=True)
def raw_values(monkeypatch):
    """Predict on raw values: the fake model reads the class off the image itself."""
    monkeypatch.setattr("panoda.evaluation.evaluate.predict_logits", lambda model, x, **_: model(x.float()))


def run(pred, label, num_classes=3, **kw):
    options = {k: kw.pop(k) for k in ("keep", "batch_size") if k in kw}
    counted = {k: kw.pop(k) for k in ("bands", "sectors", "groups") if k in kw}
    split = FakeSplit(pred, label, **kw)
    return evaluate_model(ReadClass(num_classes), split, Evaluation(split, num_classes, **counted), **options)


def test_hand_computed_matrix_over_the_whole_set():
    pred = torch.tensor([[[0, 0, 1, 1]], [[2, 2, 1, 0]]])
    label = torch.tensor([[[0, 1, 1, 255]], [[2, 0, 1, 0]]])
    result = run(pred, label, batch_size=1, keep=(1,))
    assert result.confusion.matrix.tolist() == [[2, 0, 1], [1, 2, 0], [0, 0, 1]]
    # IoU 2/4, 2/3, 1/2: one matrix over both images, not a mean of per-image scores.
    torch.testing.assert_close(result.confusion.iou(), torch.tensor([0.5, 2 / 3, 0.5], dtype=torch.float64))
    assert result.predicted_pixels.tolist() == [3, 3, 2] and result.images == 2
    assert result.mean_confidence == pytest.approx(math.exp(4) / (math.exp(4) + 2))
    assert list(result.predictions) == [1] and result.predictions[1].tolist() == [[2, 2, 1, 0]]
    assert result.confidences[1].tolist() == [[round(255 * result.mean_confidence)] * 4]


def test_absent_class_is_nan_and_left_out_of_the_mean():
    pred = torch.tensor([[[0, 1]]])
    result = run(pred, pred, num_classes=4)
    assert result.confusion.iou().isnan().tolist() == [False, False, True, True]
    assert result.confusion.miou() == 1.0


def test_ignore_band_is_counted_neither_as_label_nor_as_prediction():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    valid = torch.tensor([[[True, True], [False, False]]])
    result = run(torch.ones_like(label), label, valid=valid)
    assert result.confusion.matrix.sum() == 2 and result.predicted_pixels.tolist() == [0, 2, 0]


def test_batch_size_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    pred, label = torch.randint(0, 3, (2, 5, 4, 16), generator=generator)
    one, three = (run(pred, label, batch_size=b) for b in (1, 3))
    assert torch.equal(one.confusion.matrix, three.confusion.matrix)
    assert torch.equal(one.solid_angle, three.solid_angle)


def test_regions_partition_the_whole_and_sit_where_they_say():
    label = torch.zeros(1, 4, 16, dtype=torch.long)
    pred = label.clone()
    pred[:, 0] = 1  # the uppermost row is wrong
    pred[:, :, 9:11] = 2  # columns centred 33.75 and 56.25 degrees to the right: sector 1
    result = run(pred, label, bands=2)
    assert [(r.start_deg, r.stop_deg) for r in result.latitude] == [(0.0, 35.0), (-35.0, 0.0)]
    for regions in (result.latitude, result.azimuth):
        assert torch.equal(sum(r.confusion.matrix for r in regions), result.confusion.matrix)
    assert [int(r.confusion.matrix[0, 2]) for r in result.azimuth] == [0, 8, 0, 0, 0, 0, 0, 0]
    assert [int(r.confusion.matrix[0, 1]) for r in result.latitude] == [14, 0]


def test_pinhole_has_no_regions_and_a_partial_panorama_no_sectors():
    label = torch.zeros(1, 4, 8, dtype=torch.long)
    pinhole = run(label, label, projection="pinhole", full_circle=False, top=math.nan, bottom=math.nan)
    assert pinhole.latitude == [] and pinhole.azimuth == [] and pinhole.solid_angle is None
    partial = run(label, label, full_circle=False)
    assert len(partial.latitude) == 6 and partial.azimuth == []


def test_sectors_are_centred_on_forward_and_turn_right():
    assert column_sectors(16, 8).tolist() == [4, 5, 5, 6, 6, 7, 7, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert azimuth_limits(8)[0] == (-22.5, 22.5) and azimuth_limits(8)[2] == (67.5, 112.5)
    assert torch.bincount(column_sectors(512, 8)).tolist() == [64] * 8


def test_bands_are_of_equal_angle_from_the_top():
    assert latitude_limits(90.0, -90.0, 3) == [(30.0, 90.0), (-30.0, 30.0), (-90.0, -30.0)]
    assert row_bands(6, 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_solid_angle_matrix_weighs_rows_by_their_area():
    label = torch.zeros(1, 2, 4, dtype=torch.long)
    pred = label.clone()
    pred[:, 1] = 1
    result = run(pred, label, top=90.0, bottom=-30.0)
    # sin 90 - sin 30 = 0.5 of 1.5 belongs to the upper row, times the whole circle.
    assert result.solid_angle[0].tolist() == pytest.approx([math.pi, 2 * math.pi, 0.0], rel=1e-6)
    iou = iou_of(result.solid_angle)
    assert float(iou[0]) == pytest.approx(1 / 3, rel=1e-6) and iou[1:].isnan().all()


def test_an_empty_split_is_named():
    label = torch.zeros(0, 2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="fake/test.*no image"):
        run(label, label)


def test_groups_are_counted_apart():
    label = torch.tensor([[[0, 1]], [[0, 1]], [[0, 255]]])
    pred = torch.tensor([[[0, 1]], [[0, 0]], [[1, 0]]])
    result = run(pred, label, 2, batch_size=2, groups=["rain", "fog", "rain"])
    assert result.group_images == {"fog": 1, "rain": 2}
    assert result.groups["fog"].matrix.tolist() == [[1, 0], [1, 0]]
    assert result.groups["rain"].matrix.tolist() == [[1, 1], [0, 1]]
    assert sum(m.matrix for m in result.groups.values()).tolist() == result.confusion.matrix.tolist()
    assert run(pred, label, 2).groups == {}


def test_a_model_that_is_moved_to_be_evaluated_can_still_be_trained():
    class Moves(ReadClass):
        def __init__(self):
            super().__init__(2)
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

        def to(self, device):
            return self.double()  # new weights, as on another device

    model = Moves()
    split = FakeSplit(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    evaluate_model(model, split, Evaluation(split, 2))
    model.layers(torch.ones(1, 2).double()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
