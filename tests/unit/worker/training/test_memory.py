"""Noticing that memory has run out, by errors as they really come."""

import errno
import os

import numpy as np
import pytest
import torch

from app.errors import JobFailure
from worker.training.memory import is_out_of_memory

FAR_TOO_MUCH = 2**48


def allocate_in_torch() -> object:
    return torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)


def allocate_in_numpy() -> object:
    return np.empty((2**20, FAR_TOO_MUCH // 2**20), dtype=np.uint8)


def allocate_in_python() -> object:
    return bytearray(FAR_TOO_MUCH * 2**14)


@pytest.mark.parametrize("allocate", [allocate_in_torch, allocate_in_numpy, allocate_in_python])
def test_allocation_that_fails_is_noticed(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_what_devices_and_the_system_say_is_noticed(error):
    assert is_out_of_memory(error)


def test_it_is_noticed_behind_an_error_that_was_raised_for_it():
    with pytest.raises(JobFailure) as caught:
        try:
            raise MemoryError
        except MemoryError as error:
            raise JobFailure("the model cannot be loaded") from error
    assert is_out_of_memory(caught.value)


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error = ValueError("a circle")
    error.__cause__ = error
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [None, RuntimeError("mat1 and mat2 shapes"), OSError(errno.ENOSPC, "full"), ValueError("out of memory")],
)
def test_other_errors_are_not_it(error):
    assert not is_out_of_memory(error)
