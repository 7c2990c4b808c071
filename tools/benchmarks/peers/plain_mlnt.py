"""MLNT as its authors wrote it: float32, ten label sets a step in turn, neighbours looked up row by row, second order.

DATA is the name of a clean set of which half of the labels are made wrong in memory. The graphs of all ten sets are
kept until one backward pass at the end of the step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import torch
from method_data import DEVICE, batches_of, parser
from one_run import one_run
from torch import Tensor, nn
from torch.nn import functional as F

SETS, NEIGHBOURS, REPLACED = 10, 10, 0.5
INNER_LR, WEIGHT, DECAY = 0.2, 0.4, 0.99

args = parser().parse_args()


def synthetic(labels: Tensor, features: Tensor) -> Tensor:
    """Give half of the rows the label of one of their neighbours."""
    made = labels.clone()
    for row in random.sample(range(len(labels)), int(REPLACED * len(labels))):
        distances = (features[row] - features).pow(2).sum(1)
        near = distances.topk(NEIGHBOURS + 1, largest=False).indices[1:]
        made[row] = labels[near[random.randrange(NEIGHBOURS)]]
    return made


def training() -> Iterator[float]:
    """Train, step after step."""
    loader, (net,) = batches_of(args, num_nets=1)
    pretrained, teacher = copy.deepcopy(net).eval(), copy.deepcopy(net)
    features_of = nn.Sequential(*list(pretrained)[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    names = [name for name, _ in net.named_parameters()]
    total = 0.0
    for inputs, targets in loader:
        images, labels = inputs.to(DEVICE), targets.to(DEVICE)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        with torch.no_grad():
            features = features_of(images)
            for own, average in zip(net.parameters(), teacher.parameters(), strict=True):
                average.mul_(DECAY).add_(own, alpha=1 - DECAY)
            wanted = teacher(images).softmax(1)
        meta = torch.zeros((), device=DEVICE)
        for _ in range(SETS):
            inner = F.cross_entropy(net(images), synthetic(labels, features))
            slopes = torch.autograd.grad(inner, list(net.parameters()), create_graph=True)
            moved = [own - INNER_LR * slope for own, slope in zip(net.parameters(), slopes, strict=True)]
            said = torch.func.functional_call(net, dict(zip(names, moved, strict=True)), (images,))
            meta = meta + F.kl_div(said.log_softmax(1), wanted, reduction="batchmean")
        (WEIGHT / SETS * meta).backward()
        optimizer.step()
        total += loss.item()
        yield total


one_run(training, args.batch, args.batches, args.warm)
