"""Names of devices."""

import threading
from collections.abc import Iterator

import pytest
import torch

from moe4.errors import RecipeError
from moe4.forward.device import forward_mode, usable_device


def test_the_processor_can_be_used() -> None:
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "x", "meta", "cpu:x", "h200", "cuda:99999", "cuda:-1", "a\nb"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"device .* (is unknown; expected cpu|cannot be used)"):
        usable_device(name)


def switches() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture
def _callers_choice() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_callers_choice")
def test_float32_is_float32_while_any_thread_runs_a_model() -> None:
    """The caller's own choice is back when the last thread is done, also if one fails."""
    before = switches()
    assert before == ("tf32", "tf32")
    inside, leave = threading.Event(), threading.Event()

    def fail() -> None:
        with pytest.raises(ZeroDivisionError), forward_mode():
            inside.set()
            leave.wait()
            raise ZeroDivisionError

    other = threading.Thread(target=fail)
    with forward_mode():
        other.start()
        inside.wait()
        assert torch.is_inference_mode_enabled()
    assert switches() == ("ieee", "ieee")
    leave.set()
    other.join()
    assert switches() == before
    assert not torch.is_inference_mode_enabled()
