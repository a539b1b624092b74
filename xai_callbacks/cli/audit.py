"""`xai-audit audit`."""

import os
import re
import shlex
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser

from xai_callbacks.cli.output import OK, console, progress, say, write_json
from xai_callbacks.errors import ConfigurationError, first_of, in_words

if TYPE_CHECKING:
    from xai_callbacks.history import History

# With several devices, or machines as torchrun or a cluster starts them, each process takes its share.
_TRAINER = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "precision": "32-true", "strategy": "auto"}
_MOST_NAMES = 5  # of checkpoints before a note that several have


def audit_arguments(parser: ArgumentParser) -> None:
    """Add the options of `audit`; those of the auditor are the arguments of `Auditor`."""
    from xai_callbacks.audit import Auditor
    from xai_callbacks.rules import Rule

    rules = "Rules and sentences that each audit is held against; by default an AlarmRule where a cue is tried."
    checkpoints = "Files of weights, or models such as timm/resnet18; NAME=FILE for a name other than that of the file."
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
      xai-audit audit before=a/last.ckpt after=b/last.ckpt --model my_project.Classifier --probes probes.safetensors \
          --out audits
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
    checkpoints = {name: Checkpoint(source, **given) for name, source in named_sources(sources).items()}
    # There is one audit of each, so that none can be confirmed by the next.
    rules = [AlarmRule(audits=1)] if args.rules is None and args.auditor.trials else args.rules
    # Representations cost nothing, and are what CKA of layers is made of.
    measures = [Localization(), Representations()] if args.auditor.measures is None else args.auditor.measures
    auditor = Auditor(args.probes, **{**vars(args.auditor), "measures": measures})
    options = {name: getattr(args, name) for name in _TRAINER}
    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    with progress("auditing") as bar:

        class Bar(Callback):
            def on_validation_batch_end(self, *given: Any) -> None:
                bar(given[4] + 1, len(sources))

        try:
            trainer = new_trainer(**options, **dict.fromkeys(quiet, False), callbacks=[Bar()])
        except Exception as error:  # of Lightning, of any kind
            words = " ".join(f"--{name} {value}" for name, value in options.items() if value != _TRAINER[name])
            raise ConfigurationError(f"Expected what Lightning can do, but got {words}. {in_words(error)}") from error
        found = audit_checkpoints(checkpoints, auditor, args.out, rules=rules, trainer=trainer)
    if not trainer.is_global_zero:
        return OK
    if args.json:
        write_json({name: _told(each) for name, each in found.items()})
        return OK
    for name, history in found.items():
        say(console(), f"{name}: {str(history[-1]).removeprefix('AuditRecord(').removesuffix(')')}")
    for note, names in _notes(found).items():
        say(console(), f"{first_of(names, _MOST_NAMES)}: {note}")
    say(console(), f"Next: xai-audit {_next(args.out, list(found))}", "dim")
    return OK


def _told(history: "History") -> dict[str, Any]:
    record = history[-1]
    return {"folder": str(history.folder), "metrics": record.metrics, "notes": record.notes}


def _notes(found: "Mapping[str, History]") -> dict[str, list[str]]:
    """What was left out or assumed, in sentences, and the names of the checkpoints that each is about."""
    notes: dict[str, list[str]] = {}
    for name, history in found.items():
        for note in dict.fromkeys(history[-1].notes):
            notes.setdefault(note, []).append(name)
    return notes


def named_sources(words: Sequence[str]) -> dict[str, str]:
    """Sources by the name of their audit: that of NAME=FILE, or one made of the source.

    Raises a `ConfigurationError` if a name comes twice.
    """
    from xai_callbacks.checkpoints.names import is_pretrained, names_of

    given: list[tuple[str, str]] = []
    for word in words:
        name, _, source = word.partition("=")
        # Lightning calls its files epoch=5-step=276.ckpt.
        is_name = re.fullmatch(r"[\w.-]+", name) and not os.path.exists(word)
        given.append((name, source) if is_name and (os.path.exists(source) or is_pretrained(source)) else ("", word))
    made = iter(names_of([source for name, source in given if not name]))
    named = [(name or next(made), source) for name, source in given]
    names = [name for name, _ in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"Expected checkpoints of different names, but {twice[0]!r} comes twice.")
    return dict(named)


def _next(folder: str, names: Sequence[str]) -> str:
    """The command that shows these audits and no others, the first as the baseline."""
    places = [Path(folder, name) for name in names]
    others = {path.parent for path in Path(folder).rglob("audit_*.safetensors")}
    others = others.difference(place / "history" for place in places)
    paths = list(map(str, places)) if others else [folder]
    # What begins with a dash would be read as an option.
    paths = [f"./{path}" if path.startswith("-") else path for path in paths]
    if len(names) == 1:
        return shlex.join(["report", *paths])
    baseline = [f"--baseline={names[0]}"] if names[0].startswith("-") else ["--baseline", names[0]]
    return shlex.join(["compare", *paths, *([] if others else baseline)])
