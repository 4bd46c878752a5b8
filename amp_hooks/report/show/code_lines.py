"""Lines to paste, broken so that they fit a window and are still Python."""

from __future__ import annotations

import io
import textwrap
import tokenize


def broken(text: str, width: int) -> list[str]:
    """Break lines after commas and brackets that open, and comments between words.

    A line that is no Python by itself, or whose pieces are too long, stays longer.
    """
    return [piece for line in text.splitlines() for piece in _pieces(line, width)]


def _pieces(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    if line.lstrip().startswith("#"):
        return textwrap.wrap(
            line, width, subsequent_indent="# ", break_long_words=False
        )
    places, depth = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.type == tokenize.OP and token.string in ",([{" and depth:
                places.append(token.end[1])
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return [line]
    out, begin, indent = [], 0, ""
    for place, after in zip(places, [*places[1:], len(line)]):
        if len(indent) + after - begin > width and place > begin:
            out.append(indent + line[begin:place].strip())
            begin, indent = place, "    "
    return [*out, indent + line[begin:].strip()]
