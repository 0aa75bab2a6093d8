// Searches that end early, by the user, a kill or a full disk, and go on.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>
#include <utility>

#include "core/error.hpp"
#include "tests/fake_search.hpp"

using namespace moetune;
using namespace moetune::fake;

namespace {

// 20 times the points: what a strategy that learns needs to be told from a grid.
class WideVariant final : public FakeVariant {
 public:
  SearchSpace space(const Gpu& gpu, const Problem& problem, Stage stage,
                    Fp8Mode fp8) const override {
    SearchSpace space = FakeVariant::space(gpu, problem, stage, fp8);
    space.parameters.push_back({"NUM_WARPS", {1, 2, 4, 8, 16}, 4, ""});
    space.parameters.push_back({"NUM_STAGES", {2, 3, 4, 5}, 2, ""});
    return space;
  }
};

Plan wide_reference(const Gpu&, const Problem&) {
  Plan plan = reference({}, {});
  for (Step& step : plan.steps) {
    step.point.set("NUM_WARPS", 4);
    step.point.set("NUM_STAGES", 2);
  }
  return plan;
}

void alter_wide(const Request& request, Trial& trial) {
  for (const Step& step : request.plan.steps) {
    trial.timing.median_us += 6 * std::abs(std::log2(step.point.at("NUM_WARPS") / 8.0));
    trial.timing.median_us += 5 * std::abs(step.point.at("NUM_STAGES") - 4);
  }
}

}  // namespace

TEST_CASE(
    "search: stopped, it keeps what is known; resumed, it repeats nothing and ends the same") {
  FakeSearch whole;
  FakeEvaluator all;
  const SearchResult expected = whole.run(all);
  const auto wanted = entries_of(expected.table_path);

  for (const std::size_t at : {0, 5, 40, 60, 100}) {
    CAPTURE(at);
    FakeSearch fake;
    FakeEvaluator first;
    const SearchResult stopped =
        fake.run(first, false, [&] { return first.requests.size() >= at; });
    CHECK(stopped.interrupted);
    CHECK_FALSE(stopped.table.complete());
    CHECK(first.requests.size() == at);
    for (const auto& [num_tokens, entry] : stopped.table.entries) {
      CHECK(entry.plan == expected.table.entries.at(num_tokens).plan);
    }
    FakeEvaluator rest;
    const SearchResult resumed = fake.run(rest, true);
    CHECK(rest.requests.size() == all.requests.size() - at);
    CHECK(resumed.num_resumed == at);
    CHECK(resumed.table.complete());
    CHECK(entries_of(resumed.table_path) == wanted);
  }
}

TEST_CASE("search: guided finds what a grid finds with fewer looks, also stopped and resumed") {
  const WideVariant wide;
  const auto set_up = [&wide](FakeSearch& fake, const char* strategy) {
    fake.settings.variants = {&wide};
    fake.settings.reference = wide_reference;
    fake.settings.strategy = strategy;
  };
  FakeSearch grid;
  set_up(grid, "grid");
  FakeEvaluator exhaustive;
  exhaustive.alter = alter_wide;
  const SearchResult best = grid.run(exhaustive);

  FakeSearch guided;
  set_up(guided, "guided");
  FakeEvaluator all;
  all.alter = alter_wide;
  const SearchResult found = guided.run(all);
  const auto is_gemm2 = [](const Request& request) { return request.stage == Stage::gemm2; };
  const auto turn = std::ranges::find_if(all.requests, is_gemm2);
  REQUIRE(turn != all.requests.end());
  CHECK(std::ranges::any_of(turn, all.requests.end(), [](const Request& request) {
    return request.stage == Stage::gemm1 && request.num_tokens == 16 && !request.thorough;
  }));
  CHECK(found.table.complete());
  CHECK(2 * all.requests.size() < exhaustive.requests.size());
  for (const auto& [num_tokens, entry] : best.table.entries) {
    CHECK(found.table.entries.at(num_tokens).timing.median_us <= entry.timing.median_us * 1.01);
  }
  const auto wanted = entries_of(found.table_path);

  for (const std::size_t at : {30, 70, 150}) {
    CAPTURE(at);
    FakeSearch fake;
    set_up(fake, "guided");
    FakeEvaluator first;
    first.alter = alter_wide;
    fake.run(first, false, [&] { return first.requests.size() >= at; });
    FakeEvaluator rest;
    rest.alter = alter_wide;
    const SearchResult resumed = fake.run(rest, true);
    CHECK(rest.requests.size() == all.requests.size() - at);
    CHECK(entries_of(resumed.table_path) == wanted);
  }
  FakeEvaluator idle;
  CHECK(entries_of(guided.run(idle, true).table_path) == wanted);
  CHECK(idle.requests.empty());
  CHECK(idle.num_prefetched == 0);
}

TEST_CASE("search: killed at any moment, --resume repeats at most one trial and ends the same") {
  FakeSearch whole;
  FakeEvaluator all;
  const auto wanted = entries_of(whole.run(all).table_path);
  for (const int delay_ms : {5, 20, 60}) {
    CAPTURE(delay_ms);
    FakeSearch fake;
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      FakeEvaluator slow;
      slow.sleep_us = 500;
      fake.run(slow);
      _exit(0);
    }
    usleep(static_cast<useconds_t>(delay_ms) * 1000);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    FakeEvaluator rest;
    const SearchResult resumed = fake.run(rest, true);
    CHECK(rest.requests.size() + resumed.num_resumed == all.requests.size());
    CHECK(resumed.table.complete());
    CHECK(entries_of(resumed.table_path) == wanted);
  }
}

TEST_CASE("search: a full disk ends it with one error; journal and table stay readable") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{24000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  ErrorKind kind = ErrorKind::failed;
  try {
    fake.run(evaluator);
  } catch (const Error& error) {
    kind = error.kind();
  }
  setrlimit(RLIMIT_FSIZE, &old);
  CHECK(kind == ErrorKind::io);
  CHECK(read_journal(fake.journal_path()).warnings.empty());
  const std::string table = fake.folder + "/tables/" + table_file_name(fake.table.identity);
  CHECK_FALSE(read_table(table).entries.empty());
  CHECK_FALSE(read_table(table).complete());
  FakeEvaluator rest;
  CHECK(fake.run(rest, true).table.complete());
}

TEST_CASE("search: resumed with the kernels that it looks at, whatever became of others") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  fake.run(evaluator);
  fake.table.identity.kernels.variants["other"] = "changed";
  CHECK_NOTHROW(fake.run(evaluator, true));
  for (const char* name : {"fake", "portable"}) {  // the latter is what speedups are against
    std::string& hash = fake.table.identity.kernels.variants[name];
    const std::string before = std::exchange(hash, "changed");
    CHECK_THROWS_WITH_AS(fake.run(evaluator, true), doctest::Contains("its variant_hashes is"),
                         Error);
    hash = before;
  }
  fake.table.identity.kernels.small_kernels = "changed";
  CHECK_THROWS_WITH_AS(fake.run(evaluator, true), doctest::Contains("its small_kernels is"), Error);
}

TEST_CASE("search: a search for another objective is not resumed") {
  FakeSearch fake;
  FakeEvaluator evaluator;
  fake.settings.objective = Objective::memory;
  evaluator.alter = [](const Request&, Trial& trial) { trial.workspace_bytes = 1; };
  fake.run(evaluator);
  fake.settings.objective = Objective::time;
  CHECK_THROWS_WITH_AS(fake.run(evaluator, true), doctest::Contains("its objective is \"memory\""),
                       Error);
}
