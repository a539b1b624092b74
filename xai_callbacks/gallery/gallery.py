"""`Gallery`: the pictures of a history."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import NoneType

import numpy as np

from xai_callbacks.errors import AuditError, require_instance, require_integer, require_name
from xai_callbacks.gallery.evidence import clusters, most_novel, quadrants
from xai_callbacks.gallery.heat import color_scale
from xai_callbacks.gallery.pages import all_probes, comparable_audits, filmstrip, overview, panel
from xai_callbacks.gallery.words import answer, tone, truth, when
from xai_callbacks.history import History
from xai_callbacks.metrics import Threshold
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import ColorScale, encoded


@dataclass(frozen=True, eq=False)
class Picture:
    """One drawing of one audit, drawn once and shown by every sink.

    Attributes:
        tag: Such as `audit_panel/003_cat`; of equal tags the later step continues the earlier one.
        pixels: `(H, W, 3)` uint8.
        step: Step of the audit.
        caption: One line in words, for sinks that show one and as alternative text.
    """

    tag: str
    pixels: np.ndarray
    step: int
    caption: str = ""

    @cached_property
    def encoded(self) -> bytes:
        """See `render.encoded`; encoded once."""
        return encoded(self.pixels)

    @property
    def mime(self) -> str:
        """Media type of `encoded`: `image/jpeg` or `image/png`."""
        return "image/jpeg" if self.encoded.startswith(b"\xff\xd8") else "image/png"

    @property
    def suffix(self) -> str:
        """What names of files of `encoded` end with: `.jpg` or `.png`."""
        return ".jpg" if self.mime == "image/jpeg" else ".png"


class Gallery:
    """Draws the latest audit of a history; remembers nothing.

    | tag | what it shows |
    |---|---|
    | `<name>/0_overview` | at a glance: what was found in few words, and the worst of the drawn probes |
    | `<name>/1_all_probes` | all drawn probes, wrong ones first, and what was found in full |
    | `<name>_panel/<number>_<probe>` | one probe: a tile for each question, a row for each explainer |
    | `<name>_filmstrip/<number>_<probe>` | one probe over up to eight audits whose maps are of one kind |
    | `<name>_summary/most_novel_<score>` | the most novel probes, and how novel they were at earlier audits |
    | `<name>_summary/cue_<cue>` | each probe by how much it is looked at and how much it is used |
    | `<name>_summary/clusters_<class>` | kinds of heatmaps within a class |

    Pictures are 368 pixels wide (filmstrips 296), so that their type can be read in the cards of image viewers. With 16
    probes, three questions and one explainer an audit takes some 1.5 MB as JPEG, however many came before.

    Args:
        probes: The probe set.
        max_panels: Most probes drawn; beyond, probes evenly spaced through the set, which `ProbeSet.from_dataset`
            orders by class. Pages about scores, cues and kinds of heatmaps choose from all.
        name: What all tags begin with; audits in one logger need different ones.
        scale: Colour scale of all heatmaps; None for `color_scale(probes)`. Give a smaller limit for nets with weak
            heat: the colour bar says when little of the scale is used.
        found: Threshold above which the regions that a map finds are outlined on panels; None outlines none.

    Raises a `ConfigurationError` if an argument is of a wrong type or out of range.
    """

    def __init__(
        self,
        probes: ProbeSet,
        *,
        max_panels: int = 16,
        name: str = "audit",
        scale: ColorScale | None = None,
        found: Threshold | None = None,
    ) -> None:
        require_instance("probes", probes, ProbeSet, "a ProbeSet")
        require_integer("max_panels", max_panels, minimum=0, hint="0 draws none.")
        require_name("`name`", name)
        require_instance("scale", scale, (ColorScale, NoneType), "a ColorScale or None")
        require_instance("found", found, (Threshold, NoneType), 'a Threshold such as Threshold("otsu"), or None')
        self.probes, self.name, self.scale, self.found = probes, name, scale or color_scale(probes), found
        places = np.linspace(0, len(probes) - 1, min(max_panels, len(probes)))
        self.drawn = [round(place) for place in places]

    def draw(self, history: History) -> Iterator[Picture]:
        """Draw `history.last`, one picture after another as they are taken.

        Earlier audits are taken from those whose tensors are kept, of the same probes. Raises an `AuditError` if the
        latest is of other probes.
        """
        record = history.last
        if record is None or record.thinned or not self.drawn:
            return
        if len(record.names) != len(self.probes) or record.fingerprint not in ("", self.probes.fingerprint):
            raise AuditError(
                f"Expected an audit of the probes {self.probes.fingerprint}, but the latest is of "
                f"{record.fingerprint}. Draw it with a Gallery of its own probes."
            )
        audits = [each for each in history.kept().comparable(record) if not each.thinned]
        for tag, pixels, words in self._pages(record, audits):
            yield Picture(self.name + tag, pixels, record.step, f"{' '.join(words.split())}; {when(record)}")

    def _pages(self, record: AuditRecord, audits: list[AuditRecord]) -> Iterator[tuple[str, np.ndarray, str]]:
        """Tag, pixels and caption of each."""
        probes, scale = self.probes, self.scale
        if record.outputs is not None:
            yield from self._of_probes(record, comparable_audits(audits, record))
        for score in record.scores:
            page = most_novel(probes, audits, score, scale)
            yield f"_summary/most_novel_{score}", page, f"most novel probes by {score}"
        for cue, page in quadrants(probes, record, scale):
            yield f"_summary/cue_{cue}", page, f"cue {cue}: looked at or used"
        for kind, page in clusters(probes, record, scale):
            yield f"_summary/clusters_{kind}", page, f"kinds of heatmaps of class {kind}"

    def _of_probes(self, record: AuditRecord, alike: list[AuditRecord]) -> Iterator[tuple[str, np.ndarray, str]]:
        probes, scale = self.probes, self.scale
        wrong = [probes.names[index] for index in self.drawn if tone(record, index) == "wrong"]
        words = f"wrong: {', '.join(wrong)}" if wrong else "no wrong answer among the probes drawn"
        for tag, draw in (("/0_overview", overview), ("/1_all_probes", all_probes)):
            yield tag, draw(probes, record, self.drawn, scale), f"overview of {len(self.drawn)} probes; {words}"
        steps = ", ".join(str(each.step) for each in alike)
        for index in self.drawn:
            tag = f"{index:03d}_{probes.names[index]}"
            said = [f"says {answer(probes, record, index)}", truth(probes, index)]
            words = ", ".join(filter(None, [probes.names[index], *said]))
            yield f"_panel/{tag}", panel(probes, record, index, scale, self.found), words
            if alike:
                yield f"_filmstrip/{tag}", filmstrip(probes, alike, index, scale), f"{words}; audits at steps {steps}"
