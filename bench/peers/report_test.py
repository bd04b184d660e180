"""Tests of report.py and workload.py: python3 bench/peers/report_test.py"""
import json
import re
import struct
import sys
import tempfile
import unittest
import xml.dom.minidom
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
import workload


def rounds(**metrics) -> list:
    count = len(next(iter(metrics.values())))
    return [{m: {"metric": m, "value": v[i]} for m, v in metrics.items()} for i in range(count)]


def sample() -> dict:
    return {
        "date": "2026-01-02", "threads": 2, "checkpoint": "some weights",
        "machine": {"cpu": "A <CPU>", "instructions": "AVX2", "memory_gb": 24.0, "busy": True, "load_before": 3.2},
        "programs": {
            "qvl": {"name": "qvl", "version": "abc", "weights": "int4",
                    "rounds": rounds(vision_patches_per_s=[300, 100, 200], ttft_image_ms=[20000, 21000, 22000])},
            "peer": {"name": "Peer & Co", "version": "1.0", "weights": "Q4",
                     "rounds": rounds(vision_patches_per_s=[100, 100, 400], ttft_image_ms=[42000, 10000, 50000])},
            "broken": {"name": "Broken", "version": "", "rounds": [], "error": "cannot be set up here: no | network"},
        }}


class ReportTest(unittest.TestCase):
    def test_ratios_are_of_medians_and_above_one_when_qvl_is_ahead(self):
        table = report.summary(sample())
        self.assertEqual(table["vision_patches_per_s"]["qvl"]["median"], 200)
        self.assertEqual(table["vision_patches_per_s"]["peer"]["qvl_is_better_by"], 2.0)
        self.assertEqual(table["ttft_image_ms"]["peer"]["qvl_is_better_by"], 2.0)
        self.assertNotIn("qvl_is_better_by", table["ttft_image_ms"]["qvl"])

    def test_every_metric_has_a_row_and_every_row_a_metric(self):
        self.assertEqual([row[0] for row in report.ROWS], list(workload.METRICS))

    def test_a_program_that_failed_is_shown_with_its_message(self):
        text = report.markdown(sample())
        self.assertIn("| qvl abc | Peer & Co 1.0 | Broken |", text)
        self.assertRegex(text, r"\[\d\] Broken: cannot be set up here: no \| network")
        self.assertRegex(text, r"\[\d\] Peer & Co: not measured")

    def test_guesses_stand_beside_what_the_others_do_without(self):
        data = sample()
        for r, speed in zip(data["programs"]["peer"]["rounds"], (4, 5, 6)):
            r["decode_short_tokens_per_s"] = {"metric": "decode_short_tokens_per_s", "value": speed}
        for r, speed in zip(data["programs"]["qvl"]["rounds"], (8, 7, 9)):
            for metric in report.OTHERS_SHOW:
                r[metric] = {"metric": metric, "value": speed, "without_guesses": speed - 2, "answers": 10, "tokens": 70}
        table = report.summary(data)
        self.assertEqual(table["guessed_box_tokens_per_s"]["qvl"]["median"], 8)
        self.assertEqual(table["guessed_box_tokens_per_s"]["peer"]["median"], 5)
        self.assertEqual(table["guessed_box_tokens_per_s"]["peer"]["qvl_is_better_by"], 1.6)
        text = report.markdown(data)
        row = next(line for line in text.splitlines() if line.startswith("| decode with guesses: what is written"))
        number = re.search(r"\[(\d)\] \|", row)[1]
        self.assertIn("**8.00 tok/s** | 5.00 tok/s (1.60)", row)
        self.assertRegex(text, rf"(?m)^\[{number}\] Random weights .*30 answers, 70 / 70 / 70 tokens.*: 6\.00 / 6\.00 / 6\.00 tok/s")
        # Where guesses were not measured the others' rates are no comparison.
        for r in data["programs"]["qvl"]["rounds"]:
            del r["guessed_box_tokens_per_s"]
        self.assertNotIn("qvl_is_better_by", report.summary(data)["guessed_box_tokens_per_s"]["peer"])
        self.assertIn("6.00 / 6.00 / – tok/s", report.markdown(data))

    def test_the_pause_before_the_second_question_is_told_with_what_it_takes_without(self):
        data = sample()
        self.assertNotIn("asked 2 s after", report.markdown(data))
        for r, ms in zip(data["programs"]["qvl"]["rounds"], (300, 500, 400)):
            r["ttft_second_question_ms"] = {"metric": "ttft_second_question_ms", "value": ms, "pause_s": 2.0, "at_once_ms": ms + 200}
        text = report.markdown(data)
        row = next(line for line in text.splitlines() if line.startswith("| the same picture asked again, same process"))
        number = re.search(r"\[(\d)\] \|", row)[1]
        self.assertIn("**0.40 s**", row)
        self.assertRegex(text, rf"(?m)^\[{number}\] .*asked 2 s after the answer.*at once: 0\.60 s")

    def test_rows_of_guesses_are_those_that_are_measured(self):
        self.assertEqual(list(report.OTHERS_SHOW), list(workload.GUESSED.values()))

    def test_a_failure_after_some_rounds_shows_no_figures(self):
        data = sample()
        data["programs"]["peer"]["error"] = "cannot be run here: killed"
        self.assertNotIn("median", report.summary(data)["vision_patches_per_s"]["peer"])
        self.assertIn("Peer & Co: cannot be run here: killed", report.markdown(data))

    def test_an_unavailable_value_gives_its_reason(self):
        data = sample()
        data["programs"]["peer"]["rounds"] = [{"vision_patches_per_s": {"metric": "vision_patches_per_s", "unavailable": "no vision"}}]
        self.assertIn("Peer & Co: no vision", report.markdown(data))

    def test_units_best_value_and_rows_of_equal_width(self):
        text = report.markdown(sample())
        row = next(line for line in text.splitlines() if line.startswith("| time to first token"))
        self.assertIn("**21.00 s**", row)
        self.assertIn("42.00 s (2.00)", row)
        widths = {len(line.split("|")) for line in text.splitlines() if line.startswith("|")}
        self.assertEqual(len(widths), 1)
        self.assertEqual(sum(line.startswith("|") for line in text.splitlines()), len(report.ROWS) + 2)

    def test_a_shared_host_is_mentioned_only_when_it_was(self):
        data = sample()
        self.assertIn("shared with other work", report.markdown(data))
        data["machine"]["busy"] = False
        self.assertNotIn("shared with other work", report.markdown(data))

    def test_spread_is_the_widest_of_all_cells(self):
        self.assertEqual(report.spread(sample()), 3.0)  # the peer's vision: (400 - 100) / 100

    def test_the_chart_is_well_formed_and_has_a_mark_for_every_ratio(self):
        text = report.svg(sample())
        document = xml.dom.minidom.parseString(text)
        self.assertEqual(len(document.getElementsByTagName("title")), 2)
        self.assertIn("Broken (not measured)", text)
        at = {float(m) for m in re.findall(r'<circle cx="([0-9.]+)" cy="[0-9.]+" r="6"', text)}
        self.assertEqual(len(at), 1)  # both ratios are 2

    def test_the_section_between_the_markers_is_replaced(self):
        text = f"# A\n{report.BEGIN}\nold\n{report.END}\nrest\n"
        once = report.replace_section(text, "new\n")
        self.assertEqual(once, f"# A\n{report.BEGIN}\nnew\n{report.END}\nrest\n")
        self.assertEqual(report.replace_section(once, "new"), once)

    def test_missing_doubled_or_swapped_markers_are_errors(self):
        for text in ("# A\n", f"{report.BEGIN}\n", f"{report.END}{report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"):
            with self.assertRaises(ValueError):
                report.replace_section(text, "new")

    def test_chatter_between_the_lines_is_skipped_and_repetition_is_not(self):
        output = 'load: {x}\n{"program": "P", "version": "1"}\n{broken\n{"metric": "ready_ms", "value": 5}\n'
        metrics, program = report.parse_lines(output)
        self.assertEqual(metrics["ready_ms"]["value"], 5)
        self.assertEqual(program["version"], "1")
        with self.assertRaises(ValueError):
            report.parse_lines(output + '{"metric": "ready_ms", "value": 6}\n')

    def test_prompts_of_another_length_are_noticed(self):
        expected = {"prefill_512_tokens_per_s": 512}
        good = {"prefill_512_tokens_per_s": {"value": 1, "prompt_tokens": 514}}
        bad = {"prefill_512_tokens_per_s": {"value": 1, "prompt_tokens": 1024}}
        self.assertEqual(report.check_workload(good, expected), [])
        self.assertEqual(len(report.check_workload(bad, expected)), 1)

    def test_the_data_survive_json(self):
        data = sample()
        self.assertEqual(report.markdown(json.loads(json.dumps(data))), report.markdown(data))


class WorkloadTest(unittest.TestCase):
    def test_texts_have_the_number_of_words_asked_for_and_differ_by_seed(self):
        self.assertEqual(len(workload.text_prompt(512, 1).split()), 504)
        self.assertEqual(len(workload.image_question(1).split()), 11)
        self.assertEqual(workload.words(30, 1), workload.words(30, 1))
        self.assertNotEqual(workload.words(30, 1), workload.words(30, 2))

    def test_the_picture_is_a_png_of_the_size_and_the_same_every_time(self):
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder) / "a.png", Path(folder) / "b.png"
            workload.write_picture(first, 1)
            workload.write_picture(second, 1)
            data = first.read_bytes()
            self.assertEqual(data, second.read_bytes())
            self.assertEqual(struct.unpack(">II", data[16:24]), (1024, 768))
            at, body = 8, b""
            while at < len(data):
                size, kind = struct.unpack(">I4s", data[at:at + 8])
                if kind == b"IDAT":
                    body += data[at + 8:at + 8 + size]
                self.assertEqual(struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0], zlib.crc32(data[at + 4:at + 8 + size]))
                at += 12 + size
            self.assertEqual(len(zlib.decompress(body)), 768 * (1 + 3 * 1024))

    def test_process_facts_are_plausible(self):
        self.assertGreater(workload.peak_rss_mb(), 1)
        self.assertTrue(0 < workload.ms_since_process_start() < 600_000)


if __name__ == "__main__":
    unittest.main()
