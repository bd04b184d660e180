"""From the rounds of `compare` to medians, ratios, a Markdown table, an SVG chart and the README's section.

Pure functions of the collected data (a dictionary, also written as JSON); tested by report_test.py. Standard library only.

    {"machine": {...}, "checkpoint": str, "threads": int, "date": str,
     "programs": {key: {"name": str, "version": str, "rounds": [{metric: {"value"| "unavailable", ...}}], "error": str?}}}
"""
import math
import statistics
from html import escape

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"

# metric, label, unit, digits, larger is better
ROWS = (
    ("vision_patches_per_s", "vision, 3,072 patches (1024x768)", "patches/s", 0, True),
    ("prefill_512_tokens_per_s", "prefill, 512 tokens", "tok/s", 1, True),
    ("prefill_789_tokens_per_s", "prefill, 789 tokens (768 of a picture)", "tok/s", 1, True),
    ("decode_short_tokens_per_s", "decode, short context", "tok/s", 2, True),
    ("guessed_text_tokens_per_s", "decode with guesses: what is written", "tok/s", 2, True),
    ("guessed_describe_tokens_per_s", "decode with guesses: descriptions, text quoted", "tok/s", 2, True),
    ("guessed_box_tokens_per_s", "decode with guesses: where things are", "tok/s", 2, True),
    ("decode_800_tokens_per_s", "decode, ~800 tokens of context", "tok/s", 2, True),
    ("ttft_image_ms", "time to first token, 1024x768, first request of a process", "s", 2, False),
    ("ttft_second_question_ms", "the same picture asked again, same process", "s", 2, False),
    ("ttft_new_process_ms", "the same picture asked again, new process", "s", 2, False),
    ("peak_rss_mb", "peak memory (RSS) of a run with that picture", "MB", 0, False),
    ("ready_ms", "process start to ready, files in the page cache", "s", 2, False),
)
REFERENCE = "qvl"
# Measured of qvl alone; what the others do at the same context stands beside it.
OTHERS_SHOW = {metric: "decode_short_tokens_per_s" for metric in
               ("guessed_text_tokens_per_s", "guessed_describe_tokens_per_s", "guessed_box_tokens_per_s")}


def shown(metric: str, value: float) -> float:
    """In the unit of the row: times are measured in ms and shown in seconds."""
    return value / 1000 if metric.endswith("_ms") else value


def cell_of(program: dict, metric: str) -> dict:
    """{"median", "runs"} or {"unavailable": why}."""
    if program.get("error"):
        return {"unavailable": program["error"]}
    values = [r[metric]["value"] for r in program["rounds"] if "value" in r.get(metric, {})]
    if values:
        return {"median": statistics.median(values), "runs": values}
    for r in program["rounds"]:
        if "unavailable" in r.get(metric, {}):
            return {"unavailable": r[metric]["unavailable"]}
    return {"unavailable": "not measured"}


def summary(data: dict) -> dict:
    """{metric: {key: cell}}; cells of the others have "qvl_is_better_by": above 1 when qvl is ahead, whichever way the
    metric counts."""
    table = {}
    for metric, _, _, _, larger in ROWS:
        cells = {key: cell_of(program, metric if key == REFERENCE else OTHERS_SHOW.get(metric, metric))
                 for key, program in data["programs"].items()}
        own = cells.get(REFERENCE, {}).get("median")
        for key, cell in cells.items():
            if key == REFERENCE or "median" not in cell or not own:
                continue
            cell["qvl_is_better_by"] = own / cell["median"] if larger else cell["median"] / own
        table[metric] = cells
    return table


def format_value(metric: str, unit: str, digits: int, value: float) -> str:
    return f"{shown(metric, value):,.{digits}f} {unit}"


def spread(data: dict) -> float:
    """The widest (largest - smallest) / median of any cell: how noisy the run was."""
    widest = 0.0
    for cells in summary(data).values():
        for cell in cells.values():
            if len(cell.get("runs", ())) > 1 and cell["median"]:
                widest = max(widest, (max(cell["runs"]) - min(cell["runs"])) / cell["median"])
    return widest


def about_guesses(data: dict) -> str:
    """What the rows of OTHERS_SHOW replay, why, and what qvl does there without guesses."""
    rounds = data["programs"].get(REFERENCE, {}).get("rounds", [])
    without = []
    for metric in OTHERS_SHOW:
        values = [r[metric]["without_guesses"] for r in rounds if "without_guesses" in r.get(metric, {})]
        without.append(f"{statistics.median(values):.2f}" if values else "–")
    counts = next((r for r in rounds if all("tokens" in r.get(m, {}) for m in OTHERS_SHOW)), None)
    size = ""
    if counts:
        size = (f" ({sum(counts[m]['answers'] for m in OTHERS_SHOW)} answers, "
                f"{' / '.join(str(counts[m]['tokens']) for m in OTHERS_SHOW)} tokens of the three kinds)")
    return ("Random weights say nothing that could be guessed. So answers to the small model's evaluation questions are replayed"
            f"{size}: laid down token by token in this model at short context, pictures left out, each token computed, guessed "
            "from the conversation so far and checked as in any answer. Without guesses, in turn with them: "
            f"{' / '.join(without)} tok/s. Of the other programs plain decoding at short context stands there; those that can "
            "guess too are not measured doing it")


def about_the_second_question(data: dict) -> str | None:
    """The pause before qvl's second question, and what it takes without one; None where there was none."""
    rounds = [r["ttft_second_question_ms"] for r in data["programs"].get(REFERENCE, {}).get("rounds", [])
              if "pause_s" in r.get("ttft_second_question_ms", {})]
    if not rounds:
        return None
    at_once = statistics.median(r["at_once_ms"] for r in rounds)
    return (f"The next turn of a conversation, asked {rounds[0]['pause_s']:g} s after the answer, as by somebody who reads it and types; "
            "what is certain of the turn, the template's marks, qvl reads meanwhile. Asked at once: "
            f"{format_value('ttft_second_question_ms', 's', 2, at_once)}. The other programs do nothing in a pause and are asked at once")


def markdown(data: dict) -> str:
    """The table, what it was measured on, and a line for every program or value that is missing."""
    table = summary(data)
    keys = list(data["programs"])
    names = [f"{p['name']} {p.get('version') or ''}".strip() for p in data["programs"].values()]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(keys) + 1) + "|"]
    footnotes: dict[str, int] = {}

    def mark(text: str) -> str:
        return f"[{footnotes.setdefault(text, len(footnotes) + 1)}]"

    def note(text: str) -> str:
        return f"–{mark(text)}"

    for metric, label, unit, digits, larger in ROWS:
        medians = [c["median"] for c in table[metric].values() if "median" in c]
        best = (max if larger else min)(medians) if medians else None
        if metric in OTHERS_SHOW:
            label += f" {mark(about_guesses(data))}"
        if metric == "ttft_second_question_ms" and (about := about_the_second_question(data)):
            label += f" {mark(about)}"
        cells = []
        for key in keys:
            cell = table[metric][key]
            if "median" not in cell:
                cells.append(note(f"{data['programs'][key]['name']}: {cell['unavailable']}"))
                continue
            text = format_value(metric, unit, digits, cell["median"])
            if cell["median"] == best:
                text = f"**{text}**"
            if "qvl_is_better_by" in cell:
                text += f" ({cell['qvl_is_better_by']:.2f})"
            cells.append(text)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("")
    machine = data["machine"]
    rounds = max((len(p["rounds"]) for p in data["programs"].values()), default=0)
    lines.append(f"In brackets: how many times better qvl is (below 1: worse). {data['checkpoint']}; {machine['cpu']}, "
                 f"{machine['instructions']}, {data['threads']} threads, {machine['memory_gb']:.0f} GB; {data['date']}; medians of "
                 f"{rounds} {'round' if rounds == 1 else 'rounds'}, the programs taking turns; widest spread of a cell {spread(data):.0%}.")
    if machine.get("busy"):
        lines.append(f"The host was shared with other work (load average {machine['load_before']:.1f} before the runs): "
                     "ratios mean more than absolute figures.")
    lines.append("Weights: " + "; ".join(f"{p['name']} {p['weights']}" for p in data["programs"].values() if p.get("weights")) + ".")
    for text, number in footnotes.items():
        lines.append(f"[{number}] {text}  ")
    return "\n".join(lines).rstrip() + "\n"


COLOURS = ("#d1495b", "#2e86ab", "#6a994e", "#8d6a9f", "#c98c00")


def svg(data: dict) -> str:
    """One row a metric, one mark a peer, on a logarithmic axis of "qvl is better by"; the line is equality."""
    table = summary(data)
    peers = [key for key in data["programs"] if key != REFERENCE]
    factors = [c["qvl_is_better_by"] for cells in table.values() for c in cells.values() if "qvl_is_better_by" in c]
    low = min([0.5, *factors]) / 1.15
    high = max([2.0, *factors]) * 1.15
    left, right, top, row, width = 400, 30, 66, 30, 900
    height = top + row * len(ROWS) + 44

    def x(factor: float) -> float:
        return left + (width - left - right) * math.log(factor / low) / math.log(high / low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           '<text x="16" y="24" font-size="16" font-weight="bold">How many times better qvl is</text>']
    at = 16
    for i, key in enumerate(peers):
        name = data["programs"][key]["name"]
        missing = not any("qvl_is_better_by" in cells[key] for cells in table.values())
        label = f"{name} (not measured)" if missing else name
        out.append(f'<circle cx="{at + 5}" cy="44" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   f'<text x="{at + 15}" y="48">{escape(label)}</text>')
        at += 40 + 8 * len(label)
    bottom = top + row * len(ROWS)
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        if low <= tick <= high:
            colour, weight = ("#333333", 2) if tick == 1 else ("#dddddd", 1)
            out.append(f'<line x1="{x(tick):.1f}" y1="{top}" x2="{x(tick):.1f}" y2="{bottom}" stroke="{colour}" '
                       f'stroke-width="{weight}"/><text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}x</text>')
    for n, (metric, label, _, _, _) in enumerate(ROWS):
        y = top + row * n + row / 2
        out.append(f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for i, key in enumerate(peers):
            factor = table[metric][key].get("qvl_is_better_by")
            if factor is not None:
                out.append(f'<circle cx="{x(factor):.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[i % len(COLOURS)]}" fill-opacity="0.85">'
                           f'<title>{escape(data["programs"][key]["name"])}: {factor:.2f}</title></circle>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def replace_section(text: str, section: str) -> str:
    """`text` with what stands between the markers replaced. Raises ValueError unless there is exactly one such pair."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} followed by one {END}, got {text.count(BEGIN)} and {text.count(END)}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section.strip()}\n{END}{rest.split(END)[1]}"


def parse_lines(output: str) -> tuple[dict, dict]:
    """A runner's stdout: ({metric: measurement}, program facts). Lines that are no JSON objects (a library's chatter) are
    skipped; a metric that comes twice is an error."""
    import json
    metrics, program = {}, {}
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "program" in item:
            program = item
        elif "metric" in item:
            if item["metric"] in metrics:
                raise ValueError(f"{item['metric']} was measured twice")
            metrics[item["metric"]] = item
    return metrics, program


def check_workload(metrics: dict, expected: dict) -> list[str]:
    """Complaints about prompts whose number of tokens is off by more than 1 %: then the programs did not do the same."""
    complaints = []
    for metric, tokens in expected.items():
        got = metrics.get(metric, {}).get("prompt_tokens")
        if got is not None and abs(got - tokens) > max(1, tokens // 100):
            complaints.append(f"{metric}: the prompt had {got} tokens instead of {tokens}")
    return complaints
