"""What FAISS and PyTorch do with GPUs; neither is imported before it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def count_gpus() -> tuple[int, int]:
    """How many GPUs the libraries see, for diagnosis: (PyTorch's, FAISS')."""
    import faiss
    import torch

    return torch.cuda.device_count(), int(getattr(faiss, "get_num_gpus", lambda: 0)())


def index_on_gpus(features: NDArray[np.float32]) -> Any | None:
    """A FAISS flat index of features [n, dim] on all GPUs, which searches by inner product; None where it sees none."""
    import faiss

    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return None
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    return faiss.index_cpu_to_all_gpus(index)
