"""Faults that servers have had, or may have, each as a change of a network that stands in vLLM.

Layers 1 to 4 of k2-tiny have 24 experts, 4 a token. An expert's gate and up are rows 0..127 and 128..255 of
w13 [256, hidden 256]; down is w2 [256, 128]; groups are of 128.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from probe_faults.engine import Edits
from torch import Tensor

Plant = Callable[[Edits], None]
WIDTH = 128
MOE_LAYERS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault. `kind`: what is wrong; a "choice" is something users ask for, not a fault."""

    name: str
    kind: str
    plant: Plant


def experts(edits: Edits, layer: int) -> Any:
    """Return the packed experts of a layer."""
    return edits.layers[layer].mlp.experts.routed_experts


def marlin_order(rows: int) -> Tensor:
    """Return which row's scale each row gets where the order for one group is taken for that of several."""
    several = torch.tensor([i + 8 * j for i in range(8) for j in range(8)])
    single = torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
    numbers = torch.arange(rows)
    given = numbers.view(-1, len(single))[:, single].reshape(-1, len(several))
    read = torch.empty_like(given)
    read[:, several] = given
    return read.flatten()


def scales_of(name: str, layers: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Plant:
    """Return a fault that changes the scales `name` [experts, rows, groups] of some layers."""

    def plant(edits: Edits) -> None:
        for layer in layers:
            scale = getattr(experts(edits, layer), f"{name}_weight_scale")
            edits.write(scale, change(scale.detach().clone()))

    return plant


def words_of(name: str, layers: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Plant:
    """Return a fault that changes the packed codes `name`, int32 [experts, rows, words]."""

    def plant(edits: Edits) -> None:
        for layer in layers:
            words = getattr(experts(edits, layer), f"{name}_weight_packed")
            edits.write(words, change(words.detach().clone()))

    return plant


def both(*plants: Plant) -> Plant:
    """Return several changes as one fault."""

    def plant(edits: Edits) -> None:
        for each in plants:
            each(edits)

    return plant


def one(expert: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `change` for one expert of a stack."""

    def changed(stack: Tensor) -> Tensor:
        stack[expert] = change(stack[expert])
        return stack

    return changed


def every_tensor(layers: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Plant:
    """Return a fault that changes the codes and scales of both stacks of some layers alike."""
    return both(*(kind(name, layers, change) for kind in (scales_of, words_of) for name in ("w13", "w2")))


def swap(first: int, second: int) -> Callable[[Tensor], Tensor]:
    """Return a change that swaps two entries of a stack."""

    def changed(stack: Tensor) -> Tensor:
        stack[[first, second]] = stack[[second, first]]
        return stack

    return changed


def codes(words: Tensor) -> Tensor:
    """Return the stored codes 0..15, [..., 8 * words]."""
    return ((words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15).flatten(-2)


def pack(values: Tensor) -> Tensor:
    """Return int32 words of codes 0..15."""
    shifted = values.long().unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)
    total = shifted.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def recode(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a change of packed words as a change of their codes."""
    return lambda words: pack(change(codes(words)))


def expert_of_another_layer(edits: Edits) -> None:
    """Put expert 5 of layer 3 into its place in layer 2."""
    for name in ("w13_weight_scale", "w13_weight_packed", "w2_weight_scale", "w2_weight_packed"):
        target, source = (getattr(experts(edits, layer), name) for layer in (2, 3))
        values = target.detach().clone()
        values[5] = source[5]
        edits.write(target, values)


def halves(values: Tensor) -> Tensor:
    """Swap the two halves of a tensor's first dimension."""
    return values.roll(values.shape[0] // 2, 0)


def zero_from(first: int) -> Callable[[Tensor], Tensor]:
    """Return a change that zeroes a stack from one entry on, as a cut file's missing bytes would."""

    def changed(stack: Tensor) -> Tensor:
        stack[first:] = 0
        return stack

    return changed


ALL, SECOND, THIRD = MOE_LAYERS, (2,), (3,)
CODES, SCALES, WEIGHTS = "codes", "scales", "experts"

EXPERT_FAULTS = [
    Fault(
        name="scales of gate and up in Marlin's order for one group, all layers",
        kind=SCALES,
        plant=scales_of("w13", ALL, lambda s: s[:, marlin_order(2 * WIDTH)]),
    ),
    Fault(
        name="the same, one layer",
        kind=SCALES,
        plant=scales_of("w13", SECOND, lambda s: s[:, marlin_order(2 * WIDTH)]),
    ),
    Fault(
        name="signs of scales lost, all layers",
        kind=SCALES,
        plant=both(scales_of("w13", ALL, torch.abs), scales_of("w2", ALL, torch.abs)),
    ),
    Fault(
        name="signs of scales lost, one layer",
        kind=SCALES,
        plant=both(scales_of("w13", SECOND, torch.abs), scales_of("w2", SECOND, torch.abs)),
    ),
    Fault(
        name="scales one row off, one layer",
        kind=SCALES,
        plant=scales_of("w2", SECOND, lambda s: s.roll(1, 1)),
    ),
    Fault(
        name="scales one row off, one expert",
        kind=SCALES,
        plant=scales_of("w13", SECOND, one(3, lambda s: s.roll(1, 0))),
    ),
    Fault(
        name="the first group's scale for all of a row, all layers (wrong group size)",
        kind=SCALES,
        plant=scales_of("w13", ALL, lambda s: s[..., :1].expand_as(s).clone()),
    ),
    Fault(
        name="the two groups of a row swapped, one layer",
        kind=SCALES,
        plant=scales_of("w13", SECOND, lambda s: s.flip(-1)),
    ),
    Fault(
        name="down x 1.02, one expert", kind=SCALES, plant=scales_of("w2", SECOND, one(3, lambda s: s * 1.02))
    ),
    Fault(name="down x 2, one expert", kind=SCALES, plant=scales_of("w2", SECOND, one(3, lambda s: s * 2))),
    Fault(
        name="down x 1.02, all experts of a layer",
        kind=SCALES,
        plant=scales_of("w2", SECOND, lambda s: s * 1.02),
    ),
    Fault(name="down x 1.02, all layers", kind=SCALES, plant=scales_of("w2", ALL, lambda s: s * 1.02)),
    Fault(
        name="down x 1.1, all experts of a layer",
        kind=SCALES,
        plant=scales_of("w2", SECOND, lambda s: s * 1.1),
    ),
    Fault(name="down x 1.1, all layers", kind=SCALES, plant=scales_of("w2", ALL, lambda s: s * 1.1)),
    Fault(
        name="order of codes in a word reversed, all layers",
        kind=CODES,
        plant=both(
            *(
                words_of(n, ALL, recode(lambda c: c.unflatten(-1, (-1, 8)).flip(-1).flatten(-2)))
                for n in ("w13", "w2")
            )
        ),
    ),
    Fault(
        name="order of codes in a word reversed, one expert",
        kind=CODES,
        plant=words_of(
            "w13", SECOND, one(3, recode(lambda c: c.unflatten(-1, (-1, 8)).flip(-1).flatten(-2)))
        ),
    ),
    Fault(
        name="zero point 7 for 8, one layer",
        kind=CODES,
        plant=both(*(words_of(n, SECOND, recode(lambda c: (c + 1).clamp(max=15))) for n in ("w13", "w2"))),
    ),
    Fault(
        name="zero point 7 for 8, one expert",
        kind=CODES,
        plant=words_of("w13", SECOND, one(3, recode(lambda c: (c + 1).clamp(max=15)))),
    ),
    Fault(
        name="codes read as two's complement, one layer",
        kind=CODES,
        plant=both(*(words_of(n, SECOND, recode(lambda c: c ^ 8)) for n in ("w13", "w2"))),
    ),
    Fault(name="two experts swapped, one layer", kind=WEIGHTS, plant=every_tensor(SECOND, swap(3, 4))),
    Fault(name="an expert of another layer", kind=WEIGHTS, plant=expert_of_another_layer),
    Fault(
        name="gate and up swapped, one expert",
        kind=WEIGHTS,
        plant=both(scales_of("w13", SECOND, one(3, halves)), words_of("w13", SECOND, one(3, halves))),
    ),
    Fault(
        name="gate and up swapped, one layer",
        kind=WEIGHTS,
        plant=both(
            scales_of("w13", SECOND, lambda s: s.roll(WIDTH, 1)),
            words_of("w13", SECOND, lambda w: w.roll(WIDTH, 1)),
        ),
    ),
    Fault(
        name="halves of down's rows swapped, one expert",
        kind=WEIGHTS,
        plant=both(scales_of("w2", SECOND, one(3, halves)), words_of("w2", SECOND, one(3, halves))),
    ),
    Fault(name="one expert zero", kind=WEIGHTS, plant=scales_of("w2", SECOND, one(3, torch.zeros_like))),
    Fault(
        name="a shard cut short: the last quarter of a layer's experts zero",
        kind=WEIGHTS,
        plant=every_tensor(THIRD, zero_from(18)),
    ),
    Fault(
        name="half of down's inputs not summed over ranks, one layer",
        kind=WEIGHTS,
        plant=words_of(
            "w2",
            SECOND,
            recode(lambda c: torch.cat([c[..., : WIDTH // 2], torch.full_like(c[..., WIDTH // 2 :], 8)], -1)),
        ),
    ),
]
