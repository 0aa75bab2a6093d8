#include "tune/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <future>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "core/host_memory.hpp"
#include "report/summary.hpp"
#include "tune/climb.hpp"
#include "tune/finals.hpp"
#include "tune/pairs.hpp"
#include "tune/race.hpp"
#include "tune/session_records.hpp"

namespace moetune {
namespace {

constexpr double kFinalistBand = 1.10;
constexpr std::size_t kLayerChoices = 3;  // of each GEMM, combined into layers
constexpr double kLayerBand = 1.03;
// What layers make of GEMMs that are equal alone: looks this far behind the fastest, beside the
// finalists, are tried in layers too. A tenth of a small GEMM, nothing of a large one.
constexpr double kNearUs = 1;
constexpr std::size_t kNearLooks = 12;

using Pair = std::array<Proposals, 2>;

// A stage's first looks.
struct Looks {
  std::vector<Trial> trials;
  std::uint64_t num_measured = 0;  // that no journal knew
};

std::size_t place(Stage stage) {
  return stage == Stage::gemm1 ? 0 : 1;
}

bool allows(const Pair& proposals, const Plan& plan) {
  const Step* first = plan.find(to_string(Stage::gemm1));
  const Step* second = plan.find(to_string(Stage::gemm2));
  return plan.steps.size() == 2 && first != nullptr && second != nullptr &&
         proposals[0].allows(*first) && proposals[1].allows(*second);
}

class Session {
 public:
  Session(Evaluator& evaluator, const Problem& problem, const SearchSettings& settings,
          const std::string& table_dir, Journal& journal, const std::function<bool()>& stop,
          SearchListener& listener, SearchResult& result)
      : evaluator_(evaluator),
        problem_(problem),
        settings_(settings),
        table_dir_(table_dir),
        journal_(journal),
        runner_(evaluator, journal, stop, listener),
        listener_(listener),
        result_(result),
        before_(table_on_disk()) {}

  void run();
  void end();

 private:
  void propose(std::size_t index);
  void begin_next(Stage stage, const std::vector<Trial>& looks);
  void write();
  std::optional<Table> table_on_disk() const;
  Plan known_plan(std::int64_t num_tokens) const;
  std::array<Looks, 2> race_stages(Pair& proposals, const Plan& reference);
  std::vector<Trial> tune_stage(const Proposals& proposals, Looks looks);
  std::optional<TableEntry> tune_layer(const Pair& proposals, const Plan& reference,
                                       const std::array<std::vector<Trial>, 2>& finals);
  std::vector<Request> joined_looks(std::int64_t num_tokens) const;
  std::vector<Plan> best_joined(std::int64_t num_tokens);
  std::uint64_t num_measured() const { return runner_.trials().size() - runner_.num_resumed(); }

  Evaluator& evaluator_;
  const Problem& problem_;
  const SearchSettings& settings_;
  const std::string& table_dir_;
  Journal& journal_;
  Runner runner_;
  SearchListener& listener_;
  SearchResult& result_;
  std::optional<Table> before_;                 // of an earlier search
  std::uint64_t num_looks_ = 0;                 // what a budget of trials counts
  std::uint64_t num_left_ = 0;                  // token counts to go
  std::array<std::vector<Plan>, 2> winners_;    // of the token count before
  std::array<std::vector<Plan>, 2> near_;       // looks near the fastest that were no finalists
  std::array<std::future<Proposals>, 2> next_;  // of the token count to come; invalid: none
};

// The next token count's spaces are enumerated beside the measuring: it takes a good part of a
// second a stage.
void Session::propose(std::size_t index) {
  if (index >= settings_.token_counts.size()) return;
  Problem problem = problem_;
  problem.num_tokens = settings_.token_counts[index];
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) {
    next_[place(stage)] =
        std::async(std::launch::async, [this, stage, problem, gpu = evaluator_.gpu()] {
          return Proposals(settings_, gpu, problem, stage);
        });
  }
}

// As soon as it is known what this token count's looks came to, also beside the measuring.
void Session::begin_next(Stage stage, const std::vector<Trial>& looks) {
  std::future<Proposals>& next = next_[place(stage)];
  if (!next.valid()) return;
  next = std::async(std::launch::async, [looks, enumerated = std::move(next)]() mutable {
    Proposals proposals = enumerated.get();
    proposals.begin(looks);
    return proposals;
  });
}

void Session::run() {
  propose(0);
  for (const Stage stage : {Stage::gemm1, Stage::gemm2}) begin_next(stage, {});
  Pair proposals{next_[0].get(), next_[1].get()};
  for (std::size_t i = 0; i < settings_.token_counts.size(); ++i) {
    const std::int64_t num_tokens = settings_.token_counts[i];
    num_left_ = settings_.token_counts.size() - i;
    propose(i + 1);
    Problem problem = problem_;
    problem.num_tokens = num_tokens;
    const Plan reference = settings_.reference(evaluator_.gpu(), problem);
    std::array<Looks, 2> looks = race_stages(proposals, reference);
    // What comes after the layers compiles while the finals and they are measured, and other GPUs
    // look at it.
    std::optional<Pair> next;
    if (next_[0].valid()) {
      next.emplace(Pair{next_[0].get(), next_[1].get()});
      for (Proposals& later : *next) announce(runner_, later);
    }
    std::array<std::vector<Trial>, 2> finals;
    for (std::size_t s = 0; s < 2; ++s) finals[s] = tune_stage(proposals[s], std::move(looks[s]));
    const std::optional<TableEntry> entry = tune_layer(proposals, reference, finals);
    if (next) proposals = *std::move(next);
    if (!entry) {
      result_.missing.push_back(num_tokens);
      listener_.note(
          fmt::format("{} tokens: no point works, so the table has no entry; the "
                      "journal says why ({})",
                      num_tokens, journal_.path()));
      continue;
    }
    result_.table.entries[num_tokens] = *entry;
    result_.table.missing.erase(num_tokens);
    write();
    listener_.entry_chosen(num_tokens, *entry);
  }
}

void Session::write() {
  journal_.sync();
  result_.table_path = write_table(table_dir_, result_.table);
}

std::optional<Table> Session::table_on_disk() const {
  const auto path = std::filesystem::path(table_dir_) / table_file_name(result_.table.identity);
  try {
    if (std::filesystem::exists(path)) return read_table(path.string());
  } catch (const Error&) {
    // No table of ours: write_table sets it aside.
  }
  return {};
}

// What the table says so far competes again, so that a smaller search makes no entry worse.
Plan Session::known_plan(std::int64_t num_tokens) const {
  if (!before_ || !before_->entries.contains(num_tokens)) return {};
  return before_->entries.at(num_tokens).plan;
}

// The two take turns, batch by batch: one's is compiled while the other's is measured.
std::array<Looks, 2> Session::race_stages(Pair& proposals, const Plan& reference) {
  // Of energy nothing is known before the layers: until then it is time that decides.
  const bool by_time =
      settings_.objective == Objective::time || settings_.objective == Objective::energy;
  // Half each of what both may spend.
  Allowance allowance = share(settings_.budget, runner_.elapsed_s(), num_looks_, num_left_, false);
  allowance.until_s += allowance.until_s - runner_.elapsed_s();
  std::uint64_t to_come = (proposals[0].expected() + proposals[1].expected()) * num_left_;
  if (settings_.budget.num_trials > 0) {
    to_come = std::min(to_come, settings_.budget.num_trials - num_looks_);
  }
  const std::uint64_t num_expected = runner_.trials().size() + to_come;
  std::vector<Race> races;
  for (Proposals& of_stage : proposals) {
    const Stage stage = of_stage.stage();
    listener_.stage_started(stage, of_stage.num_tokens(), num_expected);
    for (const std::string& note : of_stage.notes()) listener_.note(note);
    listener_.points_rejected(of_stage.rejected());
    add_rejected(result_.rejected, of_stage.rejected());
    std::vector<Plan> seeds;
    if (const Step* step = reference.find(to_string(stage))) seeds.push_back(Plan{{*step}});
    for (const Plan& plan : winners_[place(stage)])
      if (of_stage.allows(plan.steps.front())) seeds.push_back(plan);
    races.emplace_back(runner_, of_stage, std::move(seeds), allowance, by_time);
  }
  // Large kernels, wanted after the finals: compiled where the races leave a core idle.
  std::vector<Request> joined = joined_looks(proposals[0].num_tokens());
  for (Request& request : joined) request.urgency = Urgency::later;
  runner_.prefetch(joined);
  std::array<bool, 2> goes_on{true, true};
  while (goes_on[0] || goes_on[1]) {
    for (std::size_t s = 0; s < 2; ++s) {
      if (!goes_on[s]) continue;
      listener_.stage_started(proposals[s].stage(), proposals[s].num_tokens(), num_expected);
      goes_on[s] = races[s].next_batch();
      if (!goes_on[s]) begin_next(proposals[s].stage(), races[s].trials());
    }
  }
  num_looks_ += races[0].trials().size() + races[1].trials().size();
  return {Looks{races[0].trials(), races[0].num_measured()},
          Looks{races[1].trials(), races[1].num_measured()}};
}

std::vector<Trial> Session::tune_stage(const Proposals& proposals, Looks looks) {
  const Stage stage = proposals.stage();
  const std::int64_t num_tokens = proposals.num_tokens();
  listener_.stage_started(stage, num_tokens, 0);
  std::vector<Plan>& winners = winners_[place(stage)];
  std::vector<Trial>& trials = looks.trials;
  const std::size_t first_trial = runner_.trials().size();
  const std::uint64_t measured_before = num_measured();
  std::size_t num_trials = trials.size();
  const bool by_time =
      settings_.objective == Objective::time || settings_.objective == Objective::energy;
  // After the race: a resumed search finds its own entries in the table, and strategies that learn
  // must decide as they did before.
  const Plan known = known_plan(num_tokens);
  if (const Step* step = known.find(to_string(stage))) {
    const Plan plan{{*step}};
    const bool is_new = std::none_of(trials.begin(), trials.end(),
                                     [&](const Trial& trial) { return trial.plan == plan; });
    if (is_new && proposals.allows(*step)) {
      trials.push_back(as_in_layer(runner_.run({stage, num_tokens, plan, 0, false}, 0)));
      ++num_looks_;
    }
  }

  // The reference is measured even where the settings exclude it (FP8 on): it cannot win then.
  std::erase_if(trials,
                [&](const Trial& trial) { return !proposals.allows(trial.plan.steps.front()); });
  if (!by_time) keep_best(trials, settings_.objective, true);
  settle(trials, nullptr, settings_.variants);
  std::vector<Plan> finalists;
  for (const Trial& trial : pick(trials, settings_.num_finalists, kFinalistBand)) {
    finalists.push_back(trial.plan);
  }
  std::vector<Plan>& near = near_[place(stage)];
  near.clear();
  for (const Trial& trial : trials) {
    if (near.size() == kNearLooks || !has_good_time(trial)) break;
    if (trial.timing.median_us > trials.front().timing.median_us + kNearUs) break;
    if (std::find(finalists.begin(), finalists.end(), trial.plan) == finalists.end())
      near.push_back(trial.plan);
  }
  std::vector<Trial> finals = measure_again(runner_, finalists, stage, num_tokens, by_time);
  if (!by_time) keep_best(finals, settings_.objective, true);
  settle(finals, nullptr, settings_.variants);
  winners.clear();
  for (const Trial& trial : finals) winners.push_back(trial.plan);

  num_trials += runner_.trials().size() - first_trial;
  if (looks.num_measured > 0 || num_measured() > measured_before) {
    journal_.append(stage_record(proposals, finals, num_trials));
  }
  if (settings_.strategy == "ablation") {
    for (const Proposals::Searched& searched : proposals.searched()) {
      if (!searched.first) continue;
      const Step start{std::string(to_string(stage)), std::string(searched.variant->name()),
                       *searched.first};
      result_.sensitivities.push_back(
          sensitivity(runner_.trials(), stage, num_tokens, searched.space, start));
    }
  }
  return finals;
}

std::optional<TableEntry> Session::tune_layer(const Pair& proposals, const Plan& reference,
                                              const std::array<std::vector<Trial>, 2>& finals) {
  const std::int64_t num_tokens = proposals[0].num_tokens();
  std::vector<Plan> plans{reference};
  const auto add = [&plans](const Plan& plan) {
    if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
  };
  if (const Plan known = known_plan(num_tokens); allows(proposals, known)) add(known);
  const std::uint64_t measured_before = num_measured();
  listener_.stage_started(Stage::layer, num_tokens, 0);
  const bool by_time = settings_.objective == Objective::time;
  std::array<std::vector<Plan>, 2> gemms;
  for (std::size_t s = 0; s < 2; ++s) {
    std::vector<Trial> in_layers;
    for (const Trial& trial : finals[s]) in_layers.push_back(as_in_layer(trial));
    settle(in_layers, nullptr, settings_.variants);
    for (const Trial& trial : pick(in_layers, kLayerChoices, kLayerBand))
      gemms[s].push_back(trial.plan);
    if (by_time) gemms[s].insert(gemms[s].end(), near_[s].begin(), near_[s].end());
  }
  const std::vector<Plan> pairs = by_time ? promising_pairs(runner_, gemms[0], gemms[1], num_tokens)
                                          : all_pairs(gemms[0], gemms[1]);
  for (const Plan& layer : pairs) add(layer);
  const bool may_climb = settings_.strategy == "guided" && settings_.budget.seconds == 0 &&
                         settings_.budget.num_trials == 0;
  if (by_time && may_climb && !pairs.empty())
    for (const Plan& layer : climb(runner_, proposals, pairs)) add(layer);
  for (const Plan& plan : best_joined(num_tokens)) add(plan);
  const std::size_t first_final = runner_.trials().size();
  std::vector<Trial> layers = measure_again(runner_, plans, Stage::layer, num_tokens, by_time);
  TableEntry entry;
  for (const Trial& trial : layers)
    if (trial.plan == reference) entry.reference_us = trial.timing.median_us;
  if (!allows(proposals, reference)) {
    std::erase_if(layers, [&](const Trial& trial) { return trial.plan == reference; });
  }
  const bool any_works = !layers.empty();
  keep_best(layers, settings_.objective, false);
  if (any_works && layers.empty()) {
    listener_.note(fmt::format("{} tokens: layers work, but their {} is not known", num_tokens,
                               to_string(settings_.objective)));
  }
  entry.ties = settle(layers, &reference, settings_.variants);
  if (layers.empty()) return {};

  const Trial& winner = layers.front();
  entry.plan = winner.plan;
  entry.timing = winner.timing;
  entry.speedup = entry.reference_us / winner.timing.median_us;
  entry.rel_err = winner.rel_err;
  entry.quantisation_err = winner.quantisation_err;
  entry.energy_mj = winner.energy_mj;
  entry.workspace_bytes = winner.workspace_bytes;
  entry.registers = winner.registers;
  entry.smem_bytes = winner.smem_bytes;
  entry.source = winner.source;
  if (num_measured() > measured_before) {
    std::vector<Timing> rounds;
    for (std::size_t i = first_final; i < runner_.trials().size(); ++i) {
      const Trial& trial = runner_.trials()[i];
      if (trial.plan == winner.plan) rounds.push_back(trial.timing);
    }
    if (rounds.size() > 1) rounds.erase(rounds.begin());  // where clocks rose
    journal_.append(entry_record(num_tokens, entry, confidence(rounds)));
  }
  return entry;
}

// First looks at the plans whose GEMMs share a launch; the best of them. Where the sum need not be
// in order it is fused: that leaves two launches instead of three.
std::vector<Plan> Session::best_joined(std::int64_t num_tokens) {
  const std::vector<Request> requests = joined_looks(num_tokens);
  runner_.prefetch(requests);
  std::vector<Trial> trials;
  trials.reserve(requests.size());
  for (const Request& request : requests) trials.push_back(runner_.run(request, 0));
  settle(trials, nullptr, settings_.variants);
  std::vector<Plan> best;
  for (const Trial& trial : trials) {
    const bool is_near = trial.timing.median_us <= trials.front().timing.median_us * kLayerBand;
    if (best.size() < kLayerChoices && is_near) best.push_back(trial.plan);
  }
  return best;
}

std::vector<Request> Session::joined_looks(std::int64_t num_tokens) const {
  if (settings_.strategy == "ablation") return {};
  Problem problem = problem_;
  problem.num_tokens = num_tokens;
  std::vector<Request> requests;
  for (const Variant* variant : settings_.variants) {
    for (Plan& plan : variant->joined_plans(evaluator_.gpu(), problem, settings_.fp8)) {
      if (is_deterministic(plan) != settings_.deterministic) continue;
      requests.push_back({Stage::layer, num_tokens, std::move(plan), 0, false});
    }
  }
  return requests;
}

void Session::end() {
  result_.trials = runner_.trials();
  result_.num_resumed = runner_.num_resumed();
}

}  // namespace

SearchResult search(Evaluator& evaluator, const Problem& problem, const SearchSettings& settings,
                    Table table, const std::string& table_dir, Journal& journal,
                    const std::function<bool()>& stop, SearchListener& listener) {
  SearchResult result;
  result.table = std::move(table);
  result.table.objective = settings.objective;
  result.table.missing = {settings.token_counts.begin(), settings.token_counts.end()};
  const auto began = std::chrono::steady_clock::now();
  const Usage before = evaluator.usage();
  Session session(evaluator, problem, settings, table_dir, journal, stop, listener, result);
  try {
    session.run();
  } catch (const Interrupted&) {
    result.interrupted = true;
  }
  result.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  result.usage = evaluator.usage();
  result.usage.busy_s -= before.busy_s;
  result.usage.compile_s -= before.compile_s;
  result.usage.peak_host_bytes += peak_host_bytes();
  session.end();
  journal.append(run_record(result));
  journal.sync();
  return result;
}

}  // namespace moetune
