"""Forty kinds of models under engine scan: after an epoch, the weights of the loop by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gdtrain import MiniBatchLoader, Trainer

pytest.importorskip("jax")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Around(nn.Module):
    """A layer or function of h [B, 6, 8], or of h in another shape, between two linear layers."""

    def __init__(self, layer, *shape, width):
        super().__init__()
        self.first, self.layer, self.shape = nn.Linear(8, 8), layer, shape
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        h = self.first(x)
        h = self.layer(h.reshape(-1, *self.shape) if self.shape else h)
        h = h[0] if isinstance(h, tuple) else h  # recurrent layers and sorts give more
        return self.last(h.flatten(1))


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Masked(nn.Module):
    """Layers of a Transformer, with masks of what comes later and of padding."""

    def __init__(self):
        super().__init__()
        self.encoder, self.later = encoder(), nn.Transformer.generate_square_subsequent_mask(6)

    def forward(self, x):
        later = self.later.to(x.dtype)
        padding = torch.zeros(len(x), 6, dtype=x.dtype)
        padding[:, 4:] = -math.inf
        return self.encoder(x, later, src_key_padding_mask=padding)


class MaskedAttention(SelfAttention):
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)

    def forward(self, x):
        return self.attention(x, x, x, attn_mask=self.later)[0]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x, x.flip(1))


class Bag(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(11, 5, **options), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.bag((4 * x[:, 0].abs()).long().clamp(max=10)))


def by_heads(x):
    """Attention of two heads, spelled out."""
    h = x.view(len(x), 6, 2, 4).permute(0, 2, 1, 3)
    weights = torch.einsum("bhid,bhjd->bhij", h, h) / math.sqrt(4)
    return (weights.softmax(-1) @ h).transpose(1, 2).reshape(x.shape)


def causal(x):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def flat(layer):
    return nn.Sequential(nn.Flatten(), layer)


PICTURE = (3, 4, 4)
MODELS = {
    "LayerNorm": lambda: Around(nn.LayerNorm([6, 8]), width=48),
    "RMSNorm": lambda: Around(nn.RMSNorm(8), width=48),
    "GroupNorm": lambda: Around(nn.GroupNorm(3, 6), width=48),
    "InstanceNorm": lambda: Around(nn.InstanceNorm1d(6, track_running_stats=True), width=48),
    "LocalResponseNorm": lambda: Around(nn.LocalResponseNorm(2), width=48),
    "BatchNorm of all batches": lambda: Around(nn.BatchNorm1d(6, momentum=None), width=48),
    "BatchNorm2d": lambda: Around(nn.BatchNorm2d(3), *PICTURE, width=48),
    "scaled_dot_product_attention": lambda: Around(causal, width=48),
    "attention by hand": lambda: Around(by_heads, width=48),
    "MultiheadAttention": lambda: Around(SelfAttention(add_bias_kv=True), width=48),
    "attention with a mask": lambda: Around(MaskedAttention(), width=48),
    "TransformerEncoder": lambda: Around(encoder(), width=48),
    "TransformerEncoder, norm first": lambda: Around(
        encoder(norm_first=True, activation="gelu"), width=48
    ),
    "TransformerEncoder, masked": lambda: Around(Masked(), width=48),
    "TransformerDecoder": lambda: Around(Decoder(), width=48),
    "LSTM": lambda: Around(nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True), width=60),
    "LSTM, projected": lambda: Around(nn.LSTM(8, 5, proj_size=3, batch_first=True), width=18),
    "GRU": lambda: Around(nn.GRU(8, 5, batch_first=True), width=30),
    "RNN": lambda: Around(nn.RNN(8, 5, nonlinearity="relu", batch_first=True), width=30),
    "AvgPool1d": lambda: Around(nn.AvgPool1d(3, 2, 1), width=24),
    "AvgPool2d": lambda: Around(nn.AvgPool2d(3, 2, 1, ceil_mode=True), *PICTURE, width=27),
    "MaxPool2d": lambda: Around(nn.MaxPool2d(3, 2, 1, ceil_mode=True), *PICTURE, width=27),
    "MaxPool3d": lambda: Around(nn.MaxPool3d(2), 3, 2, 2, 4, width=6),
    "AdaptiveAvgPool": lambda: Around(nn.AdaptiveAvgPool2d((3, 2)), *PICTURE, width=18),
    "AdaptiveMaxPool": lambda: Around(nn.AdaptiveMaxPool2d((3, 2)), *PICTURE, width=18),
    "Upsample": lambda: Around(nn.Upsample(scale_factor=2), *PICTURE, width=192),
    "Upsample, bilinear": lambda: Around(
        nn.Upsample(size=(7, 3), mode="bilinear"), *PICTURE, width=63
    ),
    "Upsample, bicubic": lambda: Around(
        nn.Upsample(size=(3, 5), mode="bicubic", align_corners=True), *PICTURE, width=45
    ),
    "EmbeddingBag": lambda: Bag(padding_idx=1),
    "EmbeddingBag, max": lambda: Bag(mode="max"),
    "ConvTranspose1d": lambda: Around(nn.ConvTranspose1d(6, 4, 3, 2, 1, 1), width=64),
    "ConvTranspose2d": lambda: Around(
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2, dilation=2), 4, 4, 3, width=594
    ),
    "Conv3d": lambda: Around(nn.Conv3d(3, 2, 2), 3, 2, 2, 4, width=6),
    "circular padding": lambda: Around(
        nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), width=32
    ),
    "PixelShuffle": lambda: Around(nn.PixelShuffle(2), 4, 4, 3, width=48),
    "sort": lambda: Around(lambda h: h.sort(-1, descending=True), width=48),
    "topk": lambda: Around(lambda h: h.topk(3, 1), width=24),
    "FFT": lambda: Around(lambda h: torch.fft.fft(h).abs(), width=48),
    "irfft": lambda: Around(lambda h: torch.fft.irfft(torch.fft.rfft(h) ** 2, n=7), width=42),
    "cumulative": lambda: Around(lambda h: h.cumsum(1) + h.cummax(2)[0] + h.cumprod(1), width=48),
    "std": lambda: Around(lambda h: (h - h.mean(1, True)) / h.std(1, keepdim=True), width=48),
    "spectral_norm": lambda: flat(parametrizations.spectral_norm(nn.Linear(48, 4))),
    "weight_norm": lambda: flat(parametrizations.weight_norm(nn.Linear(48, 4))),
    "orthogonal": lambda: flat(parametrizations.orthogonal(nn.Linear(48, 4))),
    "Hardsigmoid": lambda: Around(nn.Hardsigmoid(), width=48),
    "cdist": lambda: Around(lambda h: torch.cdist(h, h.flip(1) + 1), width=36),
    "solve": lambda: Around(
        lambda h: torch.linalg.solve(h @ h.mT + torch.eye(6, dtype=h.dtype), h), width=48
    ),
}


def gaussian(output, target):
    mean, spread = output.chunk(2, dim=1)
    return F.gaussian_nll_loss(mean, target[:, :2], F.softplus(spread))


def data(dtype):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(17, 6, 8, generator=draw, dtype=torch.float64)
    return x.to(dtype), torch.randn(17, 4, generator=draw, dtype=torch.float64).to(dtype)


def make(name, dtype):
    torch.manual_seed(1)
    with torch.random.fork_rng():
        model = MODELS[name]()
    model = model.to(dtype)
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


# A few are quickly compiled; the suite of every day has those.
QUICK = (
    "attention with a mask",
    "attention by hand",
    "spectral_norm",
    "Hardsigmoid",
)
KINDS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MODELS]


@pytest.mark.few(1)
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # has no oneDNN, says PyTorch
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_an_epoch_ends_with_the_weights_of_the_loop_by_hand(name, dtype) -> None:
    x, y = data(dtype)
    loss = gaussian if name in QUICK else F.mse_loss
    hand, optimizer = make(name, dtype)
    for inputs, targets in zip(x.split(5), y.split(5), strict=True):  # the last batch has two
        optimizer.zero_grad()
        loss(hand(inputs), targets).backward()
        optimizer.step()
    model, optimizer = make(name, dtype)
    loader = MiniBatchLoader((x, y), 5, order="sequential")
    Trainer(model, loss, optimizer, loader, device="cpu", engine="scan").fit(1)
    expected = hand.state_dict()
    for key, got in model.state_dict().items():
        bound = TOLERANCE[dtype] * (expected[key].double().norm() + 1e-3)
        assert (got.double() - expected[key].double()).norm() <= bound, key
