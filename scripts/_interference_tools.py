"""The explainers that `bench_interference.py` attaches, each called as its own documentation shows.

Two libraries are clean when an author puts every single submodule back in the mode it was in (captum, torch-cam); the
rows "eval()/train()" show the shorter habit.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pytorch_lightning import Callback
from torch import Tensor

from xai_callbacks.doctor.digits import Digits, DigitsModule, SmallResNet
from xai_callbacks.doctor.training import ExplainerCallback, Hook

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


def plain(explain: Explain, toggle_mode: bool = False) -> Callable[[Digits, Hook], Callback]:
    """A plain callback around `explain`, optionally with the habitual `net.eval()` before and `net.train()` after."""

    def attach(digits: Digits, hook: Hook) -> Callback:
        def call(module: DigitsModule, images: Tensor, labels: Tensor) -> None:
            if toggle_mode:
                module.net.eval()
            try:
                explain(module.net, images, labels, digits.background.clone())
            finally:
                if toggle_mode:
                    module.net.train()

        return ExplainerCallback(call, hook, *digits.probes)

    return attach


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
