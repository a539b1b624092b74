"""The explainers that `bench_interference.py` attaches, each called as its own documentation shows.

Three kindnesses to the plain callbacks, so that the table shows what remains when an author has found the first errors
out: they are called under `torch.enable_grad()` (Lightning validates under `no_grad`), not during the sanity check, and
what they raise is caught, so that training goes on.

Two libraries are clean when an author puts every single submodule back in the mode it was in (captum, torch-cam); the
rows "eval()/train()" show the shorter habit.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from _interference_runs import Digits, DigitsModule, Hook, SmallResNet, first_line
from pytorch_lightning import Callback, Trainer
from torch import Tensor

Explain = Callable[[SmallResNet, Tensor, Tensor, Tensor], object]
"""`(net, images, labels, background)` -> heatmaps, which the bench throws away."""

OURS = "xai_callbacks"


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Attributes:
        key: name for `--tools`.
        title: name in the table.
        package: importable package that must be there; None if nothing is needed.
        distribution: name on the package index, for the version.
        attach: makes the callback; None attaches nothing.
        hooks: the hooks at which the row makes sense.
    """

    key: str
    title: str
    package: str | None
    distribution: str | None
    attach: Callable[[Digits, Hook], Callback] | None
    hooks: tuple[Hook, ...] = ("on_validation_end", "on_train_epoch_end")

    def installed(self) -> bool:
        """Whether the package can be imported."""
        try:
            return self.package is None or importlib.util.find_spec(self.package) is not None
        except ModuleNotFoundError:  # a parent of a dotted name is missing
            return False

    def versions(self) -> dict[str, str]:
        """`{distribution: version}`, empty if nothing is needed or the package is not installed."""
        if self.package is None or self.distribution is None or not self.installed():
            return {}
        try:
            return {self.distribution: version(self.distribution)}
        except PackageNotFoundError:  # importable from a checkout
            return {self.distribution: str(getattr(importlib.import_module(self.package), "__version__", "unknown"))}


class ExplainerCallback(Callback):
    """The plain callback that users write: at one hook, explain a few fixed images."""

    def __init__(self, explain: Explain, digits: Digits, hook: Hook, toggle_mode: bool) -> None:
        self.explain, self.digits, self.hook, self.toggle_mode = explain, digits, hook, toggle_mode
        self.calls = 0
        self.errors: list[str] = []

    def on_validation_end(self, trainer: Trainer, pl_module: DigitsModule) -> None:  # type: ignore[override]
        """Explain, if this is the hook of the scenario."""
        if self.hook == "on_validation_end" and not trainer.sanity_checking:
            self._call(pl_module.net)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: DigitsModule) -> None:  # type: ignore[override]
        """Explain, if this is the hook of the scenario."""
        if self.hook == "on_train_epoch_end":
            self._call(pl_module.net)

    def _call(self, net: SmallResNet) -> None:
        images, labels = self.digits.probes
        if self.toggle_mode:
            net.eval()
        try:
            with torch.enable_grad():
                self.explain(net, images.clone(), labels.clone(), self.digits.background.clone())
            self.calls += 1
        except Exception as error:
            self.errors.append(first_line(error))
        if self.toggle_mode:
            net.train()


def plain(explain: Explain, toggle_mode: bool = False) -> Callable[[Digits, Hook], Callback]:
    """A plain callback around `explain`, optionally with the habitual `net.eval()` before and `net.train()` after."""
    return lambda digits, hook: ExplainerCallback(explain, digits, hook, toggle_mode)


def pytorch_grad_cam(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows the README of pytorch-grad-cam, "Usage examples". The constructor itself calls `model.eval()`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model=net, target_layers=[net.backbone[-1]]) as cam:
        return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(label)) for label in labels])


def captum_layer_grad_cam(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows the example in captum's API page of `LayerGradCam` (docs: Algorithms, Layer Attribution, GradCAM)."""
    from captum.attr import LayerAttribution, LayerGradCam

    maps = LayerGradCam(net, net.backbone[-1]).attribute(images, labels)
    return LayerAttribution.interpolate(maps, (32, 32))


def captum_gradient_shap(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows captum's README, "Getting Started": the same `stdevs` and `n_samples`, a set of baselines."""
    from captum.attr import GradientShap

    return GradientShap(net).attribute(images, stdevs=0.09, n_samples=4, baselines=background, target=labels)


def torch_cam(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows the README of torch-cam, "Retrieving the class activation map"; classes as a list, as for batches."""
    from torchcam.methods import LayerCAM

    with LayerCAM(net, target_layer=net.backbone[-1]) as extractor:
        scores = net(images)
        return extractor(labels.tolist(), scores)


def shap_deep_explainer(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows shap's notebook "PyTorch Deep Explainer MNIST example"."""
    import shap

    return shap.DeepExplainer(net, background).shap_values(images)


def shap_gradient_explainer(net: SmallResNet, images: Tensor, labels: Tensor, background: Tensor) -> object:
    """Follows shap's notebook "Explain an Intermediate Layer of VGG16 on ImageNet (PyTorch)", at the input."""
    import shap

    return shap.GradientExplainer(net, background).shap_values(images, ranked_outputs=2, nsamples=20)


def audit_callback(every_n_train_steps: int | None = None) -> Callable[[Digits, Hook], Callback]:
    """Ours, as in its README, with a mask so that all metrics run; a failing audit must be seen, not warned about."""

    def attach(digits: Digits, hook: Hook) -> Callback:
        from xai_callbacks import AuditCallback, ProbeSet, Schedule

        images, labels = digits.probes
        probes = ProbeSet.from_tensors(images, labels, masks={"core": images.mean(dim=1) > 0.3})
        return AuditCallback(probes, schedule=Schedule(every_n_train_steps=every_n_train_steps), on_error="raise")

    return attach


AT_TRAIN_EPOCH_END: tuple[Hook, ...] = ("on_train_epoch_end",)

TOOLS = (
    Tool("nothing", "nothing, again (control)", None, None, None),
    Tool("audit", "xai_callbacks AuditCallback", OURS, "xai-callbacks", audit_callback()),
    Tool("audit-steps", "AuditCallback, every 2 steps too", OURS, "xai-callbacks", audit_callback(2)),
    Tool("grad-cam", "pytorch-grad-cam GradCAM", "pytorch_grad_cam", "grad-cam", plain(pytorch_grad_cam)),
    Tool("captum-cam", "captum LayerGradCam", "captum", "captum", plain(captum_layer_grad_cam)),
    Tool("captum-shap", "captum GradientShap", "captum", "captum", plain(captum_gradient_shap)),
    Tool("torch-cam", "torch-cam LayerCAM", "torchcam", "torchcam", plain(torch_cam)),
    Tool("shap-deep", "shap DeepExplainer", "shap", "shap", plain(shap_deep_explainer)),
    Tool("shap-gradient", "shap GradientExplainer", "shap", "shap", plain(shap_gradient_explainer)),
    # In train mode a careful author switches to eval mode and back; during validation Lightning has done so already.
    Tool(
        "grad-cam-toggle",
        "pytorch-grad-cam GradCAM, eval()/train()",
        "pytorch_grad_cam",
        "grad-cam",
        plain(pytorch_grad_cam, toggle_mode=True),
        AT_TRAIN_EPOCH_END,
    ),
    Tool(
        "captum-cam-toggle",
        "captum LayerGradCam, eval()/train()",
        "captum",
        "captum",
        plain(captum_layer_grad_cam, toggle_mode=True),
        AT_TRAIN_EPOCH_END,
    ),
    Tool(
        "torch-cam-toggle",
        "torch-cam LayerCAM, eval()/train()",
        "torchcam",
        "torchcam",
        plain(torch_cam, toggle_mode=True),
        AT_TRAIN_EPOCH_END,
    ),
)
