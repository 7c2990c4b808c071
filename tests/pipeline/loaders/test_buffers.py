import gc

import numpy as np
import torch

from pipeline.loaders.buffers import Buffers


def test_memory_is_used_again_when_the_last_view_of_it_is_gone_and_not_before() -> None:
    buffers = Buffers()
    first = buffers.take((4, 5, 3), np.float32)
    place = first.ctypes.data
    first[:] = 7
    row = torch.from_numpy(first).permute(2, 0, 1)[1]
    del first
    gc.collect()
    second = buffers.take((4, 5, 3), np.float32)
    second[:] = 8
    assert second.ctypes.data != place
    assert row.shape == (4, 5)
    assert (row == 7).all()
    del row
    gc.collect()
    third = buffers.take((2, 5, 3), np.float32)  # a smaller one fits
    assert third.ctypes.data == place
    assert third.shape == (2, 5, 3)


def test_a_larger_array_takes_no_smaller_memory() -> None:
    buffers = Buffers()
    del_me = buffers.take((10,), np.uint8)
    del del_me
    gc.collect()
    larger = buffers.take((1 << 20,), np.uint8)
    larger[:] = 3  # would end the process
    assert larger.sum() == 3 << 20
    assert buffers.take((0, 3), np.float32).shape == (0, 3)
