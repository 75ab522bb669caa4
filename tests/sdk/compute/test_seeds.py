"""What a training draws follows from all bits of its seed, not from the 32 that torch takes."""

import numpy as np
import pytest
import torch

from fedddpm.compute import seeds
from fedddpm.compute.seeds import generator_for
from fedddpm.errors import ConfigError

CPU = torch.device("cpu")


def drawn(*what):
    return torch.randn(1000, generator=generator_for(CPU, *what))


def test_every_bit_of_a_seed_counts():
    plain = [torch.randn(8, generator=torch.Generator().manual_seed(5 + high)) for high in (0, 2**32)]
    assert torch.equal(*plain)  # why the generator is not simply seeded
    values = [0, 1, 2**32, 2**63, 2**64, 2**255, 2**255 + 1]
    vectors = torch.stack([drawn(value, "noise", 0) for value in values])
    assert torch.corrcoef(vectors).fill_diagonal_(0).abs().max() < 0.15
    assert torch.equal(drawn(2**255, "noise", 0), drawn(2**255, "noise", 0))
    assert not torch.equal(drawn(2**255, "noise", 0), drawn(2**255, "noise", 1))
    assert not torch.equal(drawn(2**255, "noise", 0), drawn(2**255, "order", 0))


def test_the_whole_state_is_filled():
    states = [generator_for(CPU, number).get_state().numpy()[24 : 24 + 8 * 624].view("<u8") for number in (1, 2)]
    assert (states[0] != states[1]).all()
    assert max(state.max() for state in states) < 2**32
    bits = np.unpackbits(states[0].astype("<u4").view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.015


def test_what_is_drawn_is_spread_as_it_should_be():
    generator = generator_for(CPU, 3, "spread")
    normal = torch.randn(200_000, generator=generator)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    whole = torch.randint(0, 1000, (200_000,), generator=generator)
    assert (torch.bincount(whole, minlength=1000) - 200).abs().max() < 80
    assert len(set(torch.randperm(1000, generator=generator).tolist())) == 1000


def test_a_torch_that_keeps_its_state_otherwise_is_refused(monkeypatch):
    seeds._template.cache_clear()
    monkeypatch.setattr(seeds, "_FIRST_WORD", 32)
    with pytest.raises(ConfigError, match="not known here"):
        generator_for(CPU, 1)
    monkeypatch.undo()
    seeds._template.cache_clear()
    assert generator_for(CPU, 1).initial_seed() == 5
