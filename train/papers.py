"""The settings under which papers on label noise compare methods, one page each, for `train --paper`.

A page sets net, batch, optimizer, schedule, length and what is held out. The method is a row of the paper's table and
stays the user's choice, as do the noise (`--law`) and every flag that is given besides.

All pages deviate in this: sgd is Nesterov's, where the papers have plain momentum; images are normalised by channel;
norms and biases do not decay; the last layer starts at zero; and a run's `last10` is the mean of its last ten epochs,
because a page evaluates after each. A page's epochs are passes over all training labels: with `--select incv` or `rsl`
the run that follows is as long, and so goes over the fewer labels that were kept more often than the paper does (half
of them: 400 passes for its 200, evaluated after every second). Where a paper picks its model on clean validation
images, the column to read is `best_noisy_val`: the same share of the training images is held out with their noisy
labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.errors import UserError
from train.recipes import check_choice


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a paper fixes.

    Args:
        epochs: Passes over the data.
        augment: Whether images are augmented in training.
        model: As in `Recipe`, and so are all that follow.
        batch: Likewise.
        optimizer: Likewise; Adam without weight decay is adamw.
        lr: Likewise.
        schedule: Likewise.
        weight_decay: Likewise.
        momentum: Likewise.
        val_frac: Likewise.
        ema: Likewise.
        warmup_frac: Likewise.
        own: Fields that the paper's own method alone looks at.
    """

    epochs: float
    augment: bool = True
    model: str
    batch: int
    optimizer: str
    lr: float
    schedule: str
    weight_decay: float = 0.0
    momentum: float = 0.9
    val_frac: float = 0.0
    ema: float = 0.0
    warmup_frac: float = 0.0
    own: Mapping[str, Any] = field(default_factory=dict)

    def fields(self, epoch: int) -> dict[str, Any]:
        """Return the fields of a recipe, where a pass over the data streams `epoch` rows."""
        fields = dataclasses.asdict(self)
        del fields["epochs"], fields["augment"], fields["own"]
        return {**fields, **self.own, "examples": round(self.epochs * epoch), "eval_every": epoch}


def incv_cifar(method: str) -> Page:
    """ResNet-32, Adam for 200 epochs, a tenth after 80, 120 and 160, a half of that after 180; no image is held out.

    INCV's README, CIFAR-10, 5 runs, symmetric .2 / .5 / .8 and pair .4: Co-teaching 89.05 / 82.12 / 16.21 / 84.55 %,
    INCV 89.71 / 84.78 / 52.27 / 86.04 %, forward correction 85.08 / 76.02 / 34.76 / 83.55 %.

    `train cifar10 --paper incv --law symmetric --rate 0.5 --select incv --method coteaching`, or without `--select` for
    the row of Co-teaching; not run by us.

    Source: Chen et al. 2019 (arXiv 1905.05040), and the authors' code.
    Deviates: shortcuts have no parameters, where the authors' are convolutions; weights do not decay, where theirs have
        an L2 of 1e-4 in the loss, which Adam scales by its own measure of gradients.
    """
    return Page(epochs=200, model="cifar_resnet32", batch=128, optimizer="adamw", lr=1e-3, schedule="incv")


def incv_webvision(method: str) -> Page:
    """Inception-ResNet-v2 on mini-WebVision.

    The paper's table, top-1 / top-5 on WebVision's validation images: Co-teaching 63.58 / 85.20 %, INCV 65.24 /
    85.34 %.

    `train webvision --mini --paper incv --select incv --method coteaching`; without the selection, the row of
    Co-teaching, `--forget-rate` has to be guessed. Not run by us.

    Source: Chen et al. 2019, which names the net.
    Deviates: nothing else of the training is published; optimizer, rate, batch, schedule and length are ours.
    """
    return Page(
        epochs=100,
        model="inception_resnet_v2",
        batch=32,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        schedule="steps",
    )


def coteaching_small(method: str) -> Page:
    """Nine convolutions, Adam for 200 epochs, falling to 0 from 80 on, no augmentation; no image is held out.

    The authors' README, mean of the last ten epochs, pair .45 / symmetric .5 / .2: MNIST 87.58 / 91.68 / 97.71 %,
    CIFAR-10 72.85 / 74.49 / 82.18 %.

    `train cifar10 --paper coteaching --law pair --rate 0.45 --method coteaching`; not run by us.

    Source: Han et al. 2018 (arXiv 1804.06872), and the authors' code.
    Deviates: Adam's first beta stays 0.9, where theirs is 0.1 from epoch 80 on; an epoch of MNIST is whole, where
        theirs ends after 401 batches. For the net, see `cnn9`.
    """
    return Page(epochs=200, augment=False, model="cnn9", batch=128, optimizer="adamw", lr=1e-3, schedule="coteaching")


def coteaching_cifar100(method: str) -> Page:
    """As `coteaching_small`, falling from epoch 100 on.

    The authors' README, pair .45 / symmetric .5 / .2: 34.40 / 41.23 / 54.36 %. Not run by us.

    Source: as `coteaching_small`.
    """
    return dataclasses.replace(coteaching_small(method), schedule="coteaching100")


def mlnt_cifar(method: str) -> Page:
    """A pre-activation net, SGD at 0.2 for 120 epochs, a tenth after 80; 5,000 images held out.

    Asymmetric .4 on CIFAR-10: 89.2 % at its best, as others quote it; the paper's own table was not found.

    `train cifar10 --paper mlnt --law map --rate 0.4 --method mlnt`; not run by us.

    Source: Li et al. 2019 (arXiv 1812.05214), as re-implementations quote it.
    Deviates: ResNet-18, where they name a pre-activation ResNet-32. The paper's weight is 0.4; the authors' code is
        public for Clothing1M alone, and its consistency is an average over the classes too: that of CIFAR-10 is taken
        to be so, and the weight of ours, which is a sum over them, is a tenth.
    """
    own = {"mlnt_inner_lr": 0.2, "mlnt_weight": 0.4 / 10, "mlnt_ramp_epochs": 20.0}
    return Page(
        epochs=120,
        model="preact_resnet18",
        batch=128,
        optimizer="sgd",
        lr=0.2,
        weight_decay=1e-4,
        schedule="mlnt",
        val_frac=0.1,
        own=own if method == "mlnt" else {},
    )


def mlnt_clothing1m(method: str) -> Page:
    """ResNet-50, SGD at 0.0008 in batches of 32, without augmentation: 3 epochs, a tenth after 2; one for method mlnt.

    The paper's numbers are MLNT 73.47 % and forward correction 69.84 %, from weights that ImageNet had trained.

    `train clothing1m --source DIR --paper mlnt --method mlnt`; not run by us.

    Source: Li et al. 2019, and the authors' code.
    Deviates: the net starts from nothing and will end well below the paper's numbers. Of the training images 1 % is
        held out, where the authors choose on the clean validation images. The weight of the consistency is 0 for the
        authors' first 500 steps and then grows until step 2,000; here it grows from the start. It ends at 1/14, for the
        authors' 1 weighs an average over the 14 classes too.
    """
    page = Page(
        epochs=3,
        augment=False,
        model="resnet50",
        batch=32,
        optimizer="sgd",
        lr=8e-4,
        weight_decay=1e-3,
        schedule="mlnt",
        val_frac=0.01,
    )
    if method != "mlnt":
        return page
    own = {
        "mlnt_inner_lr": 0.02,
        "mlnt_weight": 1 / 14,
        "mlnt_ramp_epochs": 2_000 * page.batch / 1_000_000,
        "mlnt_teacher_examples": page.batch,
    }
    return dataclasses.replace(page, epochs=1, schedule="constant", own=own)


def rsl_cifar(method: str) -> Page:
    """A wide ResNet, SGD at 0.1 for 200 epochs, a fiftieth after 60, 120 and 160; 5,000 images held out.

    CIFAR-10, uniform .5 / pair .4 / map .4: RSL 88.21 / 86.73 / 87.91 %, Co-teaching 85.14 / 78.18 / 80.59 %, from a
    review of the paper.

    `train cifar10 --paper rsl --law symmetric-inclusive --rate 0.5 --select rsl`; not run by us.

    Source: Gui et al. 2021 (arXiv 2106.09291), and the authors' code.
    Deviates: ReLU, where theirs is leaky with slope 0.1; batch norm's statistics move by 0.1 a step, theirs by 0.001.
    """
    return Page(
        epochs=200,
        model="wrn_28_2",
        batch=128,
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        schedule="rsl",
        val_frac=0.1,
    )


def rsl_wm_cifar(method: str) -> Page:
    """A wide ResNet, Adam at 0.002 in batches of 64 labelled images, averaged weights; 5,000 images held out.

    728 passes over 45,000 images are the authors' 500 × 1,024 steps. CIFAR-10, uniform .5 / pair .4 / map .4: RSL_WM
    93.38 / 89.27 / 91.17 %, from a review of the paper.

    `train cifar10 --paper rsl_wm --law symmetric-inclusive --rate 0.5 --select rsl --method mixmatch`; not run by us.

    Source: Gui et al. 2021, and the authors' code; Berthelot et al. 2019 (arXiv 1905.02249).
    Deviates: as `rsl_cifar`; the net that selects is trained for 200 passes as there, but by this page's optimizer in
        its batches. The average forgets a thousandth a step at the end of the run, as the authors' always does, and
        more before.
    """
    own = {"mixmatch_weight": 75.0, "mixmatch_temperature": 0.5, "mixmatch_beta": 0.75, "select_epochs": 200.0}
    return Page(
        epochs=728,
        model="wrn_28_2",
        batch=64,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.02,
        schedule="constant",
        val_frac=0.1,
        ema=512.0,
        own=own if method == "mixmatch" else {},
    )


PAPERS: Final[dict[str, dict[str, Callable[[str], Page]]]] = {
    "incv": {"cifar10": incv_cifar, "mini_webvision": incv_webvision},
    "coteaching": {"mnist": coteaching_small, "cifar10": coteaching_small, "cifar100": coteaching_cifar100},
    "mlnt": {"cifar10": mlnt_cifar, "clothing1m": mlnt_clothing1m},
    "rsl": {"cifar10": rsl_cifar, "cifar100": rsl_cifar},
    "rsl_wm": {"cifar10": rsl_wm_cifar, "cifar100": rsl_wm_cifar},
}


def page_of(paper: str, dataset: str, method: str) -> Page:
    """Return the page of a paper for a data set.

    Args:
        paper: One of `PAPERS`.
        dataset: Name of the clean set.
        method: The row of its table.

    Raises:
        UserError: If there is no such paper, or it says nothing of the data set.
    """
    check_choice("paper", paper, PAPERS)
    pages = PAPERS[paper]
    if dataset not in pages:
        raise UserError(f"--paper {paper} has settings for {', '.join(pages)}, not for {dataset}; leave it out")
    return pages[dataset](method)
