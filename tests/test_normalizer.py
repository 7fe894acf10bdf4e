"""EMANormalizer: detectron2's average of the positives, as a buffer on the device."""

import copy

import pytest
import torch

import imbal_kernels as ik


class Transcription:
    """detectron2's `_ema_update("loss_normalizer", max(num_pos_anchors, 1), 100)`, on the host."""

    def __init__(self):
        self.loss_normalizer = 100

    def update(self, num_pos_anchors, momentum=0.9):
        self.loss_normalizer = self.loss_normalizer * momentum + max(num_pos_anchors, 1) * (1 - momentum)
        return self.loss_normalizer


def batches(device):
    """Labels of some batches, one of them without an object and one of ignored rows alone."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(-2, 6, (2, 48), generator=generator) for _ in range(4)]
    labels[1][:], labels[2][:] = -1, -2
    return [ids.to(device) for ids in labels]


LOSSES = {
    "flat": lambda x, ids, **options: ik.sigmoid_focal_loss(x, ids, reduction="sum", **options),
    "values": lambda x, ids, **options: ik.binary_cross_entropy_with_logits(
        x, torch.where(ids == -2, -2, (ids >= 0) & (ids < 5))[..., None].expand(x.shape), **options
    ),
    "varifocal": lambda x, ids, **options: ik.varifocal_loss(x, ids, reduction="sum", **options),
    "dense": lambda x, ids, **options: ik.dense_focal_loss(
        [x.unflatten(1, (3, 4, 4)).flatten(3).permute(0, 3, 1, 2)], ids, 5, **options
    ),
    "reference": lambda x, ids, **options: ik.reference.sigmoid_focal_loss(x, ids, reduction="sum", **options),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_equals_detectron2(name, device):
    """Value and gradient of each step are those of the plain number."""
    theirs, ours = Transcription(), ik.EMANormalizer().to(device)
    for ids in batches(device):
        x = torch.randn(2, 48, 5, device=device, requires_grad=True)
        positives = int(((ids >= 0) & (ids < 5)).sum()) * (5 if name == "values" else 1)
        expected = LOSSES[name](x, ids, ignore_index=-2, normalizer=theirs.update(positives))
        loss = LOSSES[name](x, ids, ignore_index=-2, normalizer=ours)
        torch.testing.assert_close(ours.value.item(), theirs.loss_normalizer, rtol=1e-6, atol=0)
        torch.testing.assert_close(loss, expected)
        for got, true in zip(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x), strict=True):
            torch.testing.assert_close(got, true)


def test_momentum_0_is_the_batch_itself(device):
    """mmdetection's avg_factor, max(1, mean over ranks): `update` takes what the ranks agreed on."""
    normalizer = ik.EMANormalizer(momentum=0).to(device)
    assert normalizer.update(torch.tensor(12.5, device=device)) == 12.5
    assert normalizer.update(torch.tensor(0, device=device)) == 1
    assert normalizer.update(7) == 7 == normalizer.value


def test_two_losses_before_a_backward(device):
    """The second moves the average; the first keeps the one that it was divided by."""
    normalizer, ids = ik.EMANormalizer(momentum=0).to(device), torch.tensor([1, 0, -1], device=device)
    x = torch.zeros(3, 2, device=device, requires_grad=True)

    def both(first, second):
        whole = ik.sigmoid_focal_loss(x, ids, reduction="sum", normalizer=first)
        return whole + ik.sigmoid_focal_loss(x[:1], ids[:1], reduction="sum", normalizer=second)

    (grad,) = torch.autograd.grad(both(normalizer, normalizer), x)
    torch.testing.assert_close(grad, torch.autograd.grad(both(2.0, 1.0), x)[0])
    by_hand = x.sum() / normalizer.update(4) + x.sum() / normalizer.update(2)
    assert (torch.autograd.grad(by_hand, x)[0] == 0.75).all()


def test_moves_in_training_and_is_saved(device):
    loss = ik.DenseFocalLoss(5, normalizer=ik.EMANormalizer(0.5, 10.0)).to(device)
    level, labels = torch.zeros(1, 5, 2, 2, device=device), torch.tensor([[1, 2, -1, -1]], device=device)
    loss([level], labels)
    assert loss.normalizer.value == 6
    loss.eval()
    assert loss([level], labels) == ik.dense_focal_loss([level], labels, 5, normalizer=6.0)
    assert loss.normalizer.value == 6
    other = ik.DenseFocalLoss(5, normalizer=ik.EMANormalizer(0.5, 10.0)).to(device)
    other.load_state_dict(loss.state_dict())
    assert other.normalizer.value == 6 and set(other.state_dict()) == {"normalizer.value"}
    assert copy.deepcopy(loss).normalizer.value.data_ptr() != loss.normalizer.value.data_ptr()


def test_compiles_whole_and_moves(device):
    torch._dynamo.reset()
    loss, same = (ik.DenseFocalLoss(5, normalizer=ik.EMANormalizer()).to(device) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    level, labels = torch.randn(1, 5, 2, 2, device=device, requires_grad=True), torch.tensor([[1, 2, -1, -1]])
    for _ in range(3):
        got, true = compiled([level], labels.to(device)), same([level], labels.to(device))
        torch.testing.assert_close(got, true)
        torch.testing.assert_close(torch.autograd.grad(got, level), torch.autograd.grad(true, level))
    torch.testing.assert_close(loss.normalizer.value, same.normalizer.value)


X, IDS = torch.zeros(4, 3), torch.tensor([0, 1, -1, -1])


@pytest.mark.parametrize("options", [
    {"label_smoothing": 2.0}, {"alpha": torch.ones(5)}, {"loss_weight": torch.ones(2)}, {"weight": torch.ones(7)},
    {"statistics": ik.ClassStatistics(9)}, {"ignore_index": 0.5},
], ids=str)  # fmt: skip
def test_a_call_that_is_refused_does_not_move_it(options):
    normalizer = ik.EMANormalizer()
    for call in (
        lambda **o: ik.sigmoid_focal_loss(X, IDS, reduction="sum", **o),
        lambda **o: ik.dense_focal_loss([X.T.reshape(1, 3, 2, 2)], IDS[None], 3, **o),
    ):
        with pytest.raises((TypeError, ValueError)):
            call(normalizer=normalizer, **options)
        assert normalizer.value == 100
        call(normalizer=normalizer)
        assert normalizer.value != 100
        normalizer.value.fill_(100)


@pytest.mark.parametrize("functions", (ik, ik.reference))
def test_a_bad_target_does_not_move_it(functions):
    """On a CPU, where it is an error; the reference's loss is NaN."""
    normalizer, bad = ik.EMANormalizer(), IDS.clone()
    bad[2] = 7
    values = torch.full((4, 3), 1.5)
    for call in (
        lambda: functions.sigmoid_focal_loss(X, bad, reduction="sum", normalizer=normalizer),
        lambda: functions.sigmoid_focal_loss(X, values, reduction="sum", normalizer=normalizer),
        lambda: functions.dense_focal_loss([X.T.reshape(1, 3, 2, 2)], bad[None], 3, normalizer=normalizer),
    ):
        if functions is ik:
            with pytest.raises(ValueError, match="is out of range"):
                call()
        else:
            assert call().isnan()
        assert normalizer.value == 100


BAD = [
    (lambda: ik.EMANormalizer(1.5), ValueError, "momentum must be in [0, 1], got 1.5"),
    (lambda: ik.EMANormalizer("0.9"), TypeError, "momentum must be a number, got str"),
    (lambda: ik.EMANormalizer(initial=0), ValueError, "initial must be positive, got 0"),
    (lambda: ik.EMANormalizer().update(torch.ones(2)), ValueError,
     "positives must be a number or a 0-d tensor, got shape (2,)"),
    (lambda: ik.sigmoid_focal_loss(X, IDS, normalizer=ik.EMANormalizer()), ValueError,
     'normalizer divides a sum: it needs reduction="mean" or "sum", got "none"'),
    (lambda: ik.sigmoid_focal_loss(X, IDS, reduction="sum", normalizer=ik.EMANormalizer().to("meta")), ValueError,
     "normalizer must be on the device of the logits, cpu, got meta"),
    (lambda: ik.cross_entropy(X, IDS.abs(), normalizer=ik.EMANormalizer()), TypeError,
     "normalizer must be a number, got EMANormalizer"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
