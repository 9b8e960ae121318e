"""What each of several processes does; started by ``torch.distributed.run``, writes ``rankN.pt`` into its argument."""

import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from billhook.errors import RunError
from billhook.scores import mean_absolute_gradient
from billhook.training.config import TrainConfig
from billhook.training.loop import Task, fit
from training.small import TinyNet, data, preprocess, room, seeded


def digest(module: torch.nn.Module) -> str:
    """Hash of every parameter and buffer."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def main(folder: Path) -> None:
    """Saliency, a short training, and a failure of one process only."""
    here, images = room(), data()
    net = seeded(TinyNet)
    saliency = mean_absolute_gradient(
        net, dict(net.named_parameters()), images.train, preprocess(), here, micro_batch=5
    )
    task = Task(
        module=net,
        train=images.train,
        validation=images.val,
        kept=images.kept,
        preprocess=preprocess(),
        config=TrainConfig(batch_size=12, lr=0.05, ema=0.9),
        steps=7,
        seed=7,
        phase="train",
    )
    history = fit(task, here)
    done = {"saliency": saliency, "state": digest(task.module), "loss": [line["loss"] for line in history]}

    task.module = seeded(TinyNet)
    if here.rank == 1:
        task.module.fc.register_forward_hook(lambda module, args, output: output * float("nan"))
    try:
        fit(task, here)
    except RunError as error:
        done["error"] = error.message
    try:
        here.first(lambda: 1 / 0)
    except (RunError, ZeroDivisionError) as error:
        done["first"] = type(error).__name__
    done["any"] = [here.any(here.rank == 1), here.any(False)]
    done["from_first"] = here.from_first(lambda: {"rank": here.rank})
    torch.save(done, folder / f"rank{here.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
