import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.autoencoder import MSEAutoEncoder, PixelCNNAutoEncoder
from models.encoder import ConvDecoder, ConvEncoder
from models.likelihood import nats_of_images
from models.portrait_embedding import PortraitEmbedding
from models.trainable import count_parameters
from tests.models.builders import VECTOR_SIZE, build, randomize


def encoder(channels: int, image_size: int, code_size: int = VECTOR_SIZE) -> ConvEncoder:
    made = ConvEncoder(
        channels=channels, levels=4, image_size=image_size, num_filters=4, code_size=code_size, activation="tanh"
    )
    return made.double()


def auto_encoder(channels: int, image_size: int = 8, train_encoder: bool = True) -> PixelCNNAutoEncoder:
    kind = "gated-vector"
    made: ConvEncoder | PortraitEmbedding = encoder(channels, image_size)
    if not train_encoder:
        made = PortraitEmbedding(encoder=encoder(channels, image_size))
    decoder = build(kind, channels=channels, image_size=image_size)
    model = PixelCNNAutoEncoder(encoder=made, decoder=decoder, train_encoder=train_encoder)
    randomize(model, 3)
    return model


def images_of(channels: int, size: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 4, (count, channels, size, size), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_decoder_is_causal_given_the_vector_and_the_vector_reaches_every_subpixel(channels: int) -> None:
    model = auto_encoder(channels)
    images = images_of(channels, 8, 1)
    logits, vectors = model(images), model.encode(images)
    torch.testing.assert_close(logits, model.decoder(images, vectors))
    other = (model.decoder(images, vectors + 1.0) - logits).abs().amax(-1)
    assert (other > 0).double().mean() > 0.9  # the head's ReLUs may hide it from a few, see test_exactness


@pytest.mark.parametrize("channels", [1, 3])
def test_end_to_end_every_parameter_of_encoder_and_decoder_gets_a_gradient(channels: int) -> None:
    model, images = auto_encoder(channels), images_of(channels, 8)
    model.losses(model(images), images, torch.zeros(4, dtype=torch.int64)).sum().backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_portraits_leave_the_embedding_as_it_is() -> None:
    model, images = auto_encoder(3, train_encoder=False), images_of(3, 8)
    before = copy.deepcopy(model.encoder.state_dict())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
    losses = model.losses(model(images), images, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(losses, nats_of_images(model.decoder(images, model.encode(images)), images))
    losses.sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], now) for name, now in model.encoder.state_dict().items())
    assert all(one.grad is not None for one in model.decoder.parameters())
    assert count_parameters(model) == count_parameters(model.decoder)


def test_an_encoder_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the encoder gives 5 numbers, the decoder takes 3"):
        PixelCNNAutoEncoder(encoder=encoder(1, 8, 5), decoder=build("gated-vector", channels=1), train_encoder=True)
    with pytest.raises(ValueError, match="image_size must be above 4 for an encoder, got 4"):
        encoder(1, 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 32])
def test_parameters_and_flops_of_encoder_and_decoder(channels: int, size: int) -> None:
    forward = encoder(channels, size).float()
    back = ConvDecoder(channels=channels, image_size=size, num_filters=4, code_size=VECTOR_SIZE)
    c, f, d, k = channels, 4, VECTOR_SIZE, {8: 1, 9: 2, 32: 3}[size]
    side = {8: 4, 9: 3, 32: 4}[size]
    blocks = f * (9 * c + 1) + sum(2**j * f * (9 * 2 ** (j - 1) * f + 1) for j in range(1, k))
    assert count_parameters(forward) == blocks + d * (2 ** (k - 1) * f * side**2 + 1)
    doubled = sum(2 ** (j - 1) * f * (16 * 2**j * f) + 2 ** (j - 1) * f for j in range(1, k + 1))
    assert count_parameters(back) == 2**k * f * 16 * (d + 1) + doubled + c * (9 * f + 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(images_of(channels, size, 1))
    assert counter.get_total_flops() == forward.flops(size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        intensities = back(torch.zeros(1, d))
    assert counter.get_total_flops() == back.flops()
    assert intensities.shape == (1, channels, size, size)


def test_squared_error_is_that_of_intensities_and_falls() -> None:
    torch.manual_seed(0)
    encoder_, decoder = encoder(1, 8).float(), ConvDecoder(channels=1, image_size=8, num_filters=4, code_size=3)
    model, images = MSEAutoEncoder(encoder=encoder_, decoder=decoder), images_of(1, 8, 2)
    labels = torch.zeros(2, dtype=torch.int64)
    intensities = model(images)
    by_hand = ((intensities - images / 3.0) ** 2).sum((1, 2, 3)).double()
    torch.testing.assert_close(model.losses(intensities, images, labels), by_hand)
    assert torch.equal(model.reconstruct(images), (intensities * 3).round().to(torch.uint8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.losses(model(images), images, labels).sum().backward()
        optimizer.step()
    assert model.losses(model(images), images, labels).sum() < by_hand.sum() / 5
