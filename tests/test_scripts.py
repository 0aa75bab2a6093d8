"""The Python scripts, with records and a page of their own. Run by ctest, or by hand."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts"
HEAD = {"gpu": "NVIDIA TEST", "driver": "580.1", "commit": "abc1234", "command": "moe-tune bench",
        "date": "2026-01-31T09:30:00Z"}
ROW = {"model": "mixtral-8x7b", "dtype": "bf16", "num_tokens": 8, "source": "measured",
       "routing": "uniform", "lookup": "exact", "commit": "abc1234", "date": HEAD["date"]}
PAGE = ("before\n<!-- results: made by scripts/docs_results.py -->\nold\n"
          "<!-- end of results -->\nafter\n")


def interval(mean):
    return {"mean": mean, "half_width_95": mean / 10}


def percentiles(mean):
    return {"p50": interval(mean), "p95": interval(2 * mean), "p99": interval(3 * mean)}


class DocsResults(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        root = pathlib.Path(self.directory.name)
        self.page = root / "docs" / "results.md"
        self.page.parent.mkdir()
        self.page.write_text(PAGE)
        self.gpu = root / "results" / "NVIDIA_TEST"
        self.gpu.mkdir(parents=True)
        self.results = root / "results"

    def tearDown(self):
        self.directory.cleanup()

    def run_script(self, *arguments):
        return subprocess.run(
            [sys.executable, SCRIPTS / "docs_results.py", "--page", self.page, "--results",
             self.results, *arguments], capture_output=True, text=True, check=False)

    def record(self, name, *rows):
        (self.gpu / name).write_text(json.dumps({**HEAD, "rows": rows}))

    def section(self):
        self.assertEqual(self.run_script().returncode, 0)
        text = self.page.read_text()
        self.assertTrue(text.startswith("before\n"))
        self.assertTrue(text.endswith("<!-- end of results -->\nafter\n"))
        return text

    def test_layer_times_with_their_origin(self):
        self.record("layers.json", {**ROW, "layer_us": 1234.56},
                    {**ROW, "num_tokens": 64, "layer_us": 99, "source": "predicted"})
        text = self.section()
        self.assertIn("## NVIDIA TEST", text)
        self.assertIn("| mixtral-8x7b | bf16 | 1,234.6 |", text)
        self.assertIn("commit abc1234, 2026-01-31", text)
        self.assertIn("    moe-tune bench\n", text)
        self.assertNotIn("99", text)

    def test_journey_has_its_ratios_and_its_figure(self):
        levels = [{"level": i, "name": "x", "median_us": 700.0 / (i + 1)} for i in range(7)]
        levels[4]["median_us"] = None
        self.record("journey.json", {**ROW, "kind": "journey", "command": "bench --journey",
                                     "levels": levels})
        (self.gpu / "journey.svg").write_text("<svg/>")
        text = self.section()
        self.assertIn("| mixtral-8x7b | 8 | 700.0 | 350.0 |", text)
        self.assertIn("| - | 116.7 | 100.0 | 7.00x | - |", text)
        self.assertIn("    bench --journey\n", text)
        self.assertIn("![journey](../results/NVIDIA_TEST/journey.svg)", text)

    def test_techniques_and_serving(self):
        self.record("techniques.json", {
            **ROW, "kind": "techniques",
            "pairs": [{"name": "split-K",
                       "without": {"label": "SPLIT_K=1", "median_us": 120.0, "l2_hit_rates": {
                           "layer": 0.5, "gemms": [{"kernel": "a", "hit_rate": 0.808},
                                                   {"kernel": "b", "hit_rate": 0.3}]}},
                       "with": {"label": "SPLIT_K=2", "median_us": 100.0},
                       "literature": "1.18x"}]})
        self.record("serving.json", {
            **ROW, "kind": "serving", "plans": "table", "concurrency": 32, "rate_per_s": 4.5,
            "output_tokens_per_s": interval(1000), "time_per_token_s": percentiles(0.01),
            "latency_s": percentiles(2), "success_rate": interval(1),
            "setup": {"scope": "only MoE layers", "num_layers": 32, "num_launched": 8,
                      "step_times": "launched"}})
        text = self.section()
        self.assertIn("| split-K | SPLIT_K=1: 120.0 | SPLIT_K=2: 100.0 | 1.20x | 81 / 30; - | 1.18x |",
                      text)
        self.assertIn("1,000 ± 100 | 10.00 / 20.00 / 30.00 | 2.00 / 4.00 / 6.00 |", text)
        self.assertIn("only MoE layers", text)

    def test_kernels_with_what_counters_there_are(self):
        kernel = {"step": "GEMM1", "time_us": 2000.0, "floor_us": 1500.0, "fraction_of_floor": 0.75,
                  "tflops": 612.3, "dram_gbps": None, "l2_hit_rate": 0.881, "tensor_busy": 0.5,
                  "sm_mhz": 1500}
        self.record("kernels.json", {**ROW, "kind": "kernels", "kernels": [
            kernel, {**kernel, "step": "", "time_us": None, "floor_us": None,
                     "fraction_of_floor": None, "tflops": None}]})
        text = self.section()
        self.assertIn("| GEMM1 | 2,000.0 | 1,500.0 | 75 | 612 | - | 88 | 50 | 1,500 |", text)
        self.assertIn("| - | - | - | - | - | - | 88 | 50 | 1,500 |", text)

    def test_check_finds_drift_and_changes_nothing(self):
        self.record("layers.json", {**ROW, "layer_us": 10})
        before = self.page.read_text()
        check = self.run_script("--check")
        self.assertEqual(check.returncode, 1)
        self.assertIn("run scripts/docs_results.py", check.stderr)
        self.assertEqual(self.page.read_text(), before)
        self.section()
        self.assertEqual(self.run_script("--check").returncode, 0)
        self.record("layers.json", {**ROW, "layer_us": 11})
        self.assertEqual(self.run_script("--check").returncode, 1)

    def test_what_is_malformed_is_named(self):
        (self.gpu / "layers.json").write_text("{")
        self.assertIn("layers.json", self.run_script().stderr)
        self.record("layers.json", {**ROW, "kind": "journey"})
        broken = self.run_script()
        self.assertEqual(broken.returncode, 2)
        self.assertIn("layers.json", broken.stderr)
        self.page.write_text("no markers")
        self.assertIn("it needs the lines", self.run_script().stderr)


class CompareTorch(unittest.TestCase):
    def run_script(self, *arguments):
        return subprocess.run([sys.executable, SCRIPTS / "compare_torch.py", *arguments],
                              capture_output=True, text=True, check=False)

    def test_bad_usage_is_told_before_anything_is_loaded(self):
        for arguments, part in ((["--model", "mixtral"], "mixtral-8x7b"),
                                (["--model", "mixtral-8x7b", "--tokens", "0"], "below 1"),
                                (["--model", "mixtral-8x7b", "--tokens", "x"], "--tokens x")):
            run = self.run_script(*arguments)
            self.assertEqual(run.returncode, 2)
            self.assertIn(part, run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
