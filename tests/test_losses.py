"""Claims about losses, their slopes and their means."""

import pytest
import torch
from sklearn.metrics import log_loss

from makers import logits_and_labels
from sparseirm.core import Loss, Outputs
from sparseirm.losses import BINARY, LOSSES, MULTICLASS, SQUARED

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
close = torch.testing.assert_close


@every_loss
def test_the_slope_is_the_derivative_along_the_scale_of_the_logits(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=50)
    scale = torch.ones(50, *[1] * (logits.ndim - 1), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.value(scale * logits, y).sum(), scale)
    close(loss.slope(logits, y), slope.flatten(), rtol=1e-12, atol=1e-12)


@every_loss
def test_loss_and_slope_are_one_number_per_sample_and_finite_for_extreme_logits(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=50, dtype=torch.float32)
    for value in (loss.value(1e4 * logits, y), loss.slope(1e4 * logits, y)):
        assert value.shape == (50,)
        assert value.isfinite().all()


def test_cross_entropies_are_those_of_scikit_learn() -> None:
    logits, y = logits_and_labels(BINARY, n=50)
    assert BINARY.value(logits, y).mean().item() == pytest.approx(log_loss(y, logits.sigmoid()))
    logits, y = logits_and_labels(MULTICLASS, n=50)
    assert MULTICLASS.value(logits, y).mean().item() == pytest.approx(log_loss(y, logits.softmax(1)))


def test_predictions_are_the_most_probable_label_or_the_value_itself() -> None:
    assert BINARY.predict(torch.tensor([-1.0, 2.0])).tolist() == [0, 1]
    assert MULTICLASS.predict(torch.tensor([[0.0, 3.0, 1.0]])).tolist() == [1]
    assert SQUARED.predict(torch.tensor([-1.5])).tolist() == [-1.5]


def test_a_mean_over_many_float32_samples_loses_no_digits() -> None:
    n = 1 << 20
    out = Outputs(torch.full((n,), 0.1), torch.zeros(n), torch.zeros(n, dtype=torch.long), 1, SQUARED)
    close(out.risks, out.losses[:1], rtol=0, atol=0)
