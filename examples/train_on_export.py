"""Train a ResNet-18 on an export, read by Hugging Face `datasets`.

    neat-backend export 3 --format hf --out dataset-hf
    pip install datasets
    python examples/train_on_export.py dataset-hf --epochs 20 --out resnet18.pt

Prints the accuracy on `val` (which `datasets` calls validation) after each epoch and on `test` at the end.
"""

import argparse
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torchvision import models, transforms


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    parts = datasets.load_dataset("imagefolder", data_dir=str(options.dataset))
    classes = sorted(set(parts["train"]["label"]))
    look = transforms.Compose([transforms.Resize((options.side, options.side)), transforms.ToTensor()])

    def batch(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [n, 3, side, side] in [0, 1] and int64 [n]."""
        images = torch.stack([look(row["image"].convert("RGB")) for row in rows])
        return images, torch.tensor([classes.index(row["label"]) for row in rows])

    loaders = {
        name: torch.utils.data.DataLoader(part, options.batch, shuffle=name == "train", collate_fn=batch)
        for name, part in parts.items()
    }
    network = models.resnet18(num_classes=len(classes))
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)

    def accuracy(part: str) -> float:
        network.eval()
        with torch.inference_mode():
            right = [(network(images).argmax(1) == targets).float() for images, targets in loaders[part]]
        return float(torch.cat(right).mean())

    for epoch in range(1, options.epochs + 1):
        network.train()
        for images, targets in loaders["train"]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), targets).backward()
            optimiser.step()
        print(f"epoch {epoch}: accuracy on val {accuracy('validation'):.3f}")
    print(f"accuracy on test {accuracy('test'):.3f} of {len(parts['test'])} images, classes {', '.join(classes)}")
    if options.out:
        torch.save({"classes": classes, "side": options.side, "state_dict": network.state_dict()}, options.out)


if __name__ == "__main__":
    main()
