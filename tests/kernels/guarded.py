"""Tensors that end where memory ends: whoever reads or writes one element too many dies of it."""

import ctypes
import mmap

import torch

_libc = ctypes.CDLL(None, use_errno=True)
_NO_ACCESS = 0


def guarded(tensor):
    """A copy whose last byte is the last one before a page that nobody may touch."""
    data = tensor.contiguous()
    size = data.numel() * data.element_size()
    if size == 0:
        return data
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    end = pages * mmap.PAGESIZE
    if _libc.mprotect(ctypes.c_void_p(whole.data_ptr() + end), mmap.PAGESIZE, _NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = whole[end - size : end].view(data.dtype).view(data.shape)
    return copy.copy_(data)
