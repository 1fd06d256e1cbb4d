import math

import pytest
import torch
from torch import nn

from pipeline.config import Config, Training
from pipeline.muon import AdamWWithMuon, Together, batches, orthogonalized
from pipeline.optim import build_optimizer, matrices, set_rates
from pipeline.presets import preset_named
from tests.models.builders import KINDS, build

SHAPES = [(6, 4), (4, 6), (6, 4), (8, 8)]


def pairs(count: int = 2) -> list[list[nn.Parameter]]:
    """Lists of the same parameters."""
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in SHAPES]
    return [[nn.Parameter(value.clone()) for value in values] for _ in range(count)]


def give_gradients(*lists: list[nn.Parameter]) -> None:
    for same in zip(*lists, strict=True):
        gradient = torch.randn(same[0].shape)
        for one in same:
            one.grad = gradient.clone().view_as(one)


@pytest.mark.parametrize(("rows", "columns"), [(5, 40), (40, 5), (16, 16)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_sizes(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, rows, columns, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ orthogonalized(matrices) @ right.mT
    kept = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(kept)).abs().max() < 1e-9
    large = sizes > 0.01 * sizes.amax(1, keepdim=True)
    assert large.sum() > 0.9 * large.numel()
    assert kept[large].min() > 0.6
    assert kept.max() < 1.3


def test_bfloat16_as_on_gpus_gives_nearly_the_same() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 24, 60)
    exact, rounded = orthogonalized(matrices.double()), orthogonalized(matrices.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_matrices_of_zeros_stay_finite() -> None:
    assert orthogonalized(torch.zeros(2, 3, 4)).abs().max() == 0.0


def test_matrices_padded_to_go_together_move_as_alone() -> None:
    shapes = [(8, 8)] * 20 + [(8, 7), (7, 8), (7, 2, 2, 2)]
    assert [(one.rows, one.columns, one.count) for one in batches(tuple(shapes))] == [(8, 8, 23)]
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [nn.Parameter(one.detach().clone()) for one in together]
    optimizers = [AdamWWithMuon(some, [], lr=0.1, weight_decay=0.1) for some in (together, *([one] for one in alone))]
    for _ in range(3):
        give_gradients(together, alone)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_matrices_of_all_shapes_go_in_few_batches_and_few_zeros() -> None:
    shapes = [tuple(one.shape) for one in matrices(preset_named("cifar10").config.build_model())]
    found = batches(tuple(shapes))
    assert len(set(shapes)) == 19
    assert len(found) == 5
    assert sorted(place for one in found for same in one.shapes.values() for place in same) == list(range(len(shapes)))
    for one in found:
        for shape, places in one.shapes.items():
            assert all(shapes[place] == shape for place in places)
            assert min(shape[0], math.prod(shape[1:])) <= one.rows
            assert max(shape[0], math.prod(shape[1:])) <= one.columns
    apart = 0
    for shape in shapes:
        rows, columns = sorted((shape[0], math.prod(shape[1:])))
        apart += Together(rows, columns, {shape: [0]}).operations
    assert apart < sum(one.operations for one in found) < 1.05 * apart


def test_matrices_go_where_torchs_own_muon_takes_them() -> None:
    """Theirs is in bfloat16: each step's change is the same to a few per cent of itself; wide ones go further there."""
    ours, theirs = pairs()
    muon = AdamWWithMuon(ours, [], lr=0.02, weight_decay=0.1)
    shares = [math.sqrt(min(1.0, one.shape[0] / one.shape[1])) for one in theirs]
    groups = [
        {"params": [one], "lr": 0.02 * share, "weight_decay": 0.1 / share}
        for one, share in zip(theirs, shares, strict=True)
    ]
    reference = torch.optim.Muon(groups, adjust_lr_fn="original")
    for _ in range(5):
        before = [one.detach().clone() for one in theirs]
        with torch.no_grad():
            for own, other in zip(ours, theirs, strict=True):
                own.copy_(other)
        give_gradients(ours, theirs)
        muon.step()
        reference.step()
        for own, other, old in zip(ours, theirs, before, strict=True):
            assert (own - other).norm() < 0.05 * (other - old).norm()


@pytest.mark.parametrize("shape", [(6, 4), (8, 8), (48, 24, 3, 5), (384, 192, 1, 2)])
def test_outputs_change_by_the_same_share_in_layers_of_any_width(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape))
    before = kernel.detach().clone()
    kernel.grad = torch.randn(shape)
    AdamWWithMuon([kernel], [], lr=0.05).step()
    largest = torch.linalg.matrix_norm((kernel.detach() - before).flatten(1), 2)
    assert 0.6 < largest / (0.05 * math.sqrt(shape[0] / math.prod(shape[1:]))) < 1.3


def test_kernels_count_as_matrices_in_either_order_of_memory() -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 4, 3, 5)
    kernels = [
        nn.Parameter(values.clone()),
        nn.Parameter(values.clone(memory_format=torch.channels_last)),
    ]
    matrix = nn.Parameter(values.flatten(1).clone())
    optimizers = [AdamWWithMuon([one], [], lr=0.1) for one in (*kernels, matrix)]
    for _ in range(3):
        gradient = torch.randn(values.shape)
        for kernel in kernels:
            kernel.grad = gradient.clone(memory_format=torch.preserve_format)
        matrix.grad = gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert kernels[1].is_contiguous(memory_format=torch.channels_last)
    assert (matrix.view_as(values) - values).abs().mean() > 0.005
    for kernel in kernels:
        torch.testing.assert_close(kernel.detach(), matrix.view_as(values).detach(), atol=2e-6, rtol=0)


def test_all_others_are_adamws_and_do_not_decay() -> None:
    ours, theirs = pairs()
    options = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1}
    undecayed = options | {"weight_decay": 0.0}
    mixed, adamw = AdamWWithMuon(ours[:1], ours[1:], **options), torch.optim.AdamW(theirs[1:], **undecayed)
    for _ in range(3):
        give_gradients(ours, theirs)
        mixed.step()
        adamw.step()
    assert all(torch.equal(own, other) for own, other in zip(ours[1:], theirs[1:], strict=True))
    assert not torch.equal(ours[0], theirs[0])


def test_without_a_rate_all_are_adamws(digits: Config) -> None:
    model = digits.build_model()
    optimizer = build_optimizer(model, digits.train)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [len(list(model.parameters())), 0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_but_the_conditions_is_muons(kind: str) -> None:
    model = build(kind)
    names = {name for name, parameter in model.named_parameters() if parameter in matrices(model)}
    all_names = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    left = {"_term.", "conditioning."}
    assert names == {name for name in all_names if not any(part in name for part in left)}
    assert len(names) >= 8


def test_both_groups_follow_the_schedule_with_their_own_peaks() -> None:
    model = build("gated")
    training = Training(steps=100, warmup_steps=10, learning_rate=1e-3, muon_learning_rate=0.02)
    optimizer = build_optimizer(model, training)
    set_rates(optimizer, training, 5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 0.01])
    set_rates(optimizer, training, 100)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-5, 4e-4])
