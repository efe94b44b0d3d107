"""Hooks of MkDocs: headings with the name of their class, diagrams, and the search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
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
    "reliability.md": 2.0,
    "testing.md": 3.0,
}
_GUIDE_BOOST = 1.3


# Words that readers search for, and that the page does not have in this form. The search has no
# stemmer, because a stemmer would change the names of classes.
_KEYWORDS = {
    "how-to/web/": "fastapi flask django starlette react",
    "reliability/": "retry retries retrying timeout timeouts thread threads",
    "testing/": "fake mock mocking",
    "turns/": "cancel canceled cancelled canceling cancelling cancellation stream streaming",
}
_KEYWORD_COUNT = 8  # A page with the word in its text has it several times.
_CLASS_NAME = re.compile(r"\b[A-Z]+[a-z0-9]+[A-Z]\w*")


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


@event_priority(-100)  # After the search has written its index.
def on_post_build(config: Any, **_: Any) -> None:
    """Add words to the index of the search: keywords, and the names of classes in lower case.

    The search splits `FakeTransport` into its words, so it would not find `faketransport`.
    """
    path = Path(config.site_dir, "search/search_index.json")
    index = json.loads(path.read_text("utf-8"))
    for entry in index["docs"]:
        names = set(_CLASS_NAME.findall(f"{entry['title']} {entry['text']}"))
        keywords = [_KEYWORDS.get(entry["location"], "")] * _KEYWORD_COUNT
        words = (*sorted(name.lower() for name in names), *keywords)
        entry["text"] = " ".join(filter(None, (entry["text"], *words)))
    path.write_text(json.dumps(index), "utf-8")
