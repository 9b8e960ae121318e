"""What each of several processes does in a search; started by ``torch.distributed.run``, writes ``rankN.json``."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from billhook.methods.greedy.end_errors import EndErrors
from billhook.methods.greedy.layer_errors import LayerErrors
from billhook.methods.greedy.shrinking_sides import ConvErrors
from methods.problems import carry_out, ready
from training.rank_script import digest

CASES = {
    "hbgs": {"method": "hbgs"},
    "hbgts": {"method": "hbgts", "stale": 2},
    "blocks": {"method": "hbgs", "network": "resnet20", "budget": "channels<=40%"},
    "tuned": {"method": "hbgts", "finetune_every": 3, "epochs": 20.0},
    "pointwise": {"method": "hbgs", "compensation": "pointwise"},
    "accuracy": {"method": "fp-omp-search", "step": 2},
}


def searched(name: str) -> dict[str, object]:
    """The groups that were chosen with the errors compared, how many of them here, and a digest of the network."""
    looked: list[str] = []
    for kind in (EndErrors, LayerErrors, ConvErrors):
        real = kind.__dict__.get("_real", kind.measure)

        def measure(self, candidates, *more, _real=real, **named):
            looked.extend(candidates)
            return _real(self, candidates, *more, **named)

        kind._real, kind.measure = real, measure
    fields = {"finetune_every": 0, "calibration": 8, "selection": 8, "step": 0.25} | CASES[name]
    done = carry_out(
        ready(fields.pop("network", "ragged"), fields.pop("method"), fields.pop("budget", "params<=60%"), **fields)
    )
    rounds = [line for line in done.outcome.history if line["event"] == "round"]
    return {
        "chosen": [[line["group"], line["kept"]] for line in rounds],
        "errors": [line["errors"] for line in rounds],
        "looked": len(looked),
        "state": digest(done.outcome.module),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {name: searched(name) for name in CASES}
    from accelerate import PartialState

    (folder / f"rank{PartialState().process_index}.json").write_text(json.dumps(found))
