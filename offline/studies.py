"""The studies: what the rows of each differ in, and what the paper has there. Knows not how they are run.

The paper's numbers are Hit@5 on Amazon data against 100 random items (Sport / Art): another protocol, other models,
other data. They stand there for the order of the rows, not for their height.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One configuration of a study."""

    label: str
    overrides: tuple[str, ...] = ()
    """As after `--set`."""
    paper: str = ""
    """Hit@5 of the same row in the paper, Sport / Art."""


@dataclass(frozen=True)
class Study:
    title: str
    rows: tuple[Row, ...]
    """The others are compared with the first."""


def _fields(*names: str) -> str:
    return "prompt.fields=[" + ", ".join(f'"{name}"' for name in names) + "]"


def _signals(*names: str) -> str:
    return "heads.signals=[" + ", ".join(f'"{name}"' for name in names) + "]"


_NO_RISA = "train.risa_weight=0"

_PAPER_RECIPE = (
    'heads.parts=["language_model"]',
    _fields("title", "image"),
    'heads.state_norm="none"',
    "heads.normalize_features=false",
    "heads.dropout=0",
    'heads.missing_cf="zero"',
    'train.loss="bce"',
    'train.tails="last"',
    "train.risa_weight=1",
    "train.learning_rate=1e-3",
    "train.batch_size=32",
    "train.steps=200",
    "train.warmup_steps=20",
    "train.validate_every=40",
    "train.head_epochs=0",
)
"""h([REC]) alone, trained as published for as long as fits: 6,400 windows."""

STUDIES = {
    "recipe": Study(
        "The default recipe beside the paper's, on the same small models",
        (Row("default recipe"), Row("the paper's recipe", _PAPER_RECIPE)),
    ),
    "representations": Study(
        "What the prompt shows of an item (paper, Table 1 and Appendix C)",
        (
            Row("image token (I-LLMRec)", (_fields("title", "image"),), ".4570 / .5883"),
            Row("image and CF token", (_fields("title", "image", "cf"),)),
            Row("title alone", (_fields("title"),)),
            Row("attributes (TALLRec)", (_fields("title", "brand", "category"),), ".3801 / .5663"),
            Row("CF token (A-LLMRec)", (_fields("title", "cf"),), ".4070 / .5681"),
            Row("description (TRSR)", (_fields("title", "description"), "prompt.max_tokens=2048"), ".4302 / .5841"),
            Row("summary (TRSR)", (_fields("title", "summary"),)),
            Row(
                "image token and description (I-LLMRec+D)",
                (_fields("title", "image", "description"), "prompt.max_tokens=2048"),
                ".4554 / .5902",
            ),
            Row("image token without title", (_fields("image"),)),
            Row("one token of all signals (Speeder)", (_fields("item"),)),
            Row("the same, signals learned in turn", (_fields("item"), "train.progressive=true")),
        ),
    ),
    "ablation": Study(
        "Signals and alignment (paper, Table 3, rows a to h)",
        (
            Row("(h) all signals", (), ".4570 / .5883"),
            Row("(a) image, no RISA", (_signals("image"), _NO_RISA), ".3953 / .5040"),
            Row("(b) image", (_signals("image"),), ".4316 / .5564"),
            Row("(c) CF", (_signals("cf"),), ".4075 / .5502"),
            Row("(d) text", (_signals("text"),), ".4178 / .5522"),
            Row("(e) image and CF", (_signals("image", "cf"),), ".4491 / .5795"),
            Row("(f) image and text", (_signals("image", "text"),), "(f) or (g): .4442 / .5786"),
            Row("(g) CF and text", (_signals("cf", "text"),), "(f) or (g): .4494 / .5790"),
        ),
    ),
    "training": Study(
        "How the language model's part is trained",
        (
            Row("the configuration"),
            Row("no RISA", (_NO_RISA,)),
            Row("two stages", ("train.two_stage=true",), ".4604 / .5858"),
            Row("BCE (the paper's loss)", ('train.loss="bce"',)),
            Row("one tail a window", ('train.tails="last"',)),
            Row("adaptor untrained", ("train.steps=0",)),
        ),
    ),
    "context": Study(
        "Tokens of context",
        tuple(Row(f"{num} tokens", (f"prompt.max_tokens={num}",)) for num in (1024, 256, 512, 2048, 4096)),
    ),
    "missing-images": Study(
        "Pictures that are missing (paper: .4570 to .4451, .5883 to .5805, with SigLIP's text tower in their place)",
        tuple(
            Row(f"{share:.0%} of the pictures missing", (f"ablate.missing_images={share}",))
            for share in (0.0, 0.25, 0.5, 1.0)
        ),
    ),
    "grown-catalog": Study(
        "A catalog that grew after training: half of the items are new (paper, Phone: .370 against .463 retrained)",
        (
            Row("trained on all items"),
            Row("half are new, rescaled by 2", ("ablate.hidden_items=0.5",)),
            Row("half are new, zero", ("ablate.hidden_items=0.5", 'heads.missing_cf="zero"')),
            Row("half are new, predicted", ("ablate.hidden_items=0.5", 'heads.missing_cf="predicted"')),
        ),
    ),
    "new-items": Study(
        "What an item without CF gets",
        (
            Row("rescaled by 2", ('heads.missing_cf="rescale"', "heads.missing_cf_scale=2")),
            Row("rescaled by 1.5", ('heads.missing_cf="rescale"', "heads.missing_cf_scale=1.5")),
            Row("zero", ('heads.missing_cf="zero"',)),
            Row("mean", ('heads.missing_cf="mean"',)),
            Row("learned", ('heads.missing_cf="learned"',)),
            Row("predicted from picture and text", ('heads.missing_cf="predicted"',)),
        ),
    ),
}
