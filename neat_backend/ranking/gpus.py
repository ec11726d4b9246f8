"""How many GPUs the libraries see, for diagnosis."""

from __future__ import annotations

import faiss
import torch


def count_gpus() -> tuple[int, int]:
    """(PyTorch's, FAISS')."""
    count = getattr(faiss, "get_num_gpus", lambda: 0)
    return torch.cuda.device_count(), int(count())
