"""Names of devices."""

import pytest
import torch

from moe4.errors import RecipeError
from moe4.forward.device import usable_device


def test_the_processor_can_be_used() -> None:
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "x", "meta", "cpu:x", "h200", "cuda:99999", "cuda:-1", "a\nb"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"device .* (is unknown; expected cpu|cannot be used)"):
        usable_device(name)
