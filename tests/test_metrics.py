"The metrics against torchmetrics and plain loops."
import pytest
import torch

from multiexit_nb.core import InputError
from multiexit_nb.methods import create_method
from multiexit_nb.metrics import (
    anytime_probs,
    calibration_error,
    exit_accuracy,
    learning_gaps,
    teacher_accuracy,
    topk_correct,
)

torchmetrics = pytest.importorskip("torchmetrics")
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

LOGITS = 2 * torch.randn(4, 300, 10, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(10, (300,), generator=torch.Generator().manual_seed(1))
LOGITS[3, torch.arange(300), TARGETS] += 3   # one exit that knows something


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_accuracy_is_torchmetrics(k):
    want = [multiclass_accuracy(z, TARGETS, 10, average="micro", top_k=k).item() for z in LOGITS]
    assert exit_accuracy(LOGITS, TARGETS, k).tolist() == pytest.approx(want)


def test_topk_by_sample():
    ks = (1, 2, 5)
    got = topk_correct(LOGITS, TARGETS, ks)
    for a, k in enumerate(ks):
        for m in range(4):
            assert all((y in z.argsort(descending=True)[:k]) == g
                       for z, y, g in zip(LOGITS[m], TARGETS, got[a, m]))


def test_a_dead_exit_is_not_a_good_one():
    assert (exit_accuracy(torch.zeros(1, 300, 10), TARGETS).item()
            == pytest.approx((TARGETS == 0).double().mean().item(), abs=0.15))


@pytest.mark.parametrize("ks", [(), (0,), (11,), (1.5,)])
def test_impossible_k(ks):
    with pytest.raises(InputError, match="from 1 to 10"):
        topk_correct(LOGITS, TARGETS, ks)


def test_anytime_is_the_mean_of_probabilities():
    p = anytime_probs(LOGITS)
    for m in range(4):
        torch.testing.assert_close(p[m], torch.stack([z.softmax(-1) for z in LOGITS[:m + 1]]).mean(0))
    torch.testing.assert_close(p.sum(-1), torch.ones(4, 300))
    torch.testing.assert_close(anytime_probs(LOGITS, "latest"), LOGITS.softmax(-1))
    with pytest.raises(InputError, match="'latest'"):
        anytime_probs(LOGITS, "last")


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_is_torchmetrics(bins):
    want = [multiclass_calibration_error(z.softmax(-1), TARGETS, 10, n_bins=bins).item() for z in LOGITS]
    assert (calibration_error(LOGITS.softmax(-1).amax(-1), LOGITS.argmax(-1) == TARGETS, bins).tolist()
            == pytest.approx(want, abs=1e-5))


def test_learning_gaps_of_methods():
    from multiexit_nb.core import MultiExitOutput
    out, acc = MultiExitOutput(LOGITS), exit_accuracy(LOGITS, TARGETS)
    teachers = {n: create_method(n, num_exits=4, num_classes=10).teacher_logits(out)
                for n in ("branchynet", "byot", "dbt", "dks", "eed")}
    assert teacher_accuracy(teachers["branchynet"], TARGETS).isnan().all()
    for n in ("byot", "dbt"):
        gaps = learning_gaps(LOGITS, teachers[n], TARGETS)
        assert gaps[3].isnan()
        torch.testing.assert_close(gaps[:3], acc[3] - acc[:3])
    torch.testing.assert_close(teacher_accuracy(teachers["dks"], TARGETS),
                               torch.stack([(acc.sum() - a) / 3 for a in acc]))
    torch.testing.assert_close(teacher_accuracy(teachers["eed"], TARGETS),
                               exit_accuracy(LOGITS.mean(0, keepdim=True), TARGETS).expand(4))
