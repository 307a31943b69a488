"""What a person sees who opens the gateway's URL in a browser: what it is, what it serves, and where to read on."""

import json
from collections.abc import Sequence
from html import escape
from typing import Final

from headwater import __version__

DOCS: Final = "https://github.com/headwater/headwater/tree/main/docs"
POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Of its content: it has a style and nothing else."""
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Headwater</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ overflow-x: auto; padding: 1rem; background: #8881 }}
</style>
<h1>Headwater</h1>
<p>This is the gateway of Headwater {version}: an OpenAI-compatible API for open language models. Its base URL ends with
<code>/v1</code>.</p>
<h2>Models</h2>
{models}
<h2>A first request</h2>
<pre>{request}</pre>
<p><a href="/v1/models">/v1/models</a> as JSON · <a href="{docs}">documentation</a> ·
<a href="{docs}/openai-api.md">the API</a></p>
<p>With <code>--admin-port</code>, its API page is at <code>/docs</code> of that port.</p>
</html>
"""


def front_page(models: Sequence[str] | None, host: str) -> bytes:
    """HTML. `models`: those that everybody may see; None: clients need a key. `host`: as the browser calls us."""
    if models is None:
        listed = "<p>They are shown to those who have a key.</p>"
    elif not models:
        listed = "<p>None yet: no engine behind this gateway is ready.</p>"
    else:
        listed = f"<ul>{''.join(f'<li><code>{escape(name)}</code></li>' for name in models)}</ul>"
    body = {"model": models[0] if models else "MODEL", "messages": [{"role": "user", "content": "What is a river?"}]}
    key = " -H 'authorization: Bearer KEY'" if models is None else ""
    request = (
        f"curl http://{host}/v1/chat/completions -H 'content-type: application/json'{key} \\\n"
        f"  -d '{json.dumps(body, ensure_ascii=False)}'"
    )
    return _PAGE.format(version=__version__, models=listed, request=escape(request), docs=DOCS).encode()
