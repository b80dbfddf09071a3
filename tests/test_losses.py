"The distances against PyTorch, closed forms and plain loops."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from multiexit_nb.losses import (
    cross_entropy,
    full_precision,
    kd,
    kl,
    labelled_mean,
    masked_mse,
    mse,
    pairwise_kl,
)


def rand(*shape, seed=0, dtype=torch.float64):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Largest(TorchDispatchMode):
    "Notes the largest tensor any operation makes."
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@given(st.integers(1, 5), st.integers(1, 6), st.integers(2, 7), st.floats(0.5, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pairwise_kl_is_the_loop(M, B, K, T, seed):
    t, s = rand(M + 1, B, K, seed=seed), rand(M, B, K, seed=seed + 1)
    got = pairwise_kl(t, s, T)
    for j in range(M + 1):
        for i in range(M):
            p, q = (t[j] / T).softmax(-1), (s[i] / T).softmax(-1)
            torch.testing.assert_close(got[j, i], T**2 * (p * (p / q).log()).sum(-1), rtol=1e-9, atol=1e-9)


def test_kl_is_batchmean_times_t_squared():
    t, s = rand(8, 10), rand(8, 10, seed=1)
    torch.testing.assert_close(kl(t, s, 4.).mean(),
                               16 * F.kl_div((s / 4).log_softmax(-1), (t / 4).softmax(-1),
                                             reduction="batchmean"))


def test_kl_is_zero_and_flat_where_both_agree():
    z = rand(3, 4, 5).requires_grad_()
    d = pairwise_kl(z.detach(), z, 3.).diagonal().sum()
    assert abs(d.item()) < 1e-12 and torch.autograd.grad(d, z)[0].abs().max() < 1e-12


def test_who_is_detached():
    t, s = rand(4, 5).requires_grad_(), rand(4, 5, seed=1).requires_grad_()
    kd(t, s, 3.).sum().backward()
    assert t.grad is None and s.grad.abs().max() > 0
    both = torch.autograd.grad(kl(t, s, 3.).sum(), [t, s])
    assert all(g.abs().max() > 0 for g in both)
    torch.testing.assert_close(both[1], s.grad)
    torch.autograd.gradcheck(lambda a, b: pairwise_kl(a[None], b[None], 2.), (t, s))


def test_kl_gradient_keeps_its_size_with_temperature():
    """What T² is for (Hinton et al. 2015): as T grows the gradient tends to the difference of centred
    logits over K."""
    t, s = rand(1, 10) / 10, (rand(1, 10, seed=1) / 10).requires_grad_()
    g = torch.autograd.grad(kd(t, s, 1000.).sum(), s)[0]
    torch.testing.assert_close(g, ((s - s.mean()) - (t - t.mean())).detach() / 10, rtol=1e-2, atol=1e-5)


def test_pairwise_never_forms_all_pairs_times_classes():
    M, B, K = 11, 8, 200
    z = rand(M, B, K, dtype=torch.float32).requires_grad_()
    with Largest() as seen:
        torch.autograd.grad(pairwise_kl(z, z, 3.).sum(), z)
    assert M * B * K <= seen.numel < M * M * B * K


@pytest.mark.parametrize("smoothing", [0., 0.1])
def test_cross_entropy_of_labelled_samples(smoothing):
    z, y = rand(3, 6, 5), torch.tensor([0, 4, -1, 2, -100, 1])
    keep = y >= 0
    want = torch.stack([F.cross_entropy(m[keep], y[keep], label_smoothing=smoothing) for m in z])
    torch.testing.assert_close(cross_entropy(z, y, smoothing), want)


def test_no_label_gives_zero_and_no_gradient():
    z = rand(2, 3, 4).requires_grad_()
    ce = cross_entropy(z, torch.full((3,), -1))
    assert ce.tolist() == [0, 0] and not torch.autograd.grad(ce.sum(), z)[0].any()


def test_labelled_mean_ignores_what_is_unlabelled():
    v = torch.tensor([[1., math.inf, 3.], [2., math.nan, 4.]])
    assert labelled_mean(v, torch.tensor([0, -1, 5])).tolist() == [2., 3.]


def test_mse_and_its_mask():
    t, s = rand(3, 4, 5), rand(3, 4, 5, seed=1)
    torch.testing.assert_close(mse(t, s).mean(-1), torch.stack([F.mse_loss(a, b) for a, b in zip(t, s)]))
    want = sum((t[..., k] - s[..., k])**2 * ((t[..., k] > 0) | (s[..., k] > 0)) for k in range(5)) / 5
    torch.testing.assert_close(masked_mse(t, s), want)
    assert (masked_mse(t, s) < mse(t, s)).any()


@pytest.mark.parametrize("f", [lambda a, b: kl(a, b, 3.), lambda a, b: kd(a, b, 3.),
                               lambda a, b: pairwise_kl(a, b, 3.), mse, masked_mse,
                               lambda a, b: cross_entropy(a, torch.arange(4))])
def test_float32_under_autocast(f):
    a, b = rand(2, 4, 50, dtype=torch.bfloat16), rand(2, 4, 50, seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = f(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, f(a.double(), b.double()).float(), rtol=1e-4, atol=1e-4)


def test_full_precision_lifts_keywords_and_leaves_the_rest():
    seen = full_precision(lambda a, b=None, c=None: (a.dtype, b.dtype, c))(torch.ones(1).double(),
        b=torch.ones(1).half(), c="x")
    assert seen == (torch.float64, torch.float32, "x")


def test_large_logits_stay_finite():
    z = torch.tensor([[[1e4, -1e4, 0.]], [[-1e4, 1e4, 0.]]], requires_grad=True)
    d = pairwise_kl(z, z, 1.).sum() + kl(z[0], z[1]).sum()
    assert d.isfinite() and torch.autograd.grad(d, z)[0].isfinite().all()
