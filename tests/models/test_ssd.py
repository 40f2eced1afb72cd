"""SSD equals the same network in torch under torchvision's names: maps, logits, offsets, default boxes."""

import functools
import math

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.models.reference import distance, import_weights, leaf_shapes, make_model, run
from tests.models.test_families import TINY_SSD
from tljax.base.errors import UserError
from tljax.models.ssd import ARCHITECTURE, FAMILY, SsdConfig, configure, decode, default_boxes, encode, infer
from tljax.models.ssd import table as table_of

LABELS = 3


class Backbone(nn.Module):
    """VGG-16 cut at conv4_3, and the stages after it, with torchvision's names."""

    def __init__(self, c: SsdConfig):
        super().__init__()
        layers, before = [], c.num_channels
        for depth, width in zip(c.depths, c.widths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2, 2))
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True
        self.scale_weight = nn.Parameter(torch.linspace(10, 20, c.widths[3]))
        self.features = nn.Sequential(*layers[: pools[3]])
        conv6 = nn.Conv2d(before, c.bridge, 3, padding=6, dilation=6)
        conv7 = nn.Conv2d(c.bridge, c.bridge, 1)
        fc = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv6, nn.ReLU(), conv7, nn.ReLU())
        self.extra = nn.ModuleList([nn.Sequential(*layers[pools[3] : -1], fc)])
        before = c.bridge
        for i, (reduced, width) in enumerate(zip(c.reduced, c.extra, strict=True)):
            options = dict(padding=1, stride=2) if i < c.halved else {}
            pair = (nn.Conv2d(before, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, width, 3, **options), nn.ReLU())
            self.extra.append(nn.Sequential(*pair))
            before = width

    def forward(self, x):
        x = self.features(x)
        maps = [self.scale_weight.view(1, -1, 1, 1) * functional.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return maps


class Scoring(nn.Module):
    def __init__(self, depths, counts, columns):
        super().__init__()
        convs = [nn.Conv2d(d, n * columns, 3, padding=1) for d, n in zip(depths, counts, strict=True)]
        self.module_list, self.columns = nn.ModuleList(convs), columns

    def forward(self, maps):
        found = [conv(x) for conv, x in zip(self.module_list, maps, strict=True)]
        split = [x.unflatten(1, (-1, self.columns)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in found]
        return torch.cat(split, 1)


class Reference(nn.Module):
    def __init__(self, c: SsdConfig):
        super().__init__()
        self.backbone, self.head = Backbone(c), nn.Module()
        depths, counts = (c.widths[3], c.bridge, *c.extra), [2 + 2 * n for n in c.ratios]
        self.head.classification_head = Scoring(depths, counts, LABELS + 1)
        self.head.regression_head = Scoring(depths, counts, 4)


def reference_boxes(c: SsdConfig, grids) -> torch.Tensor:
    """Default boxes of torchvision's generator, in torch: centres on a mesh, clipped sizes."""
    boxes, ratios = [], [[2, 3][:n] for n in c.ratios]
    scales = [s / 100 for s in c.scales]
    for k, (rows, columns) in enumerate(grids):
        pairs = [[scales[k]] * 2, [math.sqrt(scales[k] * scales[k + 1])] * 2]
        for ratio in ratios[k]:
            pairs += [
                [scales[k] * ratio**0.5, scales[k] / ratio**0.5],
                [scales[k] / ratio**0.5, scales[k] * ratio**0.5],
            ]
        pairs = torch.tensor(pairs).clamp(0, 1)
        y = (torch.arange(rows) + 0.5) / (c.image_size[0] / c.steps[k])
        x = (torch.arange(columns) + 0.5) / (c.image_size[1] / c.steps[k])
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([xx, yy], -1).reshape(-1, 1, 2).expand(-1, len(pairs), 2)
        sizes = pairs.expand(len(centres), -1, 2)
        boxes.append(torch.cat([centres - sizes / 2, centres + sizes / 2], -1).reshape(-1, 4))
    return torch.cat(boxes)


@functools.cache
def both():
    torch.manual_seed(0)
    config = configure(TINY_SSD)
    theirs = Reference(config).eval()
    model = make_model("ssd", {**TINY_SSD, "num_labels": LABELS}, ARCHITECTURE)
    variables = import_weights(model, theirs.state_dict(), prefix="backbone.", architecture=ARCHITECTURE)
    return config, theirs, model, variables


def test_maps_logits_and_offsets_are_torch_s():
    config, theirs, model, variables = both()
    x = np.random.default_rng(0).normal(size=(2, 70, 76, 3)).astype(np.float32)
    ours = run(model, variables, {"pixel_values": x})
    with torch.no_grad():
        maps = theirs.backbone(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        logits, offsets = theirs.head.classification_head(maps), theirs.head.regression_head(maps)
    assert [m.shape[1:3] for m in ours["pyramid"]] == [(9, 10), (4, 5), (2, 3), (1, 2)]  # 17 rows halve to 9
    for a, b in zip(ours["pyramid"], maps, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5 and distance(ours["offsets"], offsets) <= 1e-5
    assert len(ours["hidden_states"]) == len(model.backbone.stages)
    boxes = reference_boxes(config, [m.shape[2:] for m in maps])
    assert ours["default_boxes"].shape == (logits.shape[1], 4)
    np.testing.assert_allclose(ours["default_boxes"], boxes, atol=1e-6)


def test_ssd300_has_the_published_boxes_names_and_size():
    config = configure({})
    model = make_model("ssd", {"num_labels": 90}, ARCHITECTURE)
    shapes = leaf_shapes(model)
    assert sum(math.prod(shape) for shape in shapes.values()) == 35_641_826
    outputs = jax.eval_shape(lambda: model.head.init_with_output(jax.random.key(0), pyramid())[0])
    assert outputs["logits"].shape == (1, 8732, 91) and outputs["offsets"].shape == (1, 8732, 4)
    boxes = default_boxes([(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)], (300, 300), *anchors(config))
    assert boxes.shape == (8732, 4)
    np.testing.assert_allclose(boxes[0], [4 / 300 - 0.035, 4 / 300 - 0.035, 4 / 300 + 0.035, 4 / 300 + 0.035])
    np.testing.assert_allclose(boxes[-1][2:] - boxes[-1][:2], [0.87 / 2**0.5, 1.0])  # 1.23 is cut to the image
    names = [name for entry in table_of(config, "backbone.").rows for name in entry.theirs]
    for name in ("scale_weight", "features.0.weight", "features.21.bias", "extra.0.5.weight", "extra.0.7.3.bias"):
        assert f"backbone.{name}" in names
    assert "backbone.extra.4.2.weight" in names and len(names) == 1 + 2 * (13 + 2 + 8)


def pyramid():
    widths = {38: 512, 19: 1024, 10: 512, 5: 256, 3: 256, 1: 256}
    return {"pyramid": tuple(np.zeros((1, n, n, width), np.float32) for n, width in widths.items())}


def anchors(config):
    return config.ratios, config.scales, config.steps


def test_offsets_come_back():
    generator = np.random.default_rng(0)
    low, low2 = generator.uniform(0, 0.5, (2, 20, 2))
    boxes, defaults = (np.concatenate([x, x + generator.uniform(0.1, 0.5, (20, 2))], 1) for x in (low, low2))
    np.testing.assert_allclose(decode(encode(boxes, defaults), defaults), boxes, atol=1e-6)
    # An offset of one unit is a tenth of the size, or a factor of e to 0.2.
    box = np.array([[0.0, 0.0, 1.0, 2.0]])
    np.testing.assert_allclose(decode(np.array([[1.0, 1.0, 0.0, 0.0]]), box), [[0.1, 0.2, 1.1, 2.2]], atol=1e-6)
    wide = np.exp(0.2) / 2
    np.testing.assert_allclose(decode(np.array([[0.0, 0, 1, 0]]), box), [[0.5 - wide, 0, 0.5 + wide, 2]], atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"(?s)scales has 2 numbers, and must have 7.*ratios is \(3, 2"):
        configure({"scales": [1, 2], "ratios": [3, 2, 2, 2, 1, 1]})
    with pytest.raises(UserError, match="pixel_values has the shape"):
        FAMILY.start(configure({}), {"pixel_values": np.zeros((1, 320, 320, 3))})
    with pytest.raises(UserError, match=r"backbone\.scale_weight"):
        infer({"conv.weight": (1, 2)})
    shapes = {"backbone.scale_weight": (512,), "backbone.extra.1.0.weight": (256, 1024, 1, 1)}
    assert infer(shapes) == {}
    found = infer({**shapes, "head.classification_head.module_list.0.weight": (4 * 91, 512, 3, 3)})
    assert found == {"num_labels": 90, "architectures": ["SSD"]}
