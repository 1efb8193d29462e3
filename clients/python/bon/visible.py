"""Text of somebody else, shown on a terminal or in a log without being obeyed by it.

A completion may hold escape sequences that set the window's title, clear the screen or hide what was printed before,
and characters that reverse the order of the rest of a line. `json.dumps` leaves some of them as they are.
"""

from __future__ import annotations

import re

_C0 = range(0x20)
_DELETE_AND_C1 = range(0x7F, 0xA0)
_SEPARATORS = (0x2028, 0x2029)
"""Line and paragraph: they end a line for `str.splitlines` and for some viewers."""
_BIDI_CONTROLS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""All characters with the Unicode property Bidi_Control."""
_SURROGATES = range(0xD800, 0xE000)
"""Halves of characters: Python reads bytes of the command line that are not UTF-8 as such, and no encoding has them."""
_NAMED = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}

_ONE_LINE = {
    code: _NAMED.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
    for code in (*_C0, *_DELETE_AND_C1, *_SEPARATORS, *_BIDI_CONTROLS, *_SURROGATES)
}
_LINES = {code: shown for code, shown in _ONE_LINE.items() if chr(code) not in "\n\t"}
_IN_JSON = re.compile(f"[{re.escape(''.join(chr(code) for code in _ONE_LINE if code not in _C0))}]")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with its control characters, bidirectional controls and lone surrogates written as `\\x1b`, `\\u202e`.

    lines: whether newlines and tabs stay what they are, for text of several lines; `\\r\\n` then counts as a newline.
    """
    return text.replace("\r\n", "\n").translate(_LINES) if lines else text.translate(_ONE_LINE)


def visible_json(document: str) -> str:
    """A JSON document with the same characters as JSON escapes, so that it means the same.

    Control characters below U+0020 are left: JSON has none within strings, and those between them are its layout.
    """
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document)
