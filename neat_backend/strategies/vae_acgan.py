"""The VAE-ACGAN of BGADL: an encoder, a generator that is also the decoder, and a discriminator that names the class.

Tran et al., ICML 2019: x' = g(e(x), y) is a new sample of the class y of x. Three losses: the variational
auto-encoder's (reconstruction and Kullback-Leibler divergence), the adversarial one, and the auxiliary classifier's
(AC-GAN, Odena et al. 2017), on real, decoded and freely generated samples alike. As in AC-GAN one trunk serves both
heads of the discriminator; the authors' code lets the task's own classifier name the class.

Sizes are the authors' for MNIST, cut by about two to four for a CPU: filters 32 and 64 (theirs 64 and 128), hidden
256 (1024), latent 64 (100). Two convolutions of stride 2 each way, so any side does. Features have dense layers.
Adam in place of their Adadelta; group and layer norm, so that a batch of few or of one class is no special case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neat_backend.models.devices import resolve_device

FILTERS = 32  # of the first convolution; the second has twice as many
HIDDEN = 256
LATENT = 64
EPOCHS = 50
LEAST_STEPS, MOST_STEPS = 300, 1000
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
DISCRIMINATOR_RATE = 2e-4  # slower: one that is sure too early teaches the generator nothing but to fool it
BETAS = (0.5, 0.999)
RECONSTRUCTION = 20.0  # weight of the reconstruction of one value in the generator's loss
SLOPE = 0.2
UNIT = 1e-3  # rows whose lengths are this near 1 are unit rows

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """Between what the classifier sees and what the networks see; images pass as they are."""

    images: bool
    mean: Tensor  # [d] of features, else [1]
    deviation: float
    unit: bool  # made features are scaled to length 1, as the real ones are

    @classmethod
    def of(cls, inputs: Tensor) -> Scale:
        if inputs.ndim == 4:
            return cls(True, torch.zeros(1), 1.0, False)
        mean = inputs.mean(dim=0)
        deviation = float((inputs - mean).square().mean().sqrt())
        unit = bool(((inputs.norm(dim=1) - 1).abs() < UNIT).all())
        return cls(False, mean, deviation or 1.0, unit)

    def inward(self, inputs: Tensor) -> Tensor:
        return inputs if self.images else (inputs - self.mean) / self.deviation

    def outward(self, made: Tensor) -> Tensor:
        if self.images:
            return made
        features = made * self.deviation + self.mean
        return F.normalize(features, dim=1) if self.unit else features


class Networks(nn.Module):
    """Encoder, generator and discriminator for inputs of one shape: [3, s, s] or [d]."""

    def __init__(self, shape: torch.Size, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.images = len(shape) == 3
        if self.images:
            quarter = math.ceil(shape[1] / 4)
            self.encoder = nn.Sequential(*_downwards(shape[0], quarter, nn.ReLU()), nn.Linear(HIDDEN, 2 * LATENT))
            self.generator = nn.Sequential(*_upwards(LATENT + n_classes, shape[0], quarter))
            self.trunk = nn.Sequential(*_downwards(shape[0], quarter, nn.LeakyReLU(SLOPE)))
        else:
            self.encoder = nn.Sequential(*_dense(shape[0], nn.ReLU()), nn.Linear(HIDDEN, 2 * LATENT))
            self.generator = nn.Sequential(*_dense(LATENT + n_classes, nn.ReLU()), nn.Linear(HIDDEN, shape[0]))
            self.trunk = nn.Sequential(*_dense(shape[0], nn.LeakyReLU(SLOPE)))
        self.real_head = nn.Linear(HIDDEN, 1)
        self.class_head = nn.Linear(HIDDEN, n_classes)
        self.side = shape[-1]

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent vector, each [m, LATENT]."""
        mean, log_variance = self.encoder(self._padded(inputs)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, latent: Tensor, targets: Tensor) -> Tensor:
        """Logits of pixels, or features, of samples of the given classes: [m, …]."""
        made: Tensor = self.generator(torch.cat([latent, F.one_hot(targets, self.n_classes).float()], dim=1))
        return made[..., : self.side, : self.side] if self.images else made

    def values(self, made: Tensor) -> Tensor:
        """What `decode` has made, as inputs."""
        return made.sigmoid() if self.images else made

    def judge(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of "real" [m] and of the classes [m, C]."""
        hidden = self.trunk(self._padded(inputs))
        return self.real_head(hidden)[:, 0], self.class_head(hidden)

    def _padded(self, inputs: Tensor) -> Tensor:
        missing = -self.side % 4
        return F.pad(inputs, (0, missing, 0, missing), mode="replicate") if self.images and missing else inputs


class VaeAcgan:
    """Trained networks; made by `train_vae_acgan`."""

    def __init__(self, networks: Networks, scale: Scale, device: torch.device) -> None:
        self._networks = networks.eval()
        self._scale = scale
        self._device = device

    @torch.no_grad()
    def resample(self, inputs: Floats, targets: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """A new sample from each given one and its class, by a draw from its latent distribution: float32 [m, …]."""
        made = [np.zeros((0, *inputs.shape[1:]), dtype=np.float32)]
        for start in range(0, len(inputs), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            mean, log_variance = self._networks.encode(
                self._scale.inward(torch.from_numpy(inputs[rows])).to(self._device)
            )
            noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)).to(self._device)
            latent = mean + (log_variance / 2).exp() * noise
            labels = torch.from_numpy(targets[rows]).to(self._device)
            values = self._networks.values(self._networks.decode(latent, labels)).cpu()
            made.append(self._scale.outward(values).numpy())
        return np.concatenate(made)


def train_vae_acgan(inputs: Floats, targets: NDArray[np.int64], n_classes: int, rng: np.random.Generator) -> VaeAcgan:
    """Train on samples [m, …] (images [m, 3, s, s] in [0, 1], or features [m, d]) with classes [m]; m ≥ 1.

    50 passes, but at least 300 and at most 1,000 steps. On a GPU where there is one. All that is random comes from
    `rng`; torch's own state is left as it was.
    """
    device = resolve_device()
    everything = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
    scale = Scale.of(everything)
    data = scale.inward(everything).to(device)
    labels = torch.from_numpy(np.asarray(targets, dtype=np.int64)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        networks = Networks(data.shape[1:], n_classes).to(device)
    training = _Training(networks)
    passes = math.ceil(len(data) / BATCH_SIZE)
    steps = min(max(EPOCHS * passes, LEAST_STEPS), MOST_STEPS)
    order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < min(BATCH_SIZE, len(data)):
            order = np.concatenate([order, rng.permutation(len(data))])
        batch, order = torch.from_numpy(order[:BATCH_SIZE]).to(device), order[BATCH_SIZE:]
        noise = torch.from_numpy(rng.standard_normal((3, len(batch), LATENT), dtype=np.float32)).to(device)
        training.step(data[batch], labels[batch], noise)
    return VaeAcgan(networks, scale, device)


class _Training:
    """One step updates the encoder, then the generator, then the discriminator, as the authors' code does."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.encoder = _adam(LEARNING_RATE, networks.encoder)
        self.generator = _adam(LEARNING_RATE, networks.generator)
        judges = networks.trunk, networks.real_head, networks.class_head
        self.discriminator = _adam(DISCRIMINATOR_RATE, *judges)

    def step(self, inputs: Tensor, labels: Tensor, noise: Tensor) -> None:
        """inputs [b, …], labels [b], noise [3, b, LATENT]: two for the encoder's draws, one for free samples."""
        net = self.networks
        mean, log_variance = net.encode(inputs)
        decoded = net.decode(mean + (log_variance / 2).exp() * noise[0], labels)
        _update(self.encoder, reconstruction(decoded, inputs) + divergence(mean, log_variance) / inputs[0].numel())

        with torch.no_grad():
            mean, log_variance = net.encode(inputs)
        latent = torch.cat([mean + (log_variance / 2).exp() * noise[1], noise[2]])  # [2b, LATENT]
        both = net.decode(latent, labels.repeat(2))  # decoded, then freely made
        real, classes = net.judge(net.values(both))
        judged = _as_real(real, torch.ones_like(real)) + F.cross_entropy(classes, labels.repeat(2))
        _update(self.generator, judged + RECONSTRUCTION * reconstruction(both[: len(inputs)], inputs))

        real, classes = net.judge(torch.cat([inputs, net.values(both).detach()]))  # [3b], [3b, C]
        is_real = torch.zeros_like(real)
        is_real[: len(inputs)] = 1
        _update(self.discriminator, _as_real(real, is_real) + F.cross_entropy(classes, labels.repeat(3)))


def reconstruction(decoded: Tensor, inputs: Tensor) -> Tensor:
    """Mean over all values: cross-entropy of pixel logits [m, 3, s, s], half the squared error of features [m, d]."""
    if inputs.ndim == 4:
        return F.binary_cross_entropy_with_logits(decoded, inputs)
    return (decoded - inputs).square().mean() / 2


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) of latent vectors [m, l], summed over l, mean over m."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean() / 2


def _as_real(logits: Tensor, is_real: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, is_real)


def _adam(rate: float, *parts: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for part in parts for p in part.parameters()], rate, BETAS)


def _update(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)  # the other networks stay as they are
    optimizer.step()


def _downwards(channels: int, quarter: int, activation: nn.Module) -> list[nn.Module]:
    """Images to [m, HIDDEN]."""
    return [
        nn.Conv2d(channels, FILTERS, 4, 2, 1),
        activation,
        nn.Conv2d(FILTERS, 2 * FILTERS, 4, 2, 1),
        nn.GroupNorm(8, 2 * FILTERS),
        activation,
        nn.Flatten(),
        nn.Linear(2 * FILTERS * quarter * quarter, HIDDEN),
        activation,
    ]


def _upwards(width: int, channels: int, quarter: int) -> list[nn.Module]:
    """[m, width] to the logits of pixels."""
    return [
        nn.Linear(width, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 2 * FILTERS * quarter * quarter),
        nn.ReLU(),
        nn.Unflatten(1, (2 * FILTERS, quarter, quarter)),
        nn.ConvTranspose2d(2 * FILTERS, FILTERS, 4, 2, 1),
        nn.GroupNorm(8, FILTERS),
        nn.ReLU(),
        nn.ConvTranspose2d(FILTERS, channels, 4, 2, 1),
    ]


def _dense(width: int, activation: nn.Module) -> list[nn.Module]:
    """[m, width] to [m, HIDDEN]."""
    return [nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), activation, nn.Linear(HIDDEN, HIDDEN), activation]
