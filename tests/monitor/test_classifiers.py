"""Which layers feed a classification loss: heads as users write them."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from amp_hooks.monitor.class_losses import is_classification_loss
from amp_hooks.monitor.classifiers import ClassifierFinder


class FocalLoss(nn.Module):
    def forward(self, pred, target, weight=None):
        loss = F.binary_cross_entropy_with_logits(pred, target)
        return loss if weight is None else (loss * weight).mean()


class PolyLoss(nn.Module):
    def forward(self, pred, target):
        return F.cross_entropy(pred, target) + 1 - F.softmax(pred, 1).amax()


class FocalEIoULoss(nn.Module):
    def forward(self, pred, target):
        return F.l1_loss(pred, target)


class Head(nn.Module):
    """A classifier and a box regressor side by side; losses are given by name."""

    def __init__(self, score=None, **losses):
        super().__init__()
        self.shared = nn.Linear(4, 8)
        self.fc_cls = nn.Linear(8, 3)
        self.fc_reg = nn.Linear(8, 4)
        self.score = score or (lambda x: x)
        for name, loss in losses.items():
            setattr(self, name, loss)
        self.name = next(iter(losses))

    def scores(self, x):
        return self.fc_cls(torch.relu(self.shared(x)))

    def forward(self, x):
        box = self.fc_reg(torch.relu(self.shared(x)))
        loss = getattr(self, self.name)
        target = torch.zeros(len(x), dtype=torch.long)
        if isinstance(loss, (FocalLoss, nn.BCEWithLogitsLoss, nn.BCELoss)):
            target = torch.zeros(len(x), 3)
        return loss(self.score(self.scores(x)), target) + box.abs().mean()


def find(model, x=None, *, backward=True):
    """Run the model once; what the finder names, in order, and what it measured."""
    measured = []
    finder = ClassifierFinder(model, lambda name, output: measured.append(name))
    loss = model(torch.randn(2, 4, requires_grad=True) if x is None else x)
    if backward:
        loss.backward()
    finder.close()
    finder.measured = measured
    return finder


@pytest.mark.parametrize(
    "name",
    "loss_cls initial_loss_cls cls_loss loss_obj loss_conf loss_decode criterion loss "
    "loss_fn loss_func loss_module my_favourite".split(),
)
def test_a_loss_of_any_name_leads_to_the_classifier(name):
    finder = find(Head(**{name: nn.CrossEntropyLoss()}))
    assert finder.found == ["fc_cls"]
    assert finder.hidden is None
    assert "fc_cls" in finder.measured


@pytest.mark.parametrize(
    ("loss", "score"),
    [
        (nn.NLLLoss(), functools.partial(torch.log_softmax, dim=1)),
        (nn.BCELoss(), torch.sigmoid),
        (nn.BCEWithLogitsLoss(), None),
        (nn.MultiMarginLoss(), None),
        (FocalLoss(), lambda x: x.t().reshape(3, 2).t()),
        (PolyLoss(), lambda x: x.clamp(-5, 5).float()),
    ],
    ids=lambda x: type(x).__name__,
)
def test_losses_of_any_class_under_a_plain_name(loss, score):
    assert find(Head(score, criterion=loss)).found == ["fc_cls"]


@pytest.mark.parametrize(
    "name",
    "loss_mask loss_bbox_cls loss_centerness loss_iou loss_dice loss_kpt loss_dfl "
    "loss_grid loss_point loss_track".split(),
)
def test_other_branches_are_left_alone(name):
    assert find(Head(**{name: nn.CrossEntropyLoss()})).found == []


@pytest.mark.parametrize(
    ("path", "module", "expected"),
    [
        ("roi_head.semantic_head.criterion", nn.CrossEntropyLoss(), True),
        ("roi_head.bbox_head.0.loss_cls", FocalEIoULoss(), True),
        ("decode_head.loss_decode.1", nn.Identity(), True),
        ("head.losses.0", nn.CrossEntropyLoss(), True),
        ("head.loss_cls.inner", nn.CrossEntropyLoss(), True),
        ("roi_head.mask_head.criterion", nn.CrossEntropyLoss(), False),
        ("head.loss_mask.inner", nn.CrossEntropyLoss(), False),
        ("head.losses.mask", nn.CrossEntropyLoss(), False),
        ("head.criterion", nn.SmoothL1Loss(), False),
        ("head.criterion", FocalEIoULoss(), False),
        ("head.criterion", nn.GaussianNLLLoss(), False),
        ("head.fc_cls", nn.Linear(1, 1), False),
        ("", Head(criterion=nn.CrossEntropyLoss()), False),
    ],
)
def test_what_counts_as_a_classification_loss(path, module, expected):
    assert is_classification_loss(path, module) is expected


@pytest.mark.parametrize(
    "kind",
    [
        "CosineSimilarityLoss",  # mmpretrain: SimSiam, BYOL
        "PixelReconstructionLoss",
        "CrossCorrelationLoss",
        "RLELoss",  # mmpose
        "KeypointMSELoss",
        "SoftWingLoss",
        "OKSLoss",
        "MPJPELoss",
        "SiLogLoss",  # mmseg, depth
    ],
)
def test_losses_of_what_is_no_class(kind):
    """A clamp on such predictions would be one on coordinates or embeddings."""
    module = type(kind, (nn.Module,), {})()
    assert not is_classification_loss("head.loss_module", module)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([nn.MSELoss(), nn.SmoothL1Loss()], False),
        ([nn.MSELoss(), nn.CrossEntropyLoss()], True),
    ],
)
def test_a_sum_of_losses_is_what_its_parts_are(parts, expected):
    module = nn.Module()
    module.loss_modules = nn.ModuleList(parts)
    assert is_classification_loss("head.loss_module", module) is expected


def test_a_loss_for_masks_is_not_one_for_classes():
    loss = nn.CrossEntropyLoss()
    loss.use_mask = True  # mmdet's way
    assert not is_classification_loss("head.loss_func", loss)


def test_a_loss_inside_a_loss_gives_no_doubles():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.ce = nn.CrossEntropyLoss()

        def forward(self, pred, target):
            return 2 * self.ce(pred / 2, target)

    assert find(Head(loss_cls=Wrapper())).found == ["fc_cls"]


def test_mmpretrain_style_head():
    class LinearClsHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss_module = nn.CrossEntropyLoss()
            self.fc = nn.Linear(4, 5)

        def forward(self, feats):
            return self.loss(feats, torch.tensor([0, 1]))["loss"]

        def loss(self, feats, target):
            return dict(loss=self.loss_module(self.fc(feats), target))

    assert find(LinearClsHead()).found == ["fc"]


def test_mmseg_style_heads():
    class DecodeHead(nn.Module):
        def __init__(self, losses):
            super().__init__()
            self.loss_decode = losses
            self.conv_seg = nn.Conv2d(4, 3, 1)

        def loss_by_feat(self, seg_logits, label):
            seg_logits = F.interpolate(seg_logits, scale_factor=2, mode="bilinear")
            losses = self.loss_decode
            losses = losses if isinstance(losses, nn.ModuleList) else [losses]
            return sum(loss(seg_logits, label) for loss in losses)

    class Segmentor(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 1)
            self.decode_head = DecodeHead(
                nn.ModuleList([nn.CrossEntropyLoss(), PolyLoss()])
            )
            self.auxiliary_head = DecodeHead(nn.CrossEntropyLoss())

        def forward(self, x):
            x, label = self.backbone(x), torch.zeros(2, 8, 8, dtype=torch.long)
            heads = self.decode_head, self.auxiliary_head
            return sum(head.loss_by_feat(head.conv_seg(x), label) for head in heads)

    finder = find(Segmentor(), torch.randn(2, 3, 4, 4))
    assert finder.found == ["decode_head.conv_seg", "auxiliary_head.conv_seg"]


def test_a_criterion_that_gets_all_predictions_in_a_dict():
    class SetCriterion(nn.Module):
        def forward(self, outputs, target):
            every = [outputs, *outputs["aux_outputs"]]
            boxes = sum(o["pred_boxes"].abs().mean() for o in every)
            return boxes + sum(F.cross_entropy(o["pred_logits"], target) for o in every)

    class Detr(nn.Module):
        def __init__(self):
            super().__init__()
            self.criterion = SetCriterion()
            self.classes = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
            self.boxes = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            first, last = (
                dict(pred_logits=c(x), pred_boxes=b(x).sigmoid())
                for c, b in zip(self.classes, self.boxes)
            )
            return self.criterion(dict(last, aux_outputs=[first]), torch.tensor([0, 1]))

    assert sorted(find(Detr()).found) == ["classes.0", "classes.1"]


def test_a_layer_used_on_several_levels_is_one_entry_and_targets_are_none():
    class Levels(Head):
        def forward(self, x):
            soft = self.shared(x).sigmoid()[:, :3]  # a target that carries a gradient
            weight = self.fc_reg(self.shared(x)).sigmoid()[:, :3]
            return sum(
                self.loss_cls(self.scores(scale * x), target=soft, weight=weight)
                for scale in (1, 2)
            )

    assert find(Levels(loss_cls=FocalLoss())).found == ["fc_cls"]


# --- heads that call no loss module -----------------------------------------------


class FreeHead(Head):
    def loss_by_feat(self, cls_scores, bbox_preds, objectnesses=()):
        joint = sum(s.sigmoid().mean() for s in (*cls_scores, *objectnesses))
        return joint + sum(b.abs().mean() for b in bbox_preds)

    def forward(self, x):
        hidden = self.shared(x)
        return self.loss_by_feat(
            [self.fc_cls(hidden)], [self.fc_reg(hidden)], objectnesses=self.more(hidden)
        )

    def more(self, hidden):
        return ()


def test_scores_given_to_loss_by_feat_stand_in_for_a_loss():
    model = FreeHead(loss_bbox=nn.L1Loss())
    assert find(model).found == ["fc_cls"]
    assert "loss_by_feat" not in vars(model)


def test_objectness_counts():
    class AutoAssign(FreeHead):
        def __init__(self):
            super().__init__(loss_bbox=nn.L1Loss())
            self.conv_obj = nn.Linear(8, 1)

        def more(self, hidden):
            return [self.conv_obj(hidden)]

    assert find(AutoAssign()).found == ["fc_cls", "conv_obj"]


def test_the_loss_module_is_believed_first():
    class Both(Head):
        def loss(self, cls_score, target):
            return self.loss_cls(cls_score[:, :3], target) + cls_score.abs().mean()

        def forward(self, x):
            hidden = self.shared(x)
            both = torch.cat([self.fc_cls(hidden), self.fc_reg(hidden)], 1)
            return self.loss(both.sin(), torch.tensor([0, 1]))

    # The walk from the loss passes the cat, so both are there, once each.
    assert sorted(find(Both(loss_cls=nn.CrossEntropyLoss())).found) == [
        "fc_cls",
        "fc_reg",
    ]


def test_wrappers_of_others_are_kept():
    model = FreeHead(loss_bbox=nn.L1Loss())
    calls = []

    def wrap(label):
        inner = model.loss_by_feat

        def outer(*args, **kwargs):
            calls.append(label)
            return inner(*args, **kwargs)

        model.loss_by_feat = outer
        return outer

    wrap("before")
    finder = ClassifierFinder(model)
    after = wrap("after")
    model(torch.randn(2, 4))
    assert finder.found == ["fc_cls"]
    finder.close()
    assert model.loss_by_feat is after
    model(torch.randn(2, 4))
    assert calls == ["after", "before"] * 2


def test_closing_gives_the_model_back():
    model = FreeHead(loss_bbox=nn.L1Loss())
    model.loss_by_feat = before = model.loss_by_feat
    finder = ClassifierFinder(model)
    assert model.loss_by_feat is not before
    finder.close()
    assert model.loss_by_feat is before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- other kinds of layers --------------------------------------------------------


class Cosine(nn.Module):
    """A leaf with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return 20 * F.normalize(x) @ F.normalize(self.weight, dim=0)


class Contrast(nn.Module):
    """No weight at all: queries are compared with text, as in Grounding DINO."""

    def forward(self, query, text):
        return (query @ text.t()).clamp(-5e4, 5e4)


class Named(nn.Module):
    """A text branch, and classes given by a product with what it returns."""

    def __init__(self, product):
        super().__init__()
        self.shared, self.text = nn.Linear(4, 8), nn.Linear(8, 8)
        self.norm, self.act = nn.LayerNorm(8), nn.Identity()
        self.loss_cls, self.product = nn.CrossEntropyLoss(), product

    def forward(self, x):
        text = self.text(torch.eye(8)[:3])
        scores = self.product(self.norm(self.shared(x)), text)
        return self.loss_cls(self.act(scores), torch.tensor([0, 1]))


def test_a_leaf_that_owns_a_weight_matrix():
    model = Head(loss_cls=nn.CrossEntropyLoss())
    model.fc_cls = Cosine()
    assert find(model).found == ["fc_cls"]


def test_a_module_that_compares_without_a_weight():
    finder = find(Named(Contrast()))
    assert finder.found == ["product"]
    assert finder.hidden is None


def test_a_product_outside_any_module_is_not_blamed_on_a_neighbour():
    finder = find(Named(lambda query, text: query @ text.t()))
    assert finder.found == []
    assert "matrix product" in finder.hidden
    assert "loss_cls" in finder.hidden


def test_a_container_is_not_named_for_a_layer_in_it():
    model = Head(loss_cls=nn.CrossEntropyLoss())
    model.fc_cls = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3), nn.ReLU())
    assert find(model).found == ["fc_cls.0"]


# --- activation checkpointing -----------------------------------------------------


class Checkpointed(Head):
    reentrant = True

    def scores(self, x):
        return checkpoint(super().scores, x, use_reentrant=self.reentrant)


def test_a_reentrant_checkpoint_is_reported_not_walked_through():
    finder = find(Checkpointed(loss_cls=nn.CrossEntropyLoss()))
    assert finder.found == []
    assert "use_reentrant=False" in finder.hidden


def test_a_checkpoint_that_keeps_the_graph_changes_nothing():
    model = Checkpointed(loss_cls=nn.CrossEntropyLoss())
    model.reentrant = False
    finder = find(model)
    assert finder.found == ["fc_cls"]
    assert finder.hidden is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_loss_inside_the_checkpoint(reentrant):
    class Whole(Head):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    finder = find(Whole(loss_cls=nn.CrossEntropyLoss()))
    assert finder.found == ["fc_cls"]
    assert finder.hidden is None


def test_a_checkpointed_backbone_hides_nothing():
    class Backbone(Head):
        def scores(self, x):
            hidden = checkpoint(self.shared, x, use_reentrant=True)
            return self.fc_cls(hidden)

    finder = find(Backbone(loss_cls=nn.CrossEntropyLoss()))
    assert finder.found == ["fc_cls"]
    assert finder.hidden is None


# --- around it --------------------------------------------------------------------


def test_nothing_without_gradients_and_nothing_kept_between_forwards():
    model = Head(loss_cls=nn.CrossEntropyLoss())
    finder = ClassifierFinder(model)
    with torch.no_grad():
        model(torch.randn(2, 4))
    assert finder.found == []
    for _ in range(3):
        model(torch.randn(2, 4))
    assert finder.found == ["fc_cls"]
    assert len(finder._layers) == 4  # shared twice, fc_cls, fc_reg: of one forward
    finder.close()


def test_watching_changes_no_number():
    def run(watched):
        torch.manual_seed(0)
        model = FreeHead(loss_bbox=nn.L1Loss())
        finder = ClassifierFinder(model) if watched else None
        loss = model(torch.randn(2, 4))
        loss.backward()
        if finder:
            finder.close()
        return [loss, *(p.grad for p in model.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False)))
