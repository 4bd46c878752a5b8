"""Each Chinese page says what the English one says, section by section.

Compared is what no language changes: order, numbers, code, names, links, tables. A
change of prose alone is not noticed. Fenced blocks are identical, so test_pages.py,
which trains with each config block of the English pages, trains with those of both.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests import helpers

ENGLISH, CHINESE = "README.md", "README_zh-CN.md"
LANGUAGES = {
    ENGLISH: f"English | [简体中文]({CHINESE})",
    CHINESE: f"[English]({ENGLISH}) | 简体中文",
}
DOCS = helpers.ROOT / "docs"
# What a script writes is included as it is.
NAMES = sorted(p.name for p in (DOCS / "en").glob("*.md"))
NAMES = [name for name in NAMES if name not in ("cost.md", "rescue.md", "index.md")]
PAGES = {
    "README": (helpers.ROOT / ENGLISH, helpers.ROOT / CHINESE),
    **{name: (DOCS / "en" / name, DOCS / "zh_cn" / name) for name in NAMES},
}
HAN = "\u4e00-\u9fff"
# TensorBoard; MLflow, but not GPUs; FP16 and R50, but not x0.1.
NAME = r"[A-Za-z]*[a-z][A-Z][A-Za-z]*|[A-Z]{2,}[a-z]{2,}|(?!x[0-9])[A-Za-z]+[0-9]+"


@dataclass
class Block:
    """A paragraph, list item, row of a table, or fenced block.

    ``said`` is what it says that no language changes.
    """

    kind: str
    lines: list[str]
    said: dict = field(default_factory=dict)

    @property
    def head(self):
        return f"{self.kind} '{self.lines[0][:60]}'"


@dataclass
class Section:
    """A heading and what stands below it, up to the next heading."""

    level: int
    title: str
    line: int
    blocks: list[Block] = field(default_factory=list)

    @property
    def kind(self):
        return "#" * self.level

    @property
    def said(self):
        return [(block.kind, block.said) for block in self.blocks]


def parse(text):
    sections, fence, after_blank = [], None, True
    for number, line in enumerate(text.splitlines(), 1):
        blocks = sections[-1].blocks if sections else []
        starts = {"|": "table row", "- ": "list item", "```": line}
        kind = next((k for s, k in starts.items() if line.startswith(s)), "paragraph")
        if re.match(r"\d+\. ", line):
            kind = "list item"
        if fence:
            fence.lines.append(line)
            fence = None if line == "```" else fence
        elif heading := re.match(r"(#+) (.*)", line):
            sections.append(Section(len(heading[1]), heading[2], number))
        elif kind == "paragraph" and not after_blank and line and blocks:
            blocks[-1].lines.append(line)
        elif line and line not in LANGUAGES.values():
            blocks.append(Block(kind, [line]))
            fence = blocks[-1] if line.startswith("```") else None
        after_blank = not line or (line == "```" and not fence)
    for block in itertools.chain.from_iterable(s.blocks for s in sections):
        block.said = said(block)
    return sections


def slug(title):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def cells(row):
    return [c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]]


def said(block):
    if block.kind.startswith("```"):
        return {"lines": block.lines}
    text = " ".join(block.lines)
    row = cells(text) if block.kind == "table row" else [""]
    prose = re.sub(r"`[^`]*`|\]\([^)]+\)", " ", text)
    numbers = re.findall(r"[0-9]+(?:[.,][0-9]+)*", re.sub(NAME, " ", prose))
    found = {
        "cells": ["|"] * len(row),
        "first cell": row[:1] if re.fullmatch(r"`[^`]*`", row[0]) else [],
        # Where one within a page leads is another word in each language.
        "links": [
            link.replace("docs/zh_cn/", "docs/en/")
            for link in re.findall(r"\]\((https?:[^)]+|#|[^)#]+)", text)
        ],
        "code": set(re.findall(r"`[^`]*`", text)),
        "numbers": numbers,
        "names": set(re.findall(NAME, prose)),
        "parts in bold": re.findall(r"\*\*", prose)[::2],
    }
    # Sorted, because a Counter's repr follows the order in which it was filled.
    return {what: Counter(sorted(those)) for what, those in found.items()}


def pairs(en, zh, keys=(lambda b: (b.kind, repr(b.said)), lambda b: b.kind)):
    """Blocks, or sections, that belong together: by what they say, then by kind."""
    matcher = difflib.SequenceMatcher(
        None, [keys[0](b) for b in en], [keys[0](b) for b in zh], autojunk=False
    )
    for step, i, j, k, m in matcher.get_opcodes():
        if step == "equal":
            yield from zip(en[i:j], zh[k:m])
        elif len(keys) > 1:
            yield from pairs(en[i:j], zh[k:m], keys[1:])
        else:
            yield from ((block, None) for block in en[i:j])
            yield from ((None, block) for block in zh[k:m])


def differences(en, zh):
    """A line for each difference of two sections, with where it is."""
    for left, right in pairs(en.blocks, zh.blocks):
        if not (left and right):
            yield f"- {left.head}" if left else f"+ {right.head}"
        elif left.said == right.said:
            continue
        elif "lines" in left.said:
            yield f"{left.head}, which should be identical:"
            yield from difflib.unified_diff(
                left.lines, right.lines, ENGLISH, CHINESE, n=0, lineterm=""
            )
        else:
            for what in left.said:
                for name, more, less in (
                    (ENGLISH, left.said[what], right.said[what]),
                    (CHINESE, right.said[what], left.said[what]),
                ):
                    if only := ", ".join(sorted((more - less).elements())):
                        yield f"{left.head}: {what} in {name} only: {only}"


@functools.lru_cache(maxsize=None)
def sections(page):
    """Of both languages."""
    assert all(path.exists() for path in PAGES[page]), page
    return [parse(path.read_text(encoding="utf-8")) for path in PAGES[page]]


def test_each_names_the_other_under_its_title():
    for path in PAGES["README"]:
        line = LANGUAGES[path.name]
        assert path.read_text("utf-8").startswith(f"# amp_hooks\n\n{line}\n\n")


def check(en, zh):
    """Fail with what is to be done, if two sections do not say the same."""
    if not (en and zh):
        section, name = (en, ENGLISH) if en else (zh, CHINESE)
        pytest.fail(
            f"'{section.kind} {section.title}', line {section.line} of {name}, is "
            "in that file only, or of another level in the other.",
            pytrace=False,
        )
    if faults := list(differences(en, zh)):
        pytest.fail(
            f"'{zh.title}', line {zh.line} of {CHINESE}, does not say what "
            f"'{en.title}', line {en.line} of {ENGLISH}, says. Translate what has '-' "
            "before it, take away what has '+', bring along what else is named:\n"
            + "\n".join(faults),
            pytrace=False,
        )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_the_same(page):
    for en, zh in pairs(*sections(page)):
        check(en, zh)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_the_same_places(page):
    ours, theirs = (_anchors(path) for path in PAGES[page])
    for (where, english), (there, chinese) in zip(ours, theirs):
        titles = {
            slug(en.title): slug(zh.title)
            for en, zh in pairs(*sections(where))
            if en and zh
        }
        assert (there, titles[english]) == (where, chinese)


def _anchors(path):
    """Page and anchor of each link within this language."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text("utf-8"))
    own = "README" if path.parent == helpers.ROOT else path.name
    return [(page.rpartition("/")[2] or own, anchor) for page, anchor in found]


@pytest.mark.parametrize("page", PAGES)
def test_chinese_typography(page):
    """A space between Chinese and Latin, full-width punctuation, one line a paragraph.

    GitHub shows a line break in a paragraph as a space, which Chinese has none of.
    """
    wrong = rf"[{HAN}][A-Za-z0-9`,;:?!()]|[A-Za-z0-9`,;:?!][{HAN}]"
    for block in itertools.chain.from_iterable(s.blocks for s in sections(page)[1]):
        if not block.kind.startswith("```"):
            assert len(block.lines) == 1, block.head
            prose = re.sub(r"\*|\]\([^)]+\)", "", block.lines[0])
            assert not re.findall(rf".{{0,9}}(?:{wrong}).{{0,9}}", prose)


SAMPLE = """\
# Hooks

**The clamp** takes 11 iterations in FP16, by `limit=100`
([paper](https://arxiv.org/abs/2204.02311)).

```python
limit = 100
```

## Exit status

- MLflow is one.
- Others are not.

| status | meaning |
|---|---|
| `end` | 5 \\|logits\\| |
| 64 | wrong arguments |
"""
TRANSLATED = """\
# 钩子

**钳位**由 `limit=100` 在 FP16 下进行 11 次迭代（[论文](https://arxiv.org/abs/2204.02311)）。

```python
limit = 100
```

## 退出码

- MLflow 是一个。
- 其他的不是。

| 退出码 | 含义 |
|---|---|
| `end` | 5 个 \\|logits\\| |
| 64 | 参数错误 |
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("11 iterations", "12 iterations", "numbers in README.md only: 12"),
        ("FP16", "BF16", "names in README_zh-CN.md only: FP16"),
        ("MLflow", "It", "names in README_zh-CN.md only: MLflow"),
        ("`limit=100`", "`limit=9`", "code in README.md only: `limit=9`"),
        ("2204", "2205", "links in README.md only: https://arxiv.org/abs/2205.02311"),
        ("**", "", "parts in bold in README_zh-CN.md only: **"),
        ("limit = 100", "limit = 9", "\n-limit = 9\n+limit = 100"),
        ("- MLflow", "- More.\n- MLflow", "- list item '- More.'"),
        ("- Others are not.\n", "", "+ list item '- 其他的不是。'"),
        ("| `end`", "| `stop`", "first cell in README.md only: `stop`"),
        ("| 64 |", "| 64 | 1 |", "cells in README.md only: |"),
        ("| 64 | wrong arguments |\n", "", "+ table row '| 64 | 参数错误 |'"),
        ("## Exit", "## More\n\nMore.\n\n## Exit", "'## More', line 10 of README.md"),
        ("## Exit", "### Exit", "'### Exit status', line 10 of README.md"),
    ],
)
def test_an_edit_of_the_english_is_told(old, new, told):
    assert all(en.said == zh.said for en, zh in pairs(parse(SAMPLE), parse(TRANSLATED)))
    edited = parse(SAMPLE.replace(old, new))
    wrong = [
        p
        for p in pairs(edited, parse(TRANSLATED))
        if not all(p) or p[0].said != p[1].said
    ]
    with pytest.raises(pytest.fail.Exception, match=re.escape(told)):
        check(*wrong[0])
    # What stands beside the edited section or block is not taken for a difference.
    assert len(wrong) == 1 + new.startswith("###")
    faults = differences(*wrong[0]) if all(wrong[0]) else ()
    assert len({f.split("': ")[0] for f in faults if f[:1] not in "+-@"}) <= 1
