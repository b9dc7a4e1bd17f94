"""A layer's tokens for a GPU: on it where it has room for them, else rows travel as they are needed."""

import torch
from torch import Tensor

from moe4.calibration.activations import Activations, ResidentActivations
from moe4.quantize.layer.attend import Routing
from moe4.quantize.transfer.device_memory import to_device

PIECE_BYTES = 256 << 20


class DeviceRows:
    """The experts' inputs and gates, and the layer's sum that their outputs are added to."""

    def __init__(self, routing: Routing, device: torch.device) -> None:
        self._inputs, self._routes, self._device = routing.inputs, routing.routes, device
        resident = isinstance(routing.inputs, ResidentActivations)
        place, routes = device if resident else torch.device("cpu"), routing.routes
        self._numbers, self._inputs_at = routes.rows.to(place), routes.inputs.to(place)
        self._gates = routing.routes.gates.to(device)

    def num_tokens(self, expert: int) -> int:
        """Return how many tokens the router sent to an expert."""
        return self._routes.starts[expert + 1] - self._routes.starts[expert]

    def read(self, rows: Tensor | slice) -> Tensor:
        """Return rows [n, hidden] of the experts' inputs, on the device."""
        return to_device(self._inputs.read(rows), self._device)

    def of_expert(self, expert: int, start: int, stop: int) -> Tensor:
        """Return an expert's tokens from one number to another, [tokens, hidden] on the device."""
        first = self._routes.starts[expert]
        return self.read(self._inputs_at[first + start : first + stop])

    def gates(self, expert: int) -> Tensor:
        """Return an expert's gate weights, float32 [tokens] on the device."""
        return self._gates[self._routes.span(expert)]

    def add(self, total: Activations, expert: int, output: Tensor) -> None:
        """Add an expert's output [tokens, hidden], times its gates, to its tokens' rows of `total`."""
        output = output.to(self._device)
        here = self._routes.span(expert)
        step = max(1, PIECE_BYTES // (4 * output.shape[1]))
        for start in range(here.start, here.stop, step):
            rows = slice(start, min(start + step, here.stop))
            values = output[rows.start - here.start : rows.stop - here.start].float()
            weighted = values * self._gates[rows].unsqueeze(1)
            if isinstance(total, ResidentActivations):
                total.add(self._numbers[rows], weighted)
            else:
                total.add(self._numbers[rows].cpu(), weighted.cpu())
