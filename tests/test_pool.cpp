// Several evaluators as one: what is shared out, what is not, and what a loss costs.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <random>
#include <set>

#include "core/error.hpp"
#include "tests/fake_search.hpp"
#include "tune/evaluator_pool.hpp"
#include "tune/worker_evaluator.hpp"

using namespace moetune;

namespace {

// What the members of a pool did, by member.
struct Seen {
  std::mutex mutex;
  std::map<int, std::vector<Request>> evaluated;
  std::map<int, std::size_t> num_prefetched;
};

class Member final : public Evaluator {
 public:
  using Behave = std::function<void(const Request&)>;
  Member(int id, Seen& seen, Behave behave = {})
      : id_(id), seen_(seen), behave_(std::move(behave)) {
    gpu_.name = "NVIDIA Fake";
  }
  const Gpu& gpu() const override { return gpu_; }
  std::string nvrtc_version() const override { return "13.0"; }
  void prefetch(std::span<const Request> requests) override {
    const std::lock_guard lock(seen_.mutex);
    seen_.num_prefetched[id_] += requests.size();
  }
  Trial evaluate(const Request& request) override {
    if (behave_) behave_(request);
    usleep(500);
    const std::lock_guard lock(seen_.mutex);
    seen_.evaluated[id_].push_back(request);
    Trial trial;
    trial.plan = request.plan;
    trial.registers = id_;
    trial.timing.median_us = request.stop_above_us;
    return trial;
  }
  Usage usage() const override { return {1.0 * id_, 2.0 * id_, 1000 * id_}; }

 private:
  int id_;
  Seen& seen_;
  Behave behave_;
  Gpu gpu_;
};

EvaluatorPool::Make make(int id, Seen& seen, Member::Behave behave = {}) {
  return [=, &seen] { return std::make_unique<Member>(id, seen, behave); };
}

Request look(int block_m, Stage stage = Stage::gemm1) {
  Request request;
  request.stage = stage;
  request.num_tokens = 64;
  request.plan.steps = {{"gemm1", "fake", Point({{"BLOCK_SIZE_M", block_m}})}};
  return request;
}

Request thorough(int block_m) {
  Request request = look(block_m);
  request.thorough = true;
  return request;
}

std::vector<Request> looks(int num) {
  std::vector<Request> requests;
  for (int i = 0; i < num; ++i) requests.push_back(look(i));
  return requests;
}

[[noreturn]] void lose_device() {
  throw Error(ErrorKind::device, "the GPU fell off the bus");
}

// Processes whose parent is this one.
std::set<pid_t> children() {
  std::set<pid_t> pids;
  for (const auto& item : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(item.path() / "stat");
    std::string text;
    if (!std::getline(file, text)) continue;
    const std::size_t end = text.rfind(')');
    char state = 0;
    pid_t parent = 0;
    if (std::sscanf(text.c_str() + end + 1, " %c %d", &state, &parent) == 2 && state != 'Z' &&
        parent == getpid()) {
      pids.insert(std::stoi(item.path().filename()));
    }
  }
  return pids;
}

// Kills a child now and then, but none that may still be at what an earlier kill interrupted.
class Killer final : public SearchListener {
 public:
  void trial_ended(const Trial& trial, bool) override {
    ++num_trials;
    num_failed += trial.status != TrialStatus::ok;
    if (num_trials % 8 != 0) return;
    usleep(static_cast<useconds_t>(random_() % 700));
    for (const pid_t pid : children()) {
      const int since = first_seen_.try_emplace(pid, num_trials).first->second;
      if (num_trials - since < 60) continue;
      num_kills += kill(pid, SIGKILL) == 0;
      first_seen_[pid] = 1'000'000;
      return;
    }
  }
  int num_trials = 0;
  int num_failed = 0;
  int num_kills = 0;

 private:
  std::mt19937 random_{7};
  std::map<pid_t, int> first_seen_;
};

void check_same_entries(const Table& table, const Table& expected) {
  REQUIRE(table.entries.size() == expected.entries.size());
  for (const auto& [num_tokens, entry] : expected.entries) {
    CAPTURE(num_tokens);
    CHECK(table.entries.at(num_tokens).plan.key() == entry.plan.key());
    CHECK(table.entries.at(num_tokens).timing.median_us == entry.timing.median_us);
    CHECK(table.entries.at(num_tokens).reference_us == entry.reference_us);
  }
}

Table expected_table(const fake::FakeSearch& like) {
  fake::FakeSearch search;
  search.settings.token_counts = like.settings.token_counts;
  fake::FakeEvaluator evaluator;
  return search.run(evaluator).table;
}

SearchResult search_with(EvaluatorPool& pool, const fake::FakeSearch& search,
                         SearchListener& listener, bool resume = false) {
  Journal journal(search.journal_path(),
                  journal_identity(search.table.identity, search.problem, search.settings), "test",
                  resume);
  return moetune::search(
      pool, search.problem, search.settings, search.table, search.folder + "/tables", journal,
      [] { return false; }, listener);
}

EvaluatorPool::Make worker(const Problem& problem, const WorkerLimits& limits,
                           const std::shared_ptr<Quarantine>& quarantine) {
  return [=] {
    return std::make_unique<WorkerEvaluator>(WorkerCommand{MOETUNE_FAKE_WORKER}, 0, problem,
                                             EvaluatorOptions{}, limits, quarantine);
  };
}

}  // namespace

TEST_CASE("pool: announced looks are shared out, each once, and answers fit their questions") {
  Seen seen;
  {
    EvaluatorPool pool({make(1, seen), make(2, seen), make(3, seen)});
    const std::vector<Request> requests = looks(120);
    pool.prefetch(requests);
    for (const Request& request : requests) CHECK(pool.evaluate(request).plan == request.plan);
    CHECK(pool.usage().busy_s == 2);  // of 1, 2 and 3 on average
    CHECK(pool.usage().compile_s == 12);
    CHECK(pool.usage().peak_host_bytes == 6000);
  }
  std::set<std::string> plans;
  std::size_t num_evaluated = 0;
  for (const auto& [id, requests] : seen.evaluated) {
    CHECK(requests.size() >= 20);
    num_evaluated += requests.size();
    for (const Request& request : requests) plans.insert(request.plan.key());
  }
  CHECK(seen.evaluated.size() == 3);
  CHECK(num_evaluated == 120);
  CHECK(plans.size() == 120);
  CHECK(seen.num_prefetched[1] == 40);
}

TEST_CASE("pool: thorough requests of a token count all go to one member") {
  Seen seen;
  EvaluatorPool pool({make(1, seen), make(2, seen)});
  const std::vector<Request> later = looks(50);
  pool.prefetch(later);
  for (int i = 0; i < 20; ++i) CHECK(pool.evaluate(thorough(i)).registers == 1);
}

TEST_CASE("pool: layers of a token count are all looked at by one member, announced or not") {
  Seen seen;
  EvaluatorPool pool({make(1, seen), make(2, seen)});
  std::vector<Request> layers;
  for (int i = 0; i < 20; ++i) layers.push_back(look(i, Stage::layer));
  pool.prefetch(layers);
  for (const Request& layer : layers) CHECK(pool.evaluate(layer).registers == 1);
  CHECK(seen.evaluated[2].empty());
}

TEST_CASE("pool: an announced look takes the bound of the race that it is in") {
  Seen seen;
  EvaluatorPool pool({make(1, seen)});
  Request first = look(0);
  first.stop_above_us = 7;
  pool.evaluate(first);
  const std::vector<Request> announced = looks(4);
  pool.prefetch(announced);
  for (int i = 1; i < 4; ++i) {
    Request request = look(i);
    request.stop_above_us = 7;
    CHECK(pool.evaluate(request).timing.median_us == 7);
  }
}

TEST_CASE("pool: what was announced and is not asked for neither blocks nor is waited for") {
  Seen seen;
  {
    EvaluatorPool pool({make(1, seen), make(2, seen)});
    for (int round = 0; round < 10; ++round) {
      std::vector<Request> announced;
      for (int i = 0; i < 500; ++i) announced.push_back(look(1000 * round + i));
      pool.prefetch(announced);
      CHECK(pool.evaluate(look(1000 * round + 1)).status == TrialStatus::ok);
      CHECK(pool.evaluate(thorough(round)).registers == 1);
    }
  }
  std::size_t num_evaluated = 0;
  for (const auto& [id, requests] : seen.evaluated) num_evaluated += requests.size();
  CHECK(num_evaluated < 10 * 100);
}

TEST_CASE(
    "pool: while one measures finalists the others, and they alone, look at what is to come") {
  Seen seen;
  const auto slow = [](const Request& request) {
    if (request.thorough) usleep(100'000);
  };
  {
    EvaluatorPool pool({make(1, seen, slow), make(2, seen, slow)});
    pool.evaluate(look(0));
    std::vector<Request> later;
    for (int i = 0; i < 20; ++i) {
      later.push_back(look(i));
      later.back().num_tokens = 128;
      later.push_back(later.back());
      later.back().plan.steps[0].point.set("BLOCK_SIZE_M", 1000 + i);
      later.back().urgency = Urgency::perhaps;
    }
    pool.prefetch(later);
    pool.prefetch(std::vector{look(1)});
    usleep(20'000);
    {
      const std::lock_guard lock(seen.mutex);
      // The race at hand goes on, also past what was announced before; nobody leaves it.
      CHECK(seen.evaluated[1].size() + seen.evaluated[2].size() == 2);
    }
    for (int i = 0; i < 3; ++i) CHECK(pool.evaluate(thorough(i)).registers == 1);
  }
  CHECK(seen.num_prefetched[1] + seen.num_prefetched[2] == 41);  // compiled, all of them
  for (const Request& request : seen.evaluated[1]) CHECK(request.num_tokens == 64);
  std::size_t num_ahead = 0;
  for (const Request& request : seen.evaluated[2]) {
    CHECK(request.urgency != Urgency::perhaps);
    num_ahead += request.num_tokens == 128;
  }
  CHECK(num_ahead >= 15);
}

TEST_CASE("pool: a single member is kept busy, but a kill loses little of what it did ahead") {
  Seen seen;
  EvaluatorPool pool({make(1, seen)});
  const std::vector<Request> announced = looks(50);
  pool.prefetch(announced);
  const auto num_evaluated = [&] {
    usleep(30'000);
    const std::lock_guard lock(seen.mutex);
    return seen.evaluated[1].size();
  };
  CHECK(num_evaluated() == 2);
  for (int i = 0; i < 10; ++i) pool.evaluate(announced[static_cast<std::size_t>(i)]);
  CHECK(num_evaluated() == 12);
}

TEST_CASE("pool: a look that is announced again is compiled where it was the first time") {
  Seen seen;
  {
    EvaluatorPool pool({make(1, seen, [](const Request&) { usleep(20'000); }),
                        make(2, seen, [](const Request&) { usleep(20'000); })});
    const std::vector<Request> announced = looks(9);  // odd: the next one's turn changes
    pool.prefetch(announced);
    pool.prefetch(announced);
    for (const Request& request : announced) pool.evaluate(request);
  }
  CHECK(seen.num_prefetched[1] == 10);
  CHECK(seen.num_prefetched[2] == 8);
  CHECK(seen.evaluated[1].size() + seen.evaluated[2].size() == 9);
}

TEST_CASE("pool: a member that is lost hands what it had to the others") {
  spdlog::set_level(spdlog::level::off);
  Seen seen;
  std::atomic<int> num_left = 5;
  EvaluatorPool pool({make(1, seen), make(2, seen, [&](const Request&) {
                        if (num_left-- <= 0) lose_device();
                      })});
  const std::vector<Request> requests = looks(60);
  pool.prefetch(requests);
  for (const Request& request : requests) CHECK(pool.evaluate(request).plan == request.plan);
  CHECK(seen.evaluated[2].size() == 5);
  CHECK(seen.evaluated[1].size() == 55);
}

TEST_CASE("pool: when all are lost, or the one with the finalists, that is an error") {
  spdlog::set_level(spdlog::level::off);
  Seen seen;
  const auto lost = [](const Request&) { lose_device(); };
  EvaluatorPool none({make(1, seen, lost), make(2, seen, lost)});
  CHECK_THROWS_WITH_AS(none.evaluate(look(1)), "the GPU fell off the bus", Error);
  CHECK_THROWS_WITH_AS(none.evaluate(look(2)), "the GPU fell off the bus", Error);

  EvaluatorPool other({make(1, seen,
                            [](const Request& request) {
                              if (request.thorough) lose_device();
                            }),
                       make(2, seen)});
  CHECK_THROWS_WITH_AS(other.evaluate(thorough(1)), "the GPU fell off the bus", Error);
  CHECK_THROWS_WITH_AS(other.evaluate(thorough(1)), doctest::Contains("resume"), Error);
  CHECK(other.evaluate(look(1)).registers == 2);
}

TEST_CASE("pool: an error that is no loss is thrown where it is asked for, and only there") {
  Seen seen;
  const auto some = [](const Request& request) {
    if (request.plan.steps[0].point.at("BLOCK_SIZE_M") == 3)
      throw Error(ErrorKind::input, "no such trace");
  };
  EvaluatorPool pool({make(1, seen, some), make(2, seen, some)});
  const std::vector<Request> requests = looks(8);
  pool.prefetch(requests);
  for (const Request& request : requests) {
    if (request.plan == look(3).plan) {
      CHECK_THROWS_WITH_AS(pool.evaluate(request), "no such trace", Error);
    } else {
      CHECK(pool.evaluate(request).status == TrialStatus::ok);
    }
  }
}

TEST_CASE("pool: members that cannot open are left out, unless all are; kinds are not mixed") {
  spdlog::set_level(spdlog::level::off);
  Seen seen;
  const EvaluatorPool::Make broken = []() -> std::unique_ptr<Evaluator> { lose_device(); };
  EvaluatorPool pool({broken, make(2, seen)});
  CHECK(pool.num_members() == 1);
  CHECK(pool.evaluate(thorough(1)).registers == 2);
  CHECK_THROWS_WITH_AS(EvaluatorPool({broken, broken}), "the GPU fell off the bus", Error);
  const EvaluatorPool::Make other = [&seen] {
    auto member = std::make_unique<Member>(3, seen);
    const_cast<Gpu&>(member->gpu()).name = "NVIDIA Other";
    return member;
  };
  CHECK_THROWS_WITH_AS(EvaluatorPool({make(1, seen), other}),
                       doctest::Contains("NVIDIA Fake with NVRTC 13.0 and NVIDIA Other"), Error);
}

TEST_CASE("pool: two children, one or the other killed at random moments: nothing is lost") {
  spdlog::set_level(spdlog::level::off);
  fake::FakeSearch search;
  search.settings.token_counts = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512};
  search.problem.num_tokens = 512;
  search.problem.shape.model = "searched";
  const auto quarantine = std::make_shared<Quarantine>();
  EvaluatorPool pool(
      {worker(search.problem, {}, quarantine), worker(search.problem, {}, quarantine)});
  Killer killer;
  const SearchResult result = search_with(pool, search, killer);
  CHECK(killer.num_kills >= 5);
  CHECK(killer.num_failed == 0);
  check_same_entries(result.table, expected_table(search));
  // Every trial is in the journal, once.
  const JournalContents contents = read_journal(search.journal_path());
  CHECK(contents.trials.size() == result.trials.size());
  CHECK(contents.warnings.empty());
}

TEST_CASE(
    "pool: a kernel that hangs, faults, returns NaN or kills its process costs its own trial") {
  spdlog::set_level(spdlog::level::off);
  fake::FakeSearch search;
  search.problem.shape.model = "faulty";
  const auto quarantine = std::make_shared<Quarantine>();
  const WorkerLimits limits{.trial_s = 1, .max_deaths = 10};
  EvaluatorPool pool(
      {worker(search.problem, limits, quarantine), worker(search.problem, limits, quarantine)});
  SearchListener nobody;
  const SearchResult result = search_with(pool, search, nobody);
  check_same_entries(result.table, expected_table(search));
  std::map<TrialStatus, int> statuses;
  for (const Trial& trial : result.trials) ++statuses[trial.status];
  CHECK(statuses[TrialStatus::launch_failed] > 0);
  CHECK(statuses[TrialStatus::timed_out] > 0);
  CHECK(statuses[TrialStatus::wrong_result] > 0);
  CHECK(statuses[TrialStatus::rejected] == 0);
}

TEST_CASE("pool: a search killed at any moment is resumed and ends the same") {
  spdlog::set_level(spdlog::level::off);
  fake::FakeSearch search;
  const auto run = [&search] {
    const EvaluatorPool::Make member = [] { return std::make_unique<fake::FakeEvaluator>(); };
    EvaluatorPool pool({member, member});
    SearchListener nobody;
    return search_with(pool, search, nobody, true);
  };
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      run();
      _exit(0);
    }
    usleep(static_cast<useconds_t>(1000 * i));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  const SearchResult result = run();
  check_same_entries(result.table, expected_table(search));
  std::set<std::string> once;
  for (const JournalTrial& known : read_journal(search.journal_path()).trials) {
    const Trial& trial = known.trial;
    CHECK(once.insert(fmt::format("{} {} {} {}", to_string(trial.stage), trial.num_tokens,
                                  known.round, trial.plan.key()))
              .second);
  }
}

// tests/slurm/run.sh says with what, and on two nodes of a real Slurm.
TEST_CASE("launcher: children on two nodes search as one, and a lost one costs nothing" *
          doctest::skip(std::getenv("MOETUNE_LAUNCHER") == nullptr)) {
  spdlog::set_level(spdlog::level::off);
  fake::FakeSearch search;
  search.settings.token_counts = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
  search.problem.num_tokens = 256;
  search.problem.shape.model = "searched";
  const auto quarantine = std::make_shared<Quarantine>();
  const EvaluatorPool::Make make = [&] {
    return std::make_unique<WorkerEvaluator>(
        WorkerCommand{MOETUNE_FAKE_WORKER, std::getenv("MOETUNE_LAUNCHER")}, 0, search.problem,
        EvaluatorOptions{}, WorkerLimits{}, quarantine);
  };
  EvaluatorPool pool({make, make});
  REQUIRE(pool.num_members() == 2);
  Killer killer;
  const SearchResult result = search_with(pool, search, killer);
  MESSAGE(result.trials.size() << " trials, " << killer.num_kills << " launchers killed");
  CHECK(killer.num_kills >= 1);
  CHECK(killer.num_failed == 0);
  check_same_entries(result.table, expected_table(search));
}
