"""One rank of a site, for several tests: `python ranked.py PLAN.json OUT`, with torchrun's marks.

The first rank carries out the plan, the others follow; each writes what it saw to OUT/RANK.json.
"""

import json
import sys
from pathlib import Path

import torch

from uncurtail.lm.data import Corpus
from uncurtail.lm.manifest import Manifest
from uncurtail.lm.ranks import Ranks
from uncurtail.lm.sections import ModelSection, TrainSection
from uncurtail.lm.trainer import NonFiniteLoss, StepMetrics, Trainer, TrainOrder


class WatchedCorpus(Corpus):
    """Notes which sequences this rank takes; may spoil this rank's model before a piece of data."""

    def __init__(self, *given):
        super().__init__(*given)
        self.taken: list[list[int]] = []
        self.spoil = lambda epoch, step: None

    def batch(self, epoch, step, sequence_length, batch_sequences):
        self.taken += [[epoch, step * batch_sequences + i] for i in range(batch_sequences)]
        self.spoil(epoch, step)
        return super().batch(epoch, step, sequence_length, batch_sequences)


def do(trainer, action, out):
    """One action of the plan; what it gave, as JSON."""
    match action["do"]:
        case "train":
            steps: list[StepMetrics] = []
            after = action.get("stop_after")
            order = TrainOrder(tuple(map(tuple, action["intervals"])), action["tokens"], 1)
            try:
                result = trainer.train(
                    order, lambda: after is not None and len(steps) >= after, steps.append
                )
            except NonFiniteLoss as error:
                return {"error": str(error), "steps": len(steps)}
            return {
                "steps": result.steps,
                "sha256": result.token_sha256,
                "losses": [step.loss for step in steps],
                "norms": [step.grad_norm for step in steps],
            }
        case "evaluate":
            return trainer.evaluate()
        case "save":
            trainer.save_snapshot(out / action["name"])
            torch.save(trainer.weights(), out / f"{action['name']}.pt")
        case "load":
            trainer.load(torch.load(out / f"{action['name']}.pt"))
            return trainer.load_snapshot(out / action["name"])
        case "hang":
            (out / "hanging").touch()
            trainer.train(TrainOrder(((0, 0, 10**9),), 0, 1), lambda: False, lambda _: None)
        case unknown:
            raise ValueError(unknown)
    return None


def main(plan_file, out):
    plan = json.loads(plan_file.read_text())
    ranks = Ranks.join(plan["device"])
    folder = Path(plan["corpus"])
    corpus = WatchedCorpus(folder, Manifest.load(folder))
    train = TrainSection(**plan["train"])
    trainer = Trainer(ModelSection(**plan["model"]), train, corpus, 0, ranks)

    def spoil(epoch, piece):
        if plan["spoil"] == [epoch, piece // ranks.size] and ranks.rank == ranks.size - 1:
            with torch.no_grad():
                trainer.model.lm_head.weight[0, 0] = float("nan")

    def full(_, given):
        if len(given[0]) > plan["room"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    if "room" in plan and ranks.rank == ranks.size - 1:
        trainer.model.transformer.wte.register_forward_pre_hook(full)
    corpus.spoil = spoil
    results = []
    if ranks.first:
        results = [do(trainer, action, out) for action in plan["actions"]]
        trainer.dismiss()
    else:
        trainer.follow()
    state = {name: float(value.double().sum()) for name, value in trainer.weights().items()}
    report = {"results": results, "taken": corpus.taken, "weights": state}
    (out / f"{ranks.rank}.json").write_text(json.dumps(report))
    ranks.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
