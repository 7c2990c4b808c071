"""A method of ours, run as its peers are, in a process of its own: what it alone holds in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from one_run import ROOT, one_run, parser

command = parser()
command.add_argument("--model", required=True)
command.add_argument("--method", required=True)
command.add_argument("--fields", type=json.loads, help="other fields of its recipe")
args = command.parse_args()


def training() -> Iterator[float]:
    """Go on with a run, step after step; stage methods knows what it trains on, whatever DATA says."""
    sys.path.append(str(ROOT / "tools"))
    from benchmarks.methods import open_method
    from benchmarks.train import Net, go_on

    net = Net(args.model, 32, args.batch, 1, 0)
    run, log = open_method(net, args.method, args.fields)
    while True:
        yield go_on(run, log, net, args.threads).amount


one_run(training, args.batch, args.batches, args.warm)
