"""Co-teaching as its authors wrote it: two nets and two Adams in float32, losses sorted by NumPy on the host.

DATA is the name of a clean set of which half of the labels are made wrong in memory. Images come from torchvision's
transforms in a DataLoader. Both nets rank all rows of a batch by their own losses, and each is trained on those that
are small in the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from method_data import DEVICE, batches_of, parser
from one_run import one_run
from torch import Tensor
from torch.nn import functional as F

KEPT = 0.5

args = parser().parse_args()


def training() -> Iterator[float]:
    """Train, step after step."""
    loader, (first, second) = batches_of(args, num_nets=2)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (first, second)]
    number = int(KEPT * args.batch)

    def smallest(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        order: np.ndarray = np.argsort(losses.detach().cpu().numpy())
        return torch.from_numpy(order[:number]).to(DEVICE)

    total = 0.0
    for inputs, targets in loader:
        images, labels = inputs.to(DEVICE), targets.to(DEVICE)
        logits = first(images), second(images)
        chosen = [smallest(each, labels) for each in logits]
        for net, (said, rows) in enumerate(zip(logits, reversed(chosen), strict=True)):
            loss = F.cross_entropy(said[rows], labels[rows])
            optimizers[net].zero_grad()
            loss.backward()
            optimizers[net].step()
            total += loss.item()
        yield total


one_run(training, args.batch, args.batches, args.warm)
