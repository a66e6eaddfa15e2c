"""A self-contained HTML page: nothing is fetched, nothing is run, light and dark, screen and paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.util import find_spec

import langcodes

from mlit_jax import charts
from mlit_jax.charts import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = f"""
:root {{ color-scheme: light dark; {charts.LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {charts.DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 24px 16px 64px; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 26px; margin: 0 0 4px; line-height: 1.2; }} h2 {{ font-size: 19px; margin: 40px 0 6px; }}
figure {{ margin: 0; }} h3 {{ font-size: 15px; margin: 24px 0 6px; }} p {{ margin: 4px 0 10px; max-width: 76ch; }}
.quiet {{ color: var(--muted); }} code {{ font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }}
.notice {{ border-left: 4px solid var(--c1); padding: 2px 12px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; vertical-align: top; }}
th {{ font-weight: 600; }} thead th {{ vertical-align: bottom; }}
.lang {{ text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--page); }} .group {{ text-align: center; }}
tr.sum > * {{ border-top: 2px solid var(--muted); font-weight: 600; }} td small {{ color: var(--muted); display: block; font-size: 11.5px; }}
.wrong {{ color: var(--c1); font-weight: 700; }}
@media (max-width: 560px) {{ th, td {{ padding: 4px 7px; }} }}
@media print {{ body {{ max-width: none; padding: 0; font-size: 11pt; }} .wide {{ overflow: visible; }} table {{ font-size: 7.5pt; }}
  th, td {{ padding: 2px 4px; }} tr {{ break-inside: avoid; }} h2, h3 {{ break-after: avoid; }} }}
"""


def html(title: str, sections: Iterable[str], style: str = "", script: str = "") -> str:
  """The whole page; `style` comes after STYLE, and no other script than `script` may run."""
  policy, tail = POLICY, ""
  if script:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy, tail = f"{POLICY}; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n"
    + "\n".join(sections)
    + f"\n{tail}</body></html>\n"
  )


def language(lang: str) -> str:
  """A tag with the English name of its language: "sw Swahili"."""
  return f"{escape(lang)} {escape(language_name(lang))}".strip()


def language_name(lang: str) -> str:
  """English name of a tag, or nothing for what is no tag. A page goes without names rather than fail."""
  if not find_spec("language_data"):
    return ""
  try:
    return langcodes.Language.get(lang).display_name() if langcodes.tag_is_valid(lang) else ""
  except ValueError:
    return ""
