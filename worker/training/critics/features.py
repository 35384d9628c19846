"""Where a critic looks in the reference's states, and the linear readings it takes there.

A critic looks at two kinds of places of every trained assistant turn: the last prompt token, where the reference
has read the request and written nothing, and each token of the response. Its scores are linear, so they are taken
on the device, one product per layer, and what leaves the device is one number per place and layer: the states of
whole rows are never copied or kept. A score of a response is the mean over a window of consecutive tokens. The
windows begin at every token, so that harmless text before, after or around a harmful passage cannot average it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.training.data import TokenizedRow

WINDOW = 16
"""Tokens of a response that are scored together. A shorter response is one window."""
KEPT_WINDOWS = 4
"""At most this many windows of a reply are kept to fit on, spread evenly: memory does not grow with its length."""


class Places(NamedTuple):
    """Where a critic looks in one row, per trained assistant turn."""

    prompts: tuple[int, ...]
    """Position of the last prompt token before each turn."""
    responses: tuple[tuple[int, int], ...]
    """Positions of the first loss-bearing token of each turn and of one past its last; none where a turn is empty."""


class Scores(NamedTuple):
    """What one pair of directions reads in one row: products of states and directions, without a bias."""

    prompts: NDArray[np.float64]
    """(turns, layers)."""
    responses: tuple[NDArray[np.float64], ...]
    """Per response (tokens, layers). Empty where there is no direction for responses."""


class Pooled(NamedTuple):
    """The states of one row that a probe is fitted on, float32 on the CPU."""

    prompts: NDArray[np.float32]
    """(turns, layers, hidden)."""
    windows: NDArray[np.float32]
    """(windows, layers, hidden): means over up to KEPT_WINDOWS windows of each response."""


@dataclass(frozen=True, eq=False)
class Directions:
    """What the states are multiplied with, (layers, hidden) for each kind of place."""

    prompt: NDArray[np.float64]
    response: NDArray[np.float64] | None


class BatchStates:
    """The reference's states of one micro-batch, on its device, and where the rows stand in them."""

    def __init__(self, layers: Sequence[Tensor], rows: Sequence[TokenizedRow], starts: Sequence[int]) -> None:
        """Take the states after each block, each (positions, hidden), and the position where each row starts."""
        self._layers = layers
        self._places = [_shift(find_places(row), start) for row, start in zip(rows, starts, strict=True)]
        self._scores: dict[Directions, list[Scores]] = {}

    def score(self, directions: Directions) -> list[Scores]:
        """Return the scores of each row, computed for all rows at the first call: one transfer from the device.

        Raises ValueError where the directions have other layers or another width than the states.
        """
        if directions not in self._scores:
            self._scores[directions] = self._compute_scores(directions)
        return self._scores[directions]

    def pool(self) -> list[Pooled]:
        """Return the states of each row that a probe is fitted on: one transfer from the device."""
        counts = [len(places.prompts) for places in self._places]
        spans = [[span for turn in places.responses for span in _spread(*turn)] for places in self._places]
        prompts = self._index([end for places in self._places for end in places.prompts])
        parts = [
            torch.stack(
                [
                    *layer[prompts].float(),
                    *(layer[start:end].float().mean(dim=0) for of_row in spans for start, end in of_row),
                ]
            )
            for layer in self._layers
        ]
        found = torch.stack(parts, dim=1).cpu()
        n_prompts = sum(counts)
        return [
            Pooled(of_prompts.numpy(), of_windows.numpy())
            for of_prompts, of_windows in zip(
                torch.split(found[:n_prompts], counts),
                torch.split(found[n_prompts:], [len(of_row) for of_row in spans]),
                strict=True,
            )
        ]

    def _compute_scores(self, directions: Directions) -> list[Scores]:
        shape = (len(self._layers), self._layers[0].shape[1])
        if directions.prompt.shape != shape:
            raise ValueError(
                f"the states have layers and width {shape}, the critic was fitted for {directions.prompt.shape}"
            )
        prompts = [end for places in self._places for end in places.prompts]
        tokens: list[int] = []
        if directions.response is not None:
            tokens = [token for places in self._places for turn in places.responses for token in range(*turn)]
        found = self._project(prompts, directions.prompt)
        if directions.response is not None:
            found = torch.cat([found, self._project(tokens, directions.response)])
        # Few numbers from here on, so the CPU has them in float64.
        scores = found.double().cpu().numpy()
        at_prompts, at_tokens = scores[: len(prompts)], scores[len(prompts) :]
        rows: list[Scores] = []
        for places in self._places:
            responses: list[NDArray[np.float64]] = []
            if directions.response is not None:
                for start, end in places.responses:
                    responses.append(at_tokens[: end - start])
                    at_tokens = at_tokens[end - start :]
            rows.append(Scores(at_prompts[: len(places.prompts)], tuple(responses)))
            at_prompts = at_prompts[len(places.prompts) :]
        return rows

    def _project(self, positions: Sequence[int], direction: NDArray[np.float64]) -> Tensor:
        """Multiply the states at some positions with the direction of their layer: (positions, layers) float32."""
        places = self._index(positions)
        weights = torch.from_numpy(direction).to(places.device, torch.float32)
        return torch.stack(
            [layer[places].float() @ weight for layer, weight in zip(self._layers, weights, strict=True)],
            dim=1,
        )

    def _index(self, positions: Sequence[int]) -> Tensor:
        return torch.tensor(positions, dtype=torch.int64, device=self._layers[0].device)


class Features(NamedTuple):
    """What a critic may look at of one row."""

    batch: BatchStates
    place: int
    """The row's place in the micro-batch."""

    def score(self, directions: Directions) -> Scores:
        """Return what these directions read in the row. See `BatchStates.score`."""
        return self.batch.score(directions)[self.place]


def read_features(
    layers: Sequence[Tensor], rows: Sequence[TokenizedRow], starts: Sequence[int]
) -> list[Features]:
    """Return the features of each row of a micro-batch; nothing is computed before a critic asks.

    `layers` and `starts` are those of `models.layer_states` and `batching.Batch`.
    """
    batch = BatchStates(layers, rows, starts)
    return [Features(batch, place) for place in range(len(rows))]


def find_places(row: TokenizedRow) -> Places:
    """Return where a critic looks in a row: every loss-bearing token belongs to exactly one response."""
    responses = []
    for prompt_end, next_end in zip(row.prompt_ends, [*row.prompt_ends[1:], len(row.input_ids)], strict=True):
        end = prompt_end + 1
        while end < min(next_end + 1, len(row.input_ids)) and row.loss_mask[end]:
            end += 1
        if end > prompt_end + 1:
            responses.append((prompt_end + 1, end))
    return Places(row.prompt_ends, tuple(responses))


def window_means(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over each window of WINDOW consecutive tokens: (tokens, layers) to (windows, layers)."""
    width = min(WINDOW, len(scores))
    windows = np.lib.stride_tricks.sliding_window_view(scores, width, axis=0)
    means: NDArray[np.float64] = windows.mean(axis=-1)
    return means


def _spread(start: int, end: int) -> list[tuple[int, int]]:
    """Return up to KEPT_WINDOWS windows of a response: one where it is short, else from its start to its end."""
    width = min(WINDOW, end - start)
    last = end - width
    count = min(KEPT_WINDOWS, -(-(end - start) // width))
    if count == 1:
        return [(start, end)]
    firsts = [start + round(place * (last - start) / (count - 1)) for place in range(count)]
    return [(first, first + width) for first in firsts]


def _shift(places: Places, start: int) -> Places:
    return Places(
        tuple(start + end for end in places.prompts),
        tuple((start + first, start + end) for first, end in places.responses),
    )
