"""The documents can be read: their lines are short, and what they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINE_MAX = 110
FOLDERS = ("chain", "docs", "models", "p2pnode", "protocols", "simulations", "storage", "tests")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(each for folder in FOLDERS for each in (ROOT / folder).rglob("*.md")))
    if path.resolve().relative_to(ROOT) == path.relative_to(ROOT) and "node_modules" not in path.parts
)
_FILE = re.compile(r"(?<![\w./<*-])(?:[\w.-]+/)*[\w-]+\.(?:py|md|vy|vyi|toml|json|sql)\b(?!\.)")
_FOLDER = re.compile(rf"`((?:{'|'.join(FOLDERS)})(?:/[a-z_][\w-]*)*)/?`")
OF_A_USER = {
    "chain.toml", "config.toml", "peers.json", "measured.json", "node.json", "wallet.json", "phrase.json",
    "gateway.json", "crush.json", "dashboard.json",
    "package.json", "quality.json", "sample.py", "params.json", "summary.json", "sweep.json", "mine.toml",
    "./mine.toml", "p2pnode-dev/chain.toml",
}  # fmt: skip
"""Files that stand in a data dir or that a reader writes."""
OF_A_MODEL = {
    "added_tokens.json", "chat_template.json", "config.json", "generation_config.json",
    "model.safetensors.index.json", "quantize_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
"""Files of a model's folder, as Hugging Face names them."""


def long_lines(text: str) -> list[str]:
    """Lines that are longer than a reader's window, apart from tables, links and what can't be broken."""
    found = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        plain = line if fenced else re.sub(r"\]\([^)]*\)", "]", line)
        if len(plain) > LINE_MAX and not line.lstrip().startswith("|"):
            found.append(line)
    return found


def named(text: str) -> Iterator[str]:
    """Files and folders of the repository that a text names."""
    links = re.sub(r"https?://\S+", "", text)
    yield from (each for each in _FILE.findall(links) if each not in OF_A_USER | OF_A_MODEL)
    yield from _FOLDER.findall(links)


def types_in_files(text: str) -> list[tuple[str, str]]:
    """Types that are named together with their file: in a sentence, or as a participant of a diagram."""
    return [
        *re.findall(r"`([A-Z]\w+)`\s+in\s+`([\w/]+\.py)`", text),
        *re.findall(r"participant \w+ as ([A-Z]\w+)<br/>([\w/]+\.py)", text),
    ]


def is_there(name: str, document: Path) -> bool:
    """From the root, from the package, or from the document's own folder; a bare name, anywhere in ours."""
    places = (ROOT, ROOT / "p2pnode", document.parent)
    if any((place / name).exists() for place in places):
        return True
    return "/" not in name and any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_no_longer_than_a_window(document: str) -> None:
    assert long_lines((ROOT / document).read_text()) == []


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each != "CHANGELOG.md"])
def test_each_file_that_is_named_is_there(document: str) -> None:
    """The change log speaks of files as they were."""
    path = ROOT / document
    assert [name for name in named(path.read_text()) if not is_there(name, path)] == []


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each != "CHANGELOG.md"])
def test_each_type_that_is_named_with_its_file_stands_in_that_file(document: str) -> None:
    path = ROOT / document
    wrong = [
        (name, file)
        for name, file in types_in_files(path.read_text())
        if not re.search(rf"^(?:class |def |async def )?{name}\b", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_decisions_are_all_in_the_index_and_have_three_parts() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    index = (folder / "README.md").read_text()
    assert sorted(re.findall(r"\]\((.*)\)", index)) == [page.name for page in pages]
    numbers = [re.match(r"\d{3}-", page.name) for page in pages]
    assert None not in numbers
    assert len({found.group() for found in numbers if found is not None}) == len(pages)
    for page in pages:
        text = page.read_text()
        title = text.partition("\n")[0].removeprefix("# ")
        assert f"[{title}]({page.name})" in index
        assert [text.count(f"**{part}.**") for part in ("Context", "Decision", "Consequence")] == [1, 1, 1]


def test_a_long_line_is_seen_and_a_table_or_a_link_is_not() -> None:
    long = "word " * 30
    assert long_lines(f"short\n{long}\n") == [long]
    assert long_lines(f"| {long} |\n[a](https://{'x' * 120})\n") == []


def test_a_type_is_found_with_its_file() -> None:
    text = "`Driver` in\n`p2pnode/node/driver.py`; participant A as Answer<br/>p2pnode/client/answer.py"
    assert types_in_files(text) == [
        ("Driver", "p2pnode/node/driver.py"),
        ("Answer", "p2pnode/client/answer.py"),
    ]


def test_a_file_that_is_not_there_is_seen() -> None:
    text = "`p2pnode/node/nothing.py`, `nothing.py` and `storage/nothing/`, but `storage/` and `store.py`"
    missing = [name for name in named(text) if not is_there(name, ROOT / "README.md")]
    assert missing == ["p2pnode/node/nothing.py", "nothing.py", "storage/nothing"]
