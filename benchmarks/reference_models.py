"""The same architectures written the straightforward way: full n x n kernels times a mask, LSTMs step by step.

Each takes its weights from a model of ours, so that both give the same outputs; benchmarks.train_step compares them.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.autoregressive import AutoregressiveModel
from models.causal_conv import CausalConv, GroupedPointwise, HorizontalConv, VerticalConv
from models.gated_pixelcnn import GatedLayer, GatedPixelCNN
from models.pixel_rnn import PixelRNN, RecurrentBlock
from models.pixelcnn import PixelCNN, ResidualBlock
from models.row_lstm import RowLSTM
from models.softmax_head import SoftmaxHead

OurConv = CausalConv | GroupedPointwise | HorizontalConv | VerticalConv


class MaskedConv(nn.Conv2d):
    """A convolution over the whole kernel whose weight is multiplied by a mask at every step."""

    def __init__(self, ours: OurConv) -> None:
        kernel, mask, bias = _full_kernel(ours)
        height, width = kernel.shape[2:]
        super().__init__(kernel.shape[1], kernel.shape[0], (height, width), padding=(height // 2, width // 2))
        self.register_buffer("mask", mask)
        with torch.no_grad():
            self.weight.copy_(kernel)
            assert self.bias is not None
            self.bias.copy_(bias)

    def forward(self, input: Tensor) -> Tensor:
        """The masked convolution."""
        return functional.conv2d(input, self.weight * self.mask, self.bias, padding=self.padding)


def _full_kernel(ours: OurConv) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel, mask and bias of the same convolution with all rows and columns."""
    if isinstance(ours, VerticalConv):
        kernel, bias, mask = ours.conv.weight, ours.conv.bias, torch.ones_like(ours.conv.weight)
        missing = (0, 0, 0, ours.rows - 1)
    else:
        kernel, bias = ours.kernel_and_bias()
        mask, missing = _mask(ours), (0, 0, 0, 0)
        if isinstance(ours, HorizontalConv):
            missing = (0, ours.reach, 0, 0)
        elif isinstance(ours, CausalConv):
            missing = (0, 0, 0, ours.reach)
    assert bias is not None
    return functional.pad(kernel, missing), functional.pad(mask, missing), bias


def _mask(ours: CausalConv | GroupedPointwise | HorizontalConv) -> Tensor:
    """Ones where the kernel has a parameter: found by setting each of them to one."""
    ours = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(1.0)
        return ours.kernel_and_bias()[0]


class GatedReference(nn.Module):
    """One gated layer with full kernels."""

    def __init__(self, ours: GatedLayer) -> None:
        super().__init__()
        self.residual, self.last = ours.residual, ours.last
        self.vertical, self.horizontal = MaskedConv(ours.vertical), MaskedConv(ours.horizontal)
        self.link, self.output = _copied(ours.link), MaskedConv(ours.output)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks' outputs."""
        above = self.vertical(vertical)
        shifted = torch.cat([torch.zeros_like(above[:, :, :1]), above[:, :, :-1]], dim=2)
        inner = self.output(self._gate(self.horizontal(horizontal) + self.link(shifted)))
        return vertical if self.last else self._gate(above), inner + horizontal if self.residual else inner

    def _gate(self, features: Tensor) -> Tensor:
        content, control = features.chunk(2, dim=1)
        return content.tanh() * control.sigmoid()


class ResidualReference(nn.Module):
    """One of PixelCNN's residual blocks with full kernels."""

    def __init__(self, ours: ResidualBlock) -> None:
        super().__init__()
        self.reduce, self.masked, self.expand = (MaskedConv(part) for part in (ours.reduce, ours.masked, ours.expand))

    def forward(self, features: Tensor) -> Tensor:
        """The block's output."""
        return features + self.expand(self.masked(self.reduce(features.relu()).relu()).relu())


class RecurrentReference(nn.Module):
    """One recurrent block: every row or diagonal a step of torch's own operations."""

    def __init__(self, ours: RecurrentBlock) -> None:
        super().__init__()
        recurrent = ours.recurrent
        self.kind: Literal["row", "diagonal"] = "row" if isinstance(recurrent, RowLSTM) else "diagonal"
        inputs = [recurrent.inputs] if isinstance(recurrent, RowLSTM) else [recurrent.from_left, recurrent.from_right]
        self.inputs = nn.ModuleList(MaskedConv(one) for one in inputs)
        self.residual = ours.residual
        self.states = nn.ParameterList(nn.Parameter(one.detach().clone()) for one in recurrent.state.kernels)
        self.expand = MaskedConv(ours.expand)
        self.skip = MaskedConv(ours.skip) if ours.skip is not None else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What goes on, and what skips to the output."""
        hidden = self._rows(features) if self.kind == "row" else self._diagonals(features)
        expanded = self.expand(hidden)
        skipped = self.skip(hidden) if self.skip is not None else None
        return expanded + features if self.residual else expanded, skipped

    def _rows(self, features: Tensor) -> Tensor:
        gates, state = self.inputs[0](features), self.states[0]
        return torch.stack(self._steps(gates.unbind(2), state, padding=state.shape[2] // 2), dim=2)

    def _diagonals(self, features: Tensor) -> Tensor:
        left, right = (side(features) for side in self.inputs)
        left = self._one_side(left, self.states[0])
        right = self._one_side(right.flip(3), self.states[1]).flip(3)
        return left + torch.cat([torch.zeros_like(right[:, :, :1]), right[:, :, :-1]], dim=2)

    def _one_side(self, gates: Tensor, state: Tensor) -> Tensor:
        height, width = gates.shape[2:]
        skewed = torch.stack(
            [functional.pad(gates[:, :, row], (row, height - 1 - row)) for row in range(height)], dim=2
        )
        steps = [functional.pad(one, (1, 0)) for one in skewed.unbind(3)]
        hidden = torch.stack([one[..., 1:] for one in self._steps(steps, state, padding=0)], dim=3)
        return torch.stack([hidden[:, :, row, row : row + width] for row in range(height)], dim=2)

    def _steps(self, gates: list[Tensor] | tuple[Tensor, ...], state: Tensor, padding: int) -> list[Tensor]:
        hidden = cell = torch.zeros_like(gates[0].chunk(4, dim=1)[0])
        outputs = []
        for one in gates:
            recurrent = functional.conv1d(hidden, state, padding=padding)
            recurrent = recurrent if padding else functional.pad(recurrent, (1, 0))
            output, forget, entry, content = (one + recurrent).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * content.tanh()
            hidden = output.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return outputs


class Reference(nn.Module):
    """A whole model of the straightforward kind with the weights of ours."""

    def __init__(self, ours: AutoregressiveModel) -> None:
        super().__init__()
        body, head = ours.body, ours.head
        assert isinstance(body, GatedPixelCNN | PixelCNN | PixelRNN)
        assert isinstance(head, SoftmaxHead)
        self.levels, self.channels = ours.levels, ours.channels
        self.first = None if isinstance(body, GatedPixelCNN) else MaskedConv(body.first)
        if isinstance(body, GatedPixelCNN):
            self.layers = nn.ModuleList(GatedReference(layer) for layer in body.gated_layers)
        else:
            self.layers = nn.ModuleList(
                ResidualReference(block) if isinstance(block, ResidualBlock) else RecurrentReference(block)
                for block in body.blocks
                if isinstance(block, ResidualBlock | RecurrentBlock)
            )
        self.hidden, self.logits = MaskedConv(head.hidden), MaskedConv(head.logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, b c h w levels."""
        scaled = images.to(self.logits.weight.dtype) * (2.0 / (self.levels - 1)) - 1.0
        logits = self.logits(self.hidden(self._features(scaled).relu()).relu())
        return logits.unflatten(1, (self.channels, self.levels)).permute(0, 1, 3, 4, 2)

    def _features(self, scaled: Tensor) -> Tensor:
        if self.first is None:
            vertical = horizontal = scaled
            for layer in self.layers:
                vertical, horizontal = layer(vertical, horizontal)
            return horizontal
        features, skipped = self.first(scaled), []
        for layer in self.layers:
            if isinstance(layer, RecurrentReference):
                features, extra = layer(features)
                skipped += [] if extra is None else [extra]
            else:
                features = layer(features)
        return sum(skipped, start=features)


def _copied(ours: nn.Conv2d) -> nn.Conv2d:
    copied = nn.Conv2d(ours.in_channels, ours.out_channels, 1, bias=False)
    copied.load_state_dict(ours.state_dict())
    return copied
