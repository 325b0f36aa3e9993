"""The documents: links and paths lead somewhere, queries fit the schema, the README stays short."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from graphql import OperationDefinitionNode, parse, validate

from server.schema.root import schema
from shared.config.settings import Settings
from shared.errors import ServiceError

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "shared" / "operations"
MAX_README_LINES = 200
_NOT_OURS = {"node_modules", "static"}
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:server|worker|shared|tests)/[\w./-]+\.\w+)`")


def documents() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in _NOT_OURS and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith(".md"))


DOCUMENTS = sorted(documents())
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in _FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, hyphens for spaces, no punctuation, `-1` for a repetition."""
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(path: Path) -> list[str]:
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for link in (first or second for first, second in _LINK.findall(prose)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        is_there = target.exists() and target.is_relative_to(ROOT if path.is_relative_to(ROOT) else path.parent)
        if not is_there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_the_documents_are_found() -> None:
    assert {"README.md", "server/README.md", "worker/README.md", "shared/operations/README.md"} <= set(NAMES)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_path_that_is_named_exists(path: Path) -> None:
    named = _PATH.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_query_fits_the_schema_and_can_be_pasted(path: Path) -> None:
    for text in blocks(path, "graphql"):
        document = parse(text)
        assert validate(schema._schema, document) == [], text
        operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
        assert len(operations) == 1, f"one operation a block, because GraphiQL runs one: {text}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_use_the_python_that_has_the_packages(path: Path) -> None:
    commands = [line for text in blocks(path, "sh") for line in text.splitlines()]
    assert [line for line in commands if re.match(r"(\w+=\S+ )*(python|pip|pytest)\b", line)] == []


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", (OPERATIONS / "settings.md").read_text(encoding="utf-8"), re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(explained) == sorted(name.upper() for name in Settings.model_fields)


def test_every_code_of_an_error_is_explained() -> None:
    section = (
        (ROOT / "server/README.md").read_text(encoding="utf-8").partition("\n## Errors\n")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    explained = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    codes = {error.code for error in ServiceError.__subclasses__()}
    assert explained == codes | {"GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "INTERNAL_SERVER_ERROR"}


def test_every_page_of_the_operators_manual_is_linked() -> None:
    index = (OPERATIONS / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in OPERATIONS.glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"| [{name}]({name}) |" not in index} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_make_target_that_is_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([\w./]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`(?:\w+=\S+ )*make ([\w./]+)", _FENCE.sub("", text))
    commands = [name for block in blocks(path, "sh") for name in re.findall(r"^make ([\w./]+)", block, re.MULTILINE)]
    assert {*inline, *commands} - targets == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One, `two` and three\n\n## Again\n\n## Again\n\n```sh\n# not a heading\n```\n"
    )
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#one-two-and-three) [c](#here) [d](other.md#again-1) [e](https://example.org/#x)"
    page.write_text(f'# Here\n{good}\n```sh\n[f](nowhere.md)\n```\n<img src="other.md">\n')
    assert broken_links(page) == []
    bad = ["nowhere.md", "other.md#not-a-heading", "#there", "other.md#again-2", "../outside.md"]
    page.write_text("# Here\n" + " ".join(f"[x]({link})" for link in bad) + '\n<img src="none.png">\n')
    assert broken_links(page) == [*bad, "none.png"]
