"""What Canvas can draw: objects in groups of related ones, styles, backgrounds, and the captions that name them."""

from __future__ import annotations

from dataclasses import dataclass

STYLES: tuple[str, ...] = ("noto", "twemoji", "fluent", "openmoji")


@dataclass(frozen=True, kw_only=True)
class CanvasObject:
    """One thing that Canvas draws."""

    name: str
    """The word or words that captions use."""
    code_point: str
    """Unicode code point in hexadecimal, without the variation selector."""
    group: str
    """Objects of one group are each other's *related* concepts."""
    fluent: str
    """File stem in the Fluent package, which names its files by words."""


def _group(group: str, *rows: tuple[str, str, str]) -> tuple[CanvasObject, ...]:
    return tuple(CanvasObject(name=name, code_point=code, group=group, fluent=fluent) for name, code, fluent in rows)


OBJECTS: tuple[CanvasObject, ...] = (
    *_group(
        "tool",
        ("knife", "1F52A", "kitchen-knife"),
        ("fork and knife", "1F374", "fork-and-knife"),
        ("scissors", "2702", "scissors"),
        ("hammer", "1F528", "hammer"),
        ("axe", "1FA93", "axe"),
        ("wrench", "1F527", "wrench"),
        ("screwdriver", "1FA9B", "screwdriver"),
        ("saw", "1FA9A", "carpentry-saw"),
    ),
    *_group(
        "character",
        ("clown", "1F921", "clown-face"),
        ("alien monster", "1F47E", "alien-monster"),
        ("alien", "1F47D", "alien"),
        ("robot", "1F916", "robot"),
        ("ghost", "1F47B", "ghost"),
        ("skull", "1F480", "skull"),
        ("jack-o-lantern", "1F383", "jack-o-lantern"),
        ("snowman", "26C4", "snowman-without-snow"),
    ),
    *_group(
        "animal",
        ("cat", "1F431", "cat-face"),
        ("dog", "1F436", "dog-face"),
        ("fox", "1F98A", "fox"),
        ("panda", "1F43C", "panda"),
        ("lion", "1F981", "lion"),
        ("frog", "1F438", "frog"),
        ("monkey", "1F435", "monkey-face"),
        ("pig", "1F437", "pig-face"),
        ("rabbit", "1F430", "rabbit-face"),
        ("koala", "1F428", "koala"),
        ("penguin", "1F427", "penguin"),
        ("owl", "1F989", "owl"),
        ("butterfly", "1F98B", "butterfly"),
        ("turtle", "1F422", "turtle"),
        ("fish", "1F420", "tropical-fish"),
        ("octopus", "1F419", "octopus"),
    ),
    *_group(
        "vehicle",
        ("rocket", "1F680", "rocket"),
        ("car", "1F697", "automobile"),
        ("bus", "1F68C", "bus"),
        ("bicycle", "1F6B2", "bicycle"),
        ("sailboat", "26F5", "sailboat"),
        ("airplane", "2708", "airplane"),
        ("helicopter", "1F681", "helicopter"),
        ("tractor", "1F69C", "tractor"),
    ),
    *_group(
        "fruit",
        ("apple", "1F34E", "red-apple"),
        ("banana", "1F34C", "banana"),
        ("strawberry", "1F353", "strawberry"),
        ("watermelon", "1F349", "watermelon"),
        ("grapes", "1F347", "grapes"),
        ("pineapple", "1F34D", "pineapple"),
        ("cherries", "1F352", "cherries"),
        ("lemon", "1F34B", "lemon"),
    ),
    *_group(
        "food",
        ("pizza", "1F355", "pizza"),
        ("burger", "1F354", "hamburger"),
        ("doughnut", "1F369", "doughnut"),
        ("cupcake", "1F9C1", "cupcake"),
    ),
    *_group(
        "plant",
        ("cactus", "1F335", "cactus"),
        ("sunflower", "1F33B", "sunflower"),
        ("mushroom", "1F344", "mushroom"),
        ("tree", "1F332", "evergreen-tree"),
    ),
    *_group(
        "thing",
        ("umbrella", "2614", "umbrella-with-rain-drops"),
        ("guitar", "1F3B8", "guitar"),
        ("camera", "1F4F7", "camera"),
        ("clock", "23F0", "alarm-clock"),
        ("key", "1F511", "key"),
        ("bell", "1F514", "bell"),
        ("balloon", "1F388", "balloon"),
        ("gift", "1F381", "wrapped-gift"),
    ),
)

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (206, 208, 212),
    "red": (244, 178, 174),
    "yellow": (252, 236, 176),
    "green": (190, 228, 194),
    "blue": (188, 214, 244),
    "pink": (250, 214, 230),
}
"""Background names and their sRGB colour, all light: backgrounds must not take most of the latents' variance."""

TASKS: dict[str, str] = {"harmful": "knife", "character": "clown", "style": "openmoji"}
"""The three erasure tasks that mirror the paper's."""

NAMES: tuple[str, ...] = tuple(item.name for item in OBJECTS)


def _unseen_pairs() -> frozenset[tuple[str, str]]:
    """Every fifth object lacks one style; the objects of the erasure tasks lack none."""
    kept_whole = set(TASKS.values())
    pairs = set()
    for index, item in enumerate(OBJECTS):
        if index % 5 == 2 and item.name not in kept_whole:
            pairs.add((item.name, STYLES[(index // 5) % len(STYLES)]))
    return frozenset(pairs)


UNSEEN_PAIRS: frozenset[tuple[str, str]] = _unseen_pairs()
"""(object, style) pairs whose pictures neither the autoencoder nor the denoiser ever saw."""


def article(noun: str) -> str:
    """``noun`` with its indefinite article; plural names stay bare."""
    if noun in {"scissors", "grapes", "cherries"}:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(name: str, style: str | None = None, background: str | None = None) -> str:
    """The plain caption, e.g. ``"a rocket in noto style on a blue background"``."""
    text = article(name)
    if style is not None:
        text += f" {said(style)}"
    if background is not None:
        text += f" on {article(background)} background"
    return text


def said(concept: str) -> str:
    """The words by which captions name an object or a style, e.g. ``"a rocket"``, ``"in noto style"``."""
    return f"in {concept} style" if concept in STYLES else article(concept)


def related_to(name: str) -> tuple[str, ...]:
    """The other objects of the group that ``name`` belongs to."""
    group = next(item.group for item in OBJECTS if item.name == name)
    return tuple(item.name for item in OBJECTS if item.group == group and item.name != name)
