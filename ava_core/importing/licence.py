"""Under which licence a model may be used: what its card says, else what the text of its licence begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ava_core.importing.source import CARD
from ava_core.origin import UNKNOWN, licence_texts, read_origin

_BEGINNINGS = {
    "apache license version 2.0": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause license": "bsd-3-clause",
    "bsd 2-clause license": "bsd-2-clause",
    "gnu general public license version 3": "gpl-3.0",
    "gnu lesser general public license version 3": "lgpl-3.0",
    "mozilla public license version 2.0": "mpl-2.0",
}
"""First words of texts that are the same wherever they are used, by the hub's names."""
_READ = 400
"""Characters of a text in which these words stand."""


def find_licence(folder: Path) -> dict[str, str]:
    """`id`, and where it is `stated`; of a licence that has a name of its own also `name` and `link`.

    Raises:
        IntegrityError: origin.json is there and can't be read.
    """
    card = _read_card(folder / CARD)
    if card.get("license"):
        named = {key: str(card[f"license_{key}"]) for key in ("name", "link") if card.get(f"license_{key}")}
        stated = card["license"]
        return {"id": str(stated[0] if isinstance(stated, list) else stated).lower(), "stated": CARD, **named}
    before = read_origin(folder)
    if before is not None:
        return before.licence
    for path in licence_texts(folder):
        words = " ".join(path.read_text(errors="replace")[:_READ].lower().replace(",", " ").split())
        for beginning, name in _BEGINNINGS.items():
            if words.startswith(beginning):
                return {"id": name, "stated": path.name}
    texts = [path.name for path in licence_texts(folder) if path.name.startswith(("LICEN", "COPYING"))]
    return {"id": UNKNOWN, "stated": f"see {texts[0]}" if texts else "nowhere"}


def _read_card(path: Path) -> dict[str, Any]:
    """The card's metadata; nothing of one that can't be read, as its text is for people."""
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception:  # YAML's errors have no common base that the library shows
        return {}
