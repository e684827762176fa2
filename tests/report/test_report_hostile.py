"""Whatever texts, labels, errors and names hold, the page shows it and does nothing of it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.api import run
from pipeline.config import RunConfig
from pipeline.foreign import visible

ACTS = "window.hacked = true"
HOSTILE = [
    f"<script>{ACTS}</script>",
    f"</script><script>{ACTS}</script>",
    f"</style><script>{ACTS}</script>",
    f"--><script>{ACTS}</script><!--",
    f"<!-- <script>{ACTS}</script>",
    f"]]><script>{ACTS}</script>",
    f'<img src=x onerror="{ACTS}">',
    f"\"><img src=x onerror='{ACTS}'>",
    f"' onmouseover='{ACTS}' x='",
    f"<svg onload='{ACTS}'></svg>",
    f"</text></svg><svg onload='{ACTS}'>",
    f'<a href="javascript:{ACTS}">link</a>',
    f"<iframe srcdoc='<script>parent.{ACTS}</script>'></iframe>",
    "<style>* { display: none }</style>",
    "<meta http-equiv=refresh content=0;url=http://127.0.0.1:9/>",
    "&lt;script&gt; &#60;b&#62; &amp;",
    f"${{{ACTS}}} {{{{ {ACTS} }}}} `{ACTS}`",
    "\u2028\u2029 line separators",
    "\u202e gnirts desrever \u2066 isolated",
    "NUL \x00, bell \x07, escape \x1b[31m, DEL \x7f, C1 \x9b",
    "not a character \uffff, a byte order mark \ufeff, zero width \u200b",
    "z\u0351\u036b\u0343" * 60,
    "x" * 100_000,
    "many\nlines\n" * 50,
    "  leading and trailing blanks  ",
    "😀👩‍👩‍👧 漢字 العربية",
]


@pytest.fixture
def output(server, tmp_path):
    """Hostile in all that a run takes from elsewhere: texts, labels, errors, columns, names."""
    column = f"<script>{ACTS}</script>"
    texts = HOSTILE + [f"refused {i}" for i in range(len(HOSTILE))]
    pq.write_table(pa.table({column: texts}), tmp_path / "in.parquet")

    def script(request):
        (text,) = request.texts
        if text.startswith("refused"):
            message = HOSTILE[int(text.split()[1])][:300]
            return server.reply(400, {"error": message})
        label = HOSTILE[HOSTILE.index(text) % 22][:200]
        return server.reply(body=[[{"label": label, "score": 0.5 + len(text) % 50 / 100}]])

    server.script = script
    output = tmp_path / f"<img src=x onerror='{ACTS}'>.parquet"
    names = {"label_column": "<b>label", "score_column": "'\">score", "error_column": "</td>error"}
    run(
        RunConfig(
            input=str(tmp_path / "in.parquet"),
            output=output,
            text=column,
            endpoint=server.url,
            dialect="single",
            model=f"<img src=x onerror={ACTS}>",
            batch_size=1,
            **names,
        )
    )
    return output


def test_the_flag_would_be_set(browser, tmp_path):
    """The same texts, written into a page as they are, do act in this browser."""
    acting = [text for text in HOSTILE if ACTS in text]
    for text in (acting[0], acting[6], acting[9]):
        page = tmp_path / "raw.html"
        page.write_text(f"<!doctype html><body>{text}", encoding="utf-8")
        browser.open(page)
        browser.wait_for(lambda: browser.eval("window.hacked === true"))


def test_nothing_acts(shown, output):
    browser = shown(output)
    assert browser.eval("typeof window.hacked") == "undefined"
    # Also once everything was opened, pointed at, filtered and sorted.
    browser.eval("document.querySelectorAll('details').forEach((it) => { it.open = true; })")
    for mark in range(3):
        browser.eval(f"document.querySelectorAll('.chart')[{mark}].focus()")
        browser.press("ArrowRight")
    browser.point_at(".chart .mark")
    browser.click(".rows thead button")
    browser.click("input")
    browser.type("<script>")
    assert browser.eval("typeof window.hacked") == "undefined"
    assert browser.complaints == []
    assert len(browser.requests) == 1
    strange = browser.eval(
        "document.querySelectorAll('img, iframe, object, embed, form, base, link,"
        " body style, svg script, a:not(.skip), [onerror], [onload], [onmouseover], [style]')"
        ".length"
    )
    # The page's own note under the mouse is placed by its style.
    assert strange == browser.eval("document.querySelectorAll('#tip[style]').length")
    assert browser.eval("document.querySelectorAll('script').length") == 1


def test_texts_are_shown_as_they_are(shown, output):
    """Each letter of each text, with those made visible that would act on the page."""
    browser = shown(output)
    cells = browser.eval(
        "Array.from(document.querySelectorAll('.rows td.text'), (it) => it.textContent)"
    )
    assert len(cells) == len(HOSTILE)
    for text in HOSTILE:
        cut = f" … {len(text):,} characters" if len(text) > 400 else ""
        assert visible(text[:400]) + cut in cells
    assert browser.eval("document.title") == f"{output.name}: report"
    assert browser.eval("document.querySelector('h1').textContent") == output.name
    told = browser.eval("document.documentElement.textContent")
    for hidden in "\x00\x07\x1b\x7f\x9b\u202e\u2028\u2066\uffff":
        assert hidden not in told
    assert "[U+202E] gnirts desrever" in told
    assert "NUL ␀, bell ␇" in told


def test_the_policy_stands_alone(browser, shown, output):
    """Even what got into the page would not run: the policy allows one script, by its digest."""
    shown(output)
    browser.eval(
        "(() => { const script = document.createElement('script');"
        f" script.textContent = '{ACTS}'; document.body.append(script);"
        f" const image = document.createElement('img'); image.setAttribute('onerror', '{ACTS}');"
        " image.src = 'http://127.0.0.1:9/'; document.body.append(image); })()"
    )
    browser.wait_for(lambda: len(browser.complaints) >= 2)
    assert browser.eval("typeof window.hacked") == "undefined"
