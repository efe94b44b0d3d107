"""Hooks of MkDocs: headings with the name of their class, diagrams, and the search."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.utils import get_relative_url

_MEMBER = re.compile(
    r'(<h\d id="[\w.]*\.(?P<owner>[A-Z]\w*)\.\w+" class="doc doc-heading">\s*'
    r'<span class="doc doc-object-name doc-function-name">)(?=\w)'
)


# The search also finds words that begin with the words of the query, and ranks rare words higher.
# Without these factors, it shows "Streamlit" before "stream", and "Sessions" before "Session".
_BOOSTS = {
    "how-to/notebooks.md": 0.4,
    "reference/async-turns.md": 0.5,
    "reference/lists.md": 0.3,
    "reference/turns.md": 1.5,
}
_GUIDE_BOOST = 1.3


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Set how the search ranks the page: guides before the reference."""
    path = page.file.src_uri
    default = 1.0 if path.startswith("reference/") else _GUIDE_BOOST
    page.meta["search"] = {"boost": _BOOSTS.get(path, default)}
    return markdown


_ATTRIBUTE = re.compile(
    r'(<li class="doc-section-item field-body">\s*<b><code>)'
    r'<autoref identifier="([\w.]+)"[^>]*>(\w+)</autoref>'
)
# From the npm package @mermaid-js/tiny 11.17.2. It replaces the script that the theme would load.
_MERMAID = "javascripts/mermaid.tiny.js"
_DIAGRAM = re.compile(r'(<pre class="mermaid">.*?</pre>)', re.DOTALL)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Write `Conversation.history` as the heading of a method, so that the search finds it.

    Links can lead to attributes, too, such as `#flux0.Event.id`.

    Load the script that draws diagrams only if the page has a diagram.
    """
    if _DIAGRAM.search(html):
        script = get_relative_url(_MERMAID, page.url)
        html = _DIAGRAM.sub(r'<div class="diagram">\1</div>', html)
        html += f'<script src="{script}"></script>'
    html = _ATTRIBUTE.sub(r'\1<span id="\2">\3</span>', html)
    return _MEMBER.sub(r"\1\g<owner>.<wbr>", html)
