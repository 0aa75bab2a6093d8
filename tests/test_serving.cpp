// Arrivals, the simulated server and its statistics, with step times that are made up here; the
// reports; and the command where there is no GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/serving_report.hpp"
#include "serving/requests.hpp"
#include "serving/simulate.hpp"
#include "serving/statistics.hpp"
#include "tests/bench_command.hpp"
#include "tests/table_fixture.hpp"

namespace moetune {
namespace {

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const StepTime kOneSecond = [](std::int64_t) { return 1.0; };

}  // namespace

TEST_CASE("poisson: the mean rate and lengths are as asked, and the seed decides everything") {
  const Workload workload{50, 200, 300, 40, 7};
  const auto requests = poisson_requests(workload);
  CHECK(static_cast<double>(requests.size()) == doctest::Approx(10'000).epsilon(0.03));
  double prompts = 0;
  double outputs = 0;
  double last_s = 0;
  for (const ServingRequest& request : requests) {
    CHECK(request.arrival_s >= last_s);
    CHECK(request.arrival_s < 200);
    CHECK(request.prompt_tokens >= 150);
    CHECK(request.prompt_tokens <= 450);
    last_s = request.arrival_s;
    prompts += static_cast<double>(request.prompt_tokens);
    outputs += static_cast<double>(request.output_tokens);
  }
  const auto count = static_cast<double>(requests.size());
  CHECK(prompts / count == doctest::Approx(300).epsilon(0.02));
  CHECK(outputs / count == doctest::Approx(40).epsilon(0.02));
  CHECK(poisson_requests(workload)[17].arrival_s == requests[17].arrival_s);
  Workload other = workload;
  other.seed = 8;
  CHECK(poisson_requests(other)[17].arrival_s != requests[17].arrival_s);
}

TEST_CASE("poisson: there is always a request, however low the rate") {
  CHECK(poisson_requests({1e-6, 1, 1, 1, 0}).size() == 1);
}

TEST_CASE("trace: lines are read, and what is wrong is named by file and line") {
  const TemporaryFolder directory;
  const std::string path = directory.file("trace.txt");
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return read_requests(path);
  };
  const auto requests = read("# time prompt output\n0.5 100 20\n\n1.5,7,1\n");
  REQUIRE(requests.size() == 2);
  CHECK(requests[1].arrival_s == 1.5);
  CHECK(requests[1].prompt_tokens == 7);
  const auto error = [&](const std::string& text) {
    try {
      read(text);
    } catch (const Error& caught) {
      CHECK(caught.kind() == ErrorKind::input);
      return std::string(caught.what());
    }
    return std::string("none");
  };
  CHECK(holds(error("0 1 1\n1 1\n"), "trace.txt:2: not three numbers"));
  CHECK(holds(error("0 1 1 1\n"), ":1: more than three"));
  CHECK(holds(error("0 0 1\n"), "below 1"));
  CHECK(holds(error("2 1 1\n1 1 1\n"), ":2: it arrives before"));
  CHECK(holds(error("# nothing\n"), "no requests"));
}

TEST_CASE("simulate: one request takes a step for its prompt and one for each further token") {
  const std::vector<ServingRequest> requests = {{2, 10, 4}};
  std::vector<std::int64_t> steps;
  const ServingRun run = simulate(requests, {16, 4, 0}, [&](std::int64_t tokens) {
    steps.push_back(tokens);
    return 1.0;
  });
  CHECK(steps == std::vector<std::int64_t>{10, 1, 1, 1});
  REQUIRE(run.outcomes.size() == 1);
  CHECK(run.outcomes[0].first_token_s == 3);
  CHECK(run.outcomes[0].finish_s == 6);
  CHECK(run.end_s == 6);
  CHECK(run.busy_s == 4);
}

TEST_CASE("simulate: decodes come first, and long prompts are done in parts") {
  const std::vector<ServingRequest> requests = {{0, 4, 6}, {0.5, 10, 2}};
  std::vector<std::int64_t> steps;
  simulate(requests, {4, 4, 0}, [&](std::int64_t tokens) {
    steps.push_back(tokens);
    return 1.0;
  });
  // The first prompt; then a decode beside 3, 3, 3 and 1 tokens of the second prompt; then both.
  CHECK(steps == std::vector<std::int64_t>{4, 4, 4, 4, 2, 2});
}

TEST_CASE("simulate: no step is over budget, no more requests run than allowed, none is lost") {
  const auto requests = poisson_requests({20, 30, 100, 20, 3});
  std::int64_t most = 0;
  const ServingRun run = simulate(requests, {64, 5, 0}, [&](std::int64_t tokens) {
    most = std::max(most, tokens);
    return 0.001 + 1e-5 * static_cast<double>(tokens);
  });
  CHECK(most <= 64);
  CHECK(run.outcomes.size() == requests.size());
  std::int64_t tokens = 0;
  for (const ServingRequest& request : requests)
    tokens += request.prompt_tokens + request.output_tokens - 1;
  CHECK(run.num_step_tokens == tokens);
  for (const RequestOutcome& outcome : run.outcomes) {
    CHECK(outcome.finished);
    CHECK(outcome.first_token_s > outcome.request.arrival_s);
    CHECK(outcome.finish_s >= outcome.first_token_s);
    // How many were being worked on when this one ended.
    const auto running =
        std::count_if(run.outcomes.begin(), run.outcomes.end(), [&](const RequestOutcome& other) {
          return other.first_token_s < outcome.finish_s && other.finish_s > outcome.finish_s;
        });
    CHECK(running <= 4);
  }
}

TEST_CASE("simulate: one that waits too long is turned away") {
  const std::vector<ServingRequest> requests = {{0, 1, 10}, {1, 1, 1}, {8, 1, 1}};
  const ServingRun run = simulate(requests, {4, 1, 3}, kOneSecond);
  REQUIRE(run.outcomes.size() == 3);
  CHECK_FALSE(run.outcomes[0].finished);
  CHECK(run.outcomes[0].request.arrival_s == 1);
  CHECK(run.outcomes[1].finished);
  CHECK(run.outcomes[2].finished);
  const auto figures = figures_of(run, {});
  CHECK(figures.success_rate == doctest::Approx(2.0 / 3));
}

TEST_CASE("padded counts: from 1 to the budget, ascending, steps never above an eighth beyond 64") {
  for (const std::int64_t most : {1, 3, 100, 2048, 8192}) {
    const auto counts = padded_counts(most);
    CHECK(counts.front() == 1);
    CHECK(counts.back() == most);
    CHECK(std::is_sorted(counts.begin(), counts.end(), std::less_equal<>()));
    for (std::size_t i = 1; i < counts.size(); ++i)
      CHECK((counts[i - 1] < 64 || 8 * (counts[i] - counts[i - 1]) <= counts[i - 1]));
  }
  const auto counts = padded_counts(64);
  CHECK(std::vector<std::int64_t>(counts.begin(), counts.begin() + 5) ==
        std::vector<std::int64_t>{1, 2, 4, 8, 16});
}

TEST_CASE("rate for load: the simulated server is then about as busy as asked") {
  const StepTime step_time = [](std::int64_t n) { return 0.01 + 1e-5 * static_cast<double>(n); };
  Workload workload{0, 300, 200, 50, 1};
  const ServerOptions server{2048, 32, 0};
  workload.rate_per_s = rate_for_load(workload, server, 0.7, step_time);
  const ServingRun run = simulate(poisson_requests(workload), server, step_time);
  double in_flight = 0;
  for (const RequestOutcome& outcome : run.outcomes)
    in_flight += (outcome.finish_s - outcome.request.arrival_s) / run.end_s;
  CHECK(in_flight > 0.5 * 32);
  CHECK(in_flight < 0.9 * 32);
}

TEST_CASE("figures: tokens, percentiles and objectives of a run") {
  const std::vector<ServingRequest> requests = {{0, 2, 3}, {0, 2, 1}};
  const ServingRun run = simulate(requests, {8, 8, 0}, kOneSecond);
  const auto figures = figures_of(run, {});
  CHECK(figures.output_tokens_per_s == doctest::Approx(4.0 / 3));
  CHECK(figures.step_tokens_per_s == doctest::Approx(6.0 / 3));
  CHECK(figures.busy_share == doctest::Approx(1));
  CHECK(figures.success_rate == 1);
  CHECK(figures.first_token_s.p50 == doctest::Approx(1));
  CHECK(figures.time_per_token_s.p99 == doctest::Approx(1));
  CHECK(figures.latency_s.p50 == doctest::Approx(2));
  CHECK(figures_of(run, {0.5, 0}).success_rate == 0);
  CHECK(figures_of(run, {0, 0.5}).success_rate == doctest::Approx(0.5));
  CHECK(figures_of({}, {}).success_rate == 0);
}

TEST_CASE("confidence: Student's interval, and none of a single value") {
  const std::vector<double> values = {1, 2, 3};
  const Interval interval = mean_interval(values);
  CHECK(interval.mean == doctest::Approx(2));
  CHECK(interval.half_width == doctest::Approx(4.303 / std::sqrt(3.0)));
  CHECK(mean_interval(std::vector<double>{5}).half_width == 0);
}

TEST_CASE("serving report: both sets of plans, their ratio, and what the times are of") {
  BenchRun run;
  run.gpu = known_gpu("h200");
  run.gpu.driver = "580.1";
  ServingSetup setup;
  setup.model = "mixtral-8x7b";
  setup.problem = {{"mixtral-8x7b", 8, 2, 4096, 14336}, Dtype::bf16, 2048, {}, 0};
  setup.num_layers = 32;
  setup.num_launched = 8;
  const auto row = [](const char* plans, double step_s) {
    ServingRow made{plans, 8, 2.5, 100, 200, {}};
    for (int seed = 0; seed < 3; ++seed) {
      const auto requests = poisson_requests({100, 5, 20, 5, static_cast<std::uint64_t>(seed)});
      made.repeats.push_back(
          figures_of(simulate(requests, {64, 8, 0}, [&](std::int64_t) { return step_s; }), {}));
    }
    return made;
  };
  const std::vector<ServingRow> rows = {row("table", 0.05), row("reference", 0.1)};
  CHECK(throughput_over_reference(rows[0], rows) == doctest::Approx(2).epsilon(0.02));
  std::string text = serving_text(run, setup, rows);
  CHECK(holds(text, "32 layers, of which 8 are launched"));
  CHECK(holds(text, "every step is launched on the GPU"));
  CHECK(holds(text, "only the MoE layers take time"));
  CHECK(holds(text, "+-"));
  setup.reused = true;
  text = serving_text(run, setup, rows);
  CHECK(holds(text, "MEASURED ONCE"));
  const auto json = serving_json(run, setup, rows);
  CHECK(json.at("rows")[0].at("setup").at("step_times") == "measured once");
  CHECK(json.at("rows")[1].at("tokens_per_s_over_reference") == 1.0);
  CHECK(json.at("rows")[0].at("output_tokens_per_s").at("half_width_95").get<double>() > 0);
}

TEST_CASE("serving command: it needs a GPU, and options that go together") {
  const auto run = [](const std::string& arguments) { return run_bench("--serving", arguments); };
  const auto [offline, why] = run("--device offline:h200");
  CHECK(offline == 3);
  CHECK(holds(why, "--serving only measures: it needs a GPU"));
  const auto [narrow, reason] = run("--device offline:h200 --concurrency 64 --token-budget 32");
  CHECK(narrow == 2);
  CHECK(holds(reason, "raise --token-budget"));
  const auto [both, which] = run("--journey");
  CHECK(both == 2);
  CHECK(holds(which, "--journey"));
}

}  // namespace moetune
