"""`xai-audit audit`."""

from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from xai_callbacks.cli.output import OK, console, progress, say, write_json
from xai_callbacks.errors import ConfigurationError

# With several devices, or machines as torchrun or a cluster starts them, each process takes its share.
_TRAINER = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "precision": "32-true", "strategy": "auto"}


def audit_arguments(parser: ArgumentParser) -> None:
    """Add the options of `audit`; those of the auditor are the arguments of `Auditor`."""
    from xai_callbacks.audit import Auditor
    from xai_callbacks.rules import Rule

    rules = "Rules and sentences that each audit is held against; by default an AlarmRule where a cue is tried."
    checkpoints = "Files of weights, or names such as timm/resnet18."
    # Without a default, so that a configuration file may have them.
    parser.add_argument("checkpoints", nargs="*", type=str, metavar="CHECKPOINT", default=SUPPRESS, help=checkpoints)
    parser.add_argument("--probes", type=str, required=True, help="File of a probe set.")
    parser.add_argument("--out", type=str, required=True, help="Folder: a history for each checkpoint, and the probes.")
    parser.add_argument("--model", type=str, help="Class, factory or name of the model that the weights belong to.")
    parser.add_argument("--hparams", type=dict[str, Any], default={}, help="What the model is made with.")
    parser.add_argument("--weights", type=Literal["averaged", "raw"], help="Which ones, where a file has both.")
    parser.add_argument("--trust", action="store_true", help="Read files that may execute anything when they are read.")
    for name, default in _TRAINER.items():
        parser.add_argument(f"--{name}", type=int | str, default=default, help="Of Lightning's Trainer.")
    parser.add_argument("--rules", type=list[Rule | str | dict[str, str]] | None, help=rules)
    parser.add_class_arguments(Auditor, "auditor", skip={"probes"}, instantiate=False)


def audit(args: Any) -> int:
    r"""Audit checkpoints on the same probes, each into a history of its own; what was audited before is kept.

    Examples:
      xai-audit audit a.ckpt b.ckpt --model my_project.Classifier --probes probes.safetensors --out audits
      xai-audit audit *.pt --model timm/resnet50 --probes probes.safetensors --out audits --devices 4
      xai-audit audit a.ckpt --model my_project.Classifier --probes probes.safetensors --out audits \
          --auditor.explainers+=GradCAM --auditor.explainers+=Occlusion
      xai-audit audit --config configs/sweep.yaml
    """
    from xai_callbacks._lightning import Callback, new_trainer
    from xai_callbacks.audit import Auditor
    from xai_callbacks.callbacks import audit_checkpoints
    from xai_callbacks.checkpoints import Checkpoint
    from xai_callbacks.measures import Localization, Representations
    from xai_callbacks.rules import AlarmRule

    sources = args.get("checkpoints") or []
    if not sources:
        raise ConfigurationError("Expected checkpoints, but got none. See xai-audit audit --help.")
    given = {name: getattr(args, name) for name in ("model", "hparams", "weights", "trust")}
    checkpoints = dict(zip(names_of(sources), (Checkpoint(source, **given) for source in sources), strict=True))
    # There is one audit of each, so that none can be confirmed by the next.
    rules = [AlarmRule(audits=1)] if args.rules is None and args.auditor.trials else args.rules
    # Representations cost nothing, and are what CKA of layers is made of.
    measures = [Localization(), Representations()] if args.auditor.measures is None else args.auditor.measures
    auditor = Auditor(args.probes, **{**vars(args.auditor), "measures": measures})
    quiet = ("logger", "enable_checkpointing")
    with progress("auditing") as bar:

        class Bar(Callback):
            def on_validation_batch_end(self, *given: Any) -> None:
                bar(given[4] + 1, len(sources))

        trainer = new_trainer(
            **{name: getattr(args, name) for name in _TRAINER},
            **dict.fromkeys((*quiet, "enable_model_summary", "enable_progress_bar"), False),
            callbacks=[Bar()],
        )
        found = audit_checkpoints(checkpoints, auditor, args.out, rules=rules, trainer=trainer)
    if not trainer.is_global_zero:
        return OK
    if args.json:
        write_json({name: {"folder": str(each.folder), "metrics": each[-1].metrics} for name, each in found.items()})
        return OK
    for name, history in found.items():
        say(console(), f"{name}: {history[-1]}")
    say(console(), f"Next: xai-audit compare {args.out}", "dim")
    return OK


def names_of(sources: Sequence[str]) -> list[str]:
    """Short names, all different, that folders can have: stems, or else those parts of the paths that differ."""
    stems = [Path(source).stem for source in sources]
    if len(set(stems)) < len(stems):
        parts = [Path(source).with_suffix("").parts for source in sources]
        alike = {part for part in parts[0] if all(part in each for each in parts)}
        stems = ["-".join(part for part in each if part not in alike) for each in parts]
    safe = ["".join(char if char.isalnum() or char in "_.-" else "_" for char in stem) for stem in stems]
    return safe if len(set(safe)) == len(safe) else [f"{place}-{name}" for place, name in enumerate(safe)]
