"""What FAISS and PyTorch do with GPUs; neither is imported before it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GPU_PAIRS = 1_000_000  # fewer products are computed on the CPU before the features have been copied to a GPU


def count_gpus() -> tuple[int, int]:
    """How many GPUs the libraries see, for diagnosis: (PyTorch's, FAISS')."""
    import torch

    return torch.cuda.device_count(), _seen_by_faiss()


def index_on_gpus(features: NDArray[np.float32]) -> Any | None:
    """A FAISS flat index of features [n, dim] on all GPUs, which searches by inner product; None where it sees none."""
    import faiss

    if not _seen_by_faiss():
        return None
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    return faiss.index_cpu_to_all_gpus(index)


def _seen_by_faiss() -> int:
    import faiss

    return int(getattr(faiss, "get_num_gpus", lambda: 0)())  # its package for CPUs lacks the function
