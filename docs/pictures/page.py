"""front-page.svg: the gateway's page for browsers, in a browser's window: its own HTML, which an SVG may hold."""

import re
from typing import Final

from headwater_router.gateway.front_page import front_page

_WIDTH: Final = 800
_HEIGHT: Final = 470
_FRAME: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<rect x="1" y="1" width="{inner}" height="{low}" rx="8" fill="#fff" stroke="#9aa8b5"/>
<path d="M1 36H{inner}" stroke="#9aa8b5"/>
<g transform="translate(22,19)"><circle r="6" fill="#ff5f57"/><circle cx="19" r="6" fill="#febc2e"/>
<circle cx="38" r="6" fill="#28c840"/></g>
<rect x="90" y="8" width="620" height="22" rx="11" fill="#eef1f4"/>
<text x="104" y="24" font-family="system-ui, sans-serif" font-size="13" fill="#333">{url}</text>
<foreignObject x="2" y="38" width="{inner}" height="{page}">
<div xmlns="http://www.w3.org/1999/xhtml" class="page">
<style>{style}
.page {{ color: #111; margin: 0.5rem auto }}</style>
{body}
</div>
</foreignObject>
</svg>
"""


def page() -> str:
    html = front_page(["smollm2", "small"], "127.0.0.1:8080").decode()
    found = re.search(r"<style>\n(.*?)</style>\n(.*)</html>", html, re.DOTALL)
    assert found
    style = re.sub(r"^body ", ".page ", found[1], flags=re.MULTILINE)
    return _FRAME.format(
        width=_WIDTH,
        height=_HEIGHT,
        inner=_WIDTH - 2,
        low=_HEIGHT - 2,
        page=_HEIGHT - 40,
        url="http://127.0.0.1:8080/",
        style=style.strip(),
        body=found[2].strip(),
    )
