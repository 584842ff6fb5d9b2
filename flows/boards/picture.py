"""The canary board's picture: where the candidate's rate of failures lies, closing in on its limit or moving away."""

from base64 import b64encode

from flows.boards.markdown import Marked
from flows.boards.numbers import percent
from flows.boards.readings import Band

WIDTH, LEFT, TOP, BOTTOM = 640, 60, 28, 200
"""In pixels."""


def picture(band: Band) -> Marked:
    """An image in the text itself: Prefect's UI shows those, and takes the tags out of an SVG written as such."""
    requests = band.points[-1][0]
    _, rate, _, high = band.points[-1]
    top = min(1.0, max(4 * band.limit, 2 * rate, 1.2 * high))

    def at(of: int, rate: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * of / requests
        return f"{across:.1f},{TOP + (BOTTOM - TOP) * (1 - min(rate, top) / top):.1f}"

    upper = [at(of, high) for of, _, _, high in band.points]
    lower = [at(of, low) for of, _, low, _ in band.points]
    seen = [at(of, rate) for of, rate, _, _ in band.points]
    height = at(0, band.limit).partition(",")[2]
    words = f"failures of {requests} requests, with a {100 * band.confidence:g} % confidence sequence"
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{BOTTOM + 10}" font-family="sans-serif" \
font-size="12"><rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="16">{words}</text>\
<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="#9bbcf0"/>\
<polyline points="{" ".join(seen)}" fill="none" stroke="#1c4fa0" stroke-width="2"/>\
<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{height}" y2="{height}" stroke="#c22" stroke-dasharray="6 4" stroke-width="2"/>\
<text x="4" y="{height}" fill="#c22">{100 * band.limit:g} %</text><text x="4" y="{TOP + 10}">{percent(top, 1)}</text>\
<text x="4" y="{BOTTOM}">0 %</text></svg>"""
    return Marked(f"![{words}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})")
