"""Words for normal and anomalous images, in names of folders and in label columns."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


NORMAL_NAMES = frozenset({"good", "ok", "normal", "nominal"})
ANOMALOUS_NAMES = frozenset({"anomalous", "anomaly", "abnormal", "bad", "ko", "ng", "defect", "defective", "damaged"})
# In the form of `simplify`. German and Spanish words as they are used on production lines.
_NORMAL = NORMAL_NAMES | frozenset(
    {"acceptable", "accept", "accepted", "clean", "conform", "conforming", "faultless", "flawless"}
    | {"healthy", "i o", "in order", "intact", "io", "nondefect", "nondefective", "okay", "pass", "passed"}
    | {"passing", "qualified", "undamaged", "unbroken", "gut", "bueno", "bon", "within spec", "in spec"}
)
_ANOMALOUS = ANOMALOUS_NAMES | frozenset(
    {"abnormality", "anomalies", "anomal", "broken", "defects", "disease", "diseased"}
    | {"fail", "failed", "failing", "failure", "failures", "fault", "faults", "faulty", "flaw", "flaws", "flawed"}
    | {"n i o", "nio", "nok", "no ok", "nonconforming", "notgood", "notok", "nogood", "reject"}
    | {"rejected", "rejects", "scrap", "sick", "ill", "unhealthy", "unacceptable", "unqualified", "not in order"}
    | {"ausschuss", "defekt", "schlecht", "malo", "out of spec", "n ok", "n g", "nonok", "abnormalities", "defectives"}
)
# Labels that are no type of defect.
NO_TYPE_WORDS = ANOMALOUS_NAMES | frozenset(
    {"nok", "nio", "n i o", "fail", "failed", "faulty", "fault", "reject", "rejected", "not ok", "not good", "no ok"}
    | {"defects", "anomalies", "unhealthy", "diseased", "scrap"}
)
# Words that people use for either class, or for something else.
_AMBIGUOUS = frozenset({"positive", "negative", "positives", "negatives", "pos", "neg", "none"})
# Labels that mean "not known".
_MISSING = frozenset(
    {
        "",
        "?",
        "??",
        "???",
        "-",
        "--",
        "n/a",
        "na",
        "nan",
        "null",
        "unknown",
        "unk",
        "unlabeled",
        "unlabelled",
        "undefined",
    }
    | {"undecided", "unsure", "uncertain", "not labeled", "not labelled", "tbd", "todo", "#n/a", "<na>", "not known"}
)
# Folders that are no class: caches, results and images nobody has sorted.
_NO_CLASS = frozenset(
    {
        "pycache",
        "thumb",
        "thumbs",
        "thumbnail",
        "thumbnails",
        "cache",
        "caches",
        "cached",
        "preview",
        "previews",
        "icons",
    }
    | {
        "heatmap",
        "heatmaps",
        "anomaly map",
        "anomaly maps",
        "map",
        "maps",
        "result",
        "results",
        "output",
        "outputs",
        "out",
    }
    | {"prediction", "predictions", "pred", "preds", "overlay", "overlays", "visualization", "visualizations"}
    | {
        "visualisation",
        "visualisations",
        "vis",
        "viz",
        "plots",
        "figures",
        "reports",
        "report",
        "debug",
        "log",
        "logs",
    }
    | {
        "runs",
        "checkpoint",
        "checkpoints",
        "weights",
        "models",
        "tmp",
        "temp",
        "backup",
        "backups",
        "trash",
        "deleted",
    }
    | {"ignore", "ignored", "exclude", "excluded", "unlabeled", "unlabelled", "unknown", "unsorted", "unsure"}
    | {
        "uncertain",
        "undecided",
        "to check",
        "to label",
        "todo",
        "sheets",
        "scores",
        "features",
        "embeddings",
        "notebooks",
    }
    | {"docs", "doc", "scripts", "code", "src", "node modules", "venv", "lost+found", "json", "xml", "txt", "csv"}
)
_NOUNS = (
    r"(?:images?|imgs?|photos?|pictures?|pics?|parts?|samples?|examples?|pieces?|items?|units?|products?|data|sets?|"
    r"class|classes|cases?|files?|frames?|scans?|ones|objects?|type|types)"
)
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_OPPOSITE = re.compile(r"(?:no|not|non|without|free of|zero|nicht|kein|keine|sin|sans|ohne) (?P<word>.+)")


def simplify(name: str) -> str:
    """Name in lower case, with one space in place of spaces, underscores, dots and hyphens."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_.\-]+", " ", text).strip()


def split_name(name: str) -> str | None:
    """Split that a folder or value is called after: train, test or validation. None for other names."""
    return _SPLITS.get(name.strip().lower())


def is_missing_word(word: str) -> bool:
    """Whether a label means that the label is not known."""
    return word.strip().lower() in _MISSING


def is_ambiguous_word(word: str) -> bool:
    """Whether a label is used for either class, such as `positive`."""
    return simplify(word) in _AMBIGUOUS


def is_no_class(name: str) -> bool:
    """Whether folders with this name hold caches, results or unsorted images, not a class."""
    return simplify(name) in _NO_CLASS


def _label(text: str) -> int | None:
    if text in _NORMAL or text in _ANOMALOUS:
        return int(text in _ANOMALOUS)
    if (found := _OPPOSITE.fullmatch(text)) is not None and (opposite := _label(found["word"])) is not None:
        return 1 - opposite
    if (found := re.fullmatch(r"(?P<word>.+) free|with (?P<more>.+)", text)) is not None:
        inner = _label(found["word"] or found["more"])
        return inner if inner is None or found["more"] else 1 - inner
    return None


def word_label(name: str) -> tuple[int | None, bool]:
    """
    Label that a word stands for.

    Args:
        name (`str`): name of a folder or value of a column, such as `good`, `not_ok`, `0_good` or `bad images`.

    Returns:
        `tuple[int | None, bool]`: 0 normal, 1 anomalous, None unknown, and whether the reading is a guess, as for
        `good_2` and for names that end with a space.
    """
    text = simplify(name)
    padded = name != name.strip()
    forms = [text]
    plain = re.sub(r"^\d+ ?", "", text)
    forms.append(plain)
    forms.append(re.sub(rf" {_NOUNS}$", "", re.sub(rf"^{_NOUNS} ", "", plain)))
    forms += [form[:-1] for form in forms if form.endswith("s") and len(form) > 2]
    for form in forms:
        if (label := _label(form)) is not None:
            return label, padded
    copy = re.sub(r" ?\(?(?:\d+|copy|kopie|new|old)\)?$", "", plain)
    if copy and copy != plain and (label := word_label(copy)[0]) is not None:
        return label, True
    return None, False


@dataclass(frozen=True)
class ClassNames:
    """
    Which names of folders and labels mean normal and anomalous.

    Args:
        normal (`tuple[str, ...]`, *optional*): names that the user calls normal.
        anomalous (`tuple[str, ...]`, *optional*): names that the user calls anomalous.
    """

    normal: tuple[str, ...] | None = None
    anomalous: tuple[str, ...] | None = None

    @classmethod
    def of(cls, normal: Sequence[str] | None, anomalous: Sequence[str] | None) -> "ClassNames":
        """
        Check the names that the user has chosen.

        Raises:
            ValueError: if an argument is a string or empty, or if a name is in both.
        """
        found = []
        for argument, names in (("normal_labels", normal), ("anomalous_labels", anomalous)):
            if isinstance(names, str):
                raise ValueError(f"{argument} is the string {names!r}; expected a list such as [{names!r}].")
            if names is not None and not len(names):
                raise ValueError(f"{argument} is empty; expected one or more names, or None.")
            found.append(None if names is None else tuple(str(name).strip().casefold() for name in names))
        both = set(found[0] or ()) & set(found[1] or ())
        if both:
            raise ValueError(f"{min(both)!r} is in normal_labels and in anomalous_labels; expected it in one of them.")
        return cls(*found)

    @property
    def given(self) -> bool:
        """Whether the user has chosen names."""
        return self.normal is not None or self.anomalous is not None

    def lists(self, name: str) -> bool:
        """Whether the user has chosen this name."""
        return name.strip().casefold() in {*(self.normal or ()), *(self.anomalous or ())}

    def label(self, name: str) -> tuple[int | None, bool]:
        """
        Label of a class folder.

        Args:
            name (`str`): name of the folder.

        Returns:
            `tuple[int | None, bool]`: 0, 1 or None if the name says nothing, and whether it is a guess.
        """
        if self.given:
            key = name.strip().casefold()
            if key in (self.normal or ()):
                return 0, False
            if key in (self.anomalous or ()):
                return 1, False
            if self.normal is not None and self.anomalous is None and not is_no_class(name):
                return 1, False
            if self.normal is not None:
                return None, False
        return word_label(name)


__all__ = [
    "ANOMALOUS_NAMES",
    "NORMAL_NAMES",
    "NO_TYPE_WORDS",
    "ClassNames",
    "is_ambiguous_word",
    "is_missing_word",
    "is_no_class",
    "simplify",
    "split_name",
    "word_label",
]
