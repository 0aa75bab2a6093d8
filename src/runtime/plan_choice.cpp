#include "runtime/plan_choice.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>

#include "core/embedded.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "kernels/variant.hpp"
#include "program/steps.hpp"
#include "table/schema.hpp"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kChoices = 4;       // for a count
constexpr std::size_t kModelPoints = 24;  // of each GEMM
constexpr std::string_view kBuiltIn = "built-in: ";

bool same_layer(const LayerShape& a, const LayerShape& b) {
  return a.num_experts == b.num_experts && a.top_k == b.top_k && a.hidden_size == b.hidden_size &&
         a.intermediate_size == b.intermediate_size;  // the model's name is a label
}

std::string layer_text(const LayerShape& s, Dtype dtype) {
  return fmt::format("E={}, K={}, H={}, I={}, {}", s.num_experts, s.top_k, s.hidden_size,
                     s.intermediate_size, to_string(dtype));
}

std::string step_defect(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                        const Step& step) {
  const Stage stage = parse_stage(step.op);
  const Variant& variant = find_variant(step.variant);
  if (!variant.supports(gpu, problem.dtype)) {
    return fmt::format("{} does not run {} on {}", variant.name(), to_string(problem.dtype),
                       gpu.name);
  }
  SearchSpace space = variant.space(gpu, problem, stage, default_fp8_mode(problem.dtype));
  std::erase_if(space.constraints, [](const Constraint& rule) { return rule.spares_search; });
  if (const auto rejection = space.reject(step.point, true))
    return fmt::format("{}: {}", rejection->rule, rejection->reason);
  const bool pitched = stage == Stage::gemm1 ? layout.w13_pitch > 0 : layout.w2_pitch > 0;
  if (pitched && !variant.launch(problem, stage, step.point).uses_tma())
    return fmt::format("{} reads weights without gaps between rows alone", variant.name());
  return "";
}

// The best points of a GEMM by the time model, at problem.num_tokens. `every`: also those that a
// search would spare itself.
std::vector<Step> best_steps(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                             Stage stage, bool every) {
  std::vector<std::pair<double, Step>> best;
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, problem.dtype)) continue;
    SearchSpace space = variant->space(gpu, problem, stage, default_fp8_mode(problem.dtype));
    if (every)
      std::erase_if(space.constraints, [](const Constraint& rule) { return rule.spares_search; });
    for (std::uint64_t i = 0; i < space.size(); ++i) {
      const Point point = space.at(i);
      if (variant->fuses_gemms(point) || space.reject(point)) continue;
      const double us = variant->predict_us(gpu, problem, stage, point);
      if (best.size() == kModelPoints && !(us < best.back().first)) continue;
      const Step step{std::string(to_string(stage)), std::string(variant->name()), point};
      if (!step_defect(gpu, problem, layout, step).empty()) continue;
      const auto at = std::upper_bound(best.begin(), best.end(), us,
                                       [](double a, const auto& b) { return a < b.first; });
      best.insert(at, {us, step});
      if (best.size() > kModelPoints) best.pop_back();
    }
  }
  std::vector<Step> steps;
  steps.reserve(best.size());
  for (auto& [us, step] : best) steps.push_back(std::move(step));
  return steps;
}

std::vector<Step> best_steps(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                             Stage stage) {
  std::vector<Step> steps = best_steps(gpu, problem, layout, stage, false);
  return steps.empty() ? best_steps(gpu, problem, layout, stage, true) : steps;
}

}  // namespace

std::string_view to_string(ChoiceStep step) {
  switch (step) {
    case ChoiceStep::exact:
      return "exact";
    case ChoiceStep::nearest:
      return "nearest";
    case ChoiceStep::model:
      return "model";
  }
  return "model";
}

std::string plan_defect(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                        const Plan& plan) {
  if (plan.steps.size() != 2) return fmt::format("a plan of {} steps, not 2", plan.steps.size());
  try {
    for (const char* const op : {"gemm1", "gemm2"}) {
      const Step* const step = plan.find(op);
      if (step == nullptr) return fmt::format("the plan has no {} step", op);
      if (std::string defect = step_defect(gpu, problem, layout, *step); !defect.empty())
        return fmt::format("{}: {}", op, defect);
    }
    return pair_defect(plan);
  } catch (const Error& error) {  // an unknown variant, a missing parameter
    return error.what();
  }
}

std::vector<Plan> model_plans(const Gpu& gpu, const Problem& problem, const CallLayout& layout) {
  const std::vector<Step> first = best_steps(gpu, problem, layout, Stage::gemm1);
  const std::vector<Step> second = best_steps(gpu, problem, layout, Stage::gemm2);
  std::vector<Plan> plans;
  for (std::size_t ranks = 0; ranks + 1 < first.size() + second.size(); ++ranks) {
    for (std::size_t i = 0; i <= ranks && i < first.size(); ++i) {
      if (ranks - i >= second.size()) continue;
      Plan plan{{first[i], second[ranks - i]}};
      if (pair_defect(plan).empty()) plans.push_back(std::move(plan));
    }
  }
  return plans;
}

PlanChooser::PlanChooser(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                         const std::vector<std::string>& paths)
    : gpu_(gpu), problem_(problem), layout_(layout) {
  TableIdentity identity;
  identity.gpu = gpu.name;
  identity.shape = problem.shape;
  identity.dtype = problem.dtype;
  const fs::path file = table_file_name(identity);
  const fs::path in_folder = fs::path(file_name(gpu)) / file;
  const auto read = [&](const fs::path& path, bool is_named) {
    if (table_) return;
    try {
      add(path.string(), read_file(path.string()), is_named);
    } catch (const Error& error) {
      notes_.emplace_back(error.what());
    }
  };
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (!fs::is_directory(path, ignored)) {
      read(path, true);
      continue;
    }
    for (const fs::path& inside : {path / in_folder, path / file})
      if (fs::exists(inside, ignored)) read(inside, false);
  }
  for (const EmbeddedFile& built_in : embedded_tables()) {
    if (!table_ && built_in.name == (fs::path("tuned") / in_folder).string())
      add(std::string(kBuiltIn) + std::string(built_in.name), built_in.text, false);
  }
  if (table_) {
    for (const auto& [key, entry] : table_->table.entries) keys_.push_back(key);
  } else {
    notes_.push_back(fmt::format("no table of {} on {}; `moe-tune search` makes one",
                                 layer_text(problem.shape, problem.dtype), gpu.name));
  }
  if (keys_.empty()) keys_ = default_token_counts();
}

void PlanChooser::add(const std::string& name, std::string_view text, bool is_named) {
  Table table = parse_table(text, name);
  const TableIdentity& identity = table.identity;
  if (identity.gpu != gpu_.name) {
    notes_.push_back(fmt::format("{} is a table of {}", name, identity.gpu));
    return;
  }
  if (!same_layer(identity.shape, problem_.shape) || identity.dtype != problem_.dtype) {
    if (is_named) {  // a folder may well hold others
      notes_.push_back(
          fmt::format("{} is a table of {}", name, layer_text(identity.shape, identity.dtype)));
    }
    return;
  }
  table_ = Named{name, std::move(table)};
}

const std::vector<Plan>& PlanChooser::model_plans(std::int64_t key) const {
  const std::scoped_lock lock(mutex_);
  const auto [found, is_new] = model_plans_.try_emplace(key);
  if (is_new) {
    Problem problem = problem_;
    problem.num_tokens = key;
    found->second = moetune::model_plans(gpu_, problem, layout_);
  }
  return found->second;
}

std::vector<PlanChoice> PlanChooser::choose(std::int64_t num_tokens,
                                            std::vector<std::string>& notes,
                                            const IsUnfit& is_unfit) const {
  notes = notes_;
  Problem problem = problem_;
  problem.num_tokens = num_tokens;
  const auto usable = [&](const Plan& plan) {
    return !is_unfit || std::none_of(plan.steps.begin(), plan.steps.end(), is_unfit);
  };
  std::vector<PlanChoice> choices;
  const std::vector<std::int64_t> near = nearest_keys(keys_, num_tokens);
  for (const std::int64_t key : near) {
    if (!table_ || choices.size() == kChoices) break;
    const TableEntry& entry = table_->table.entries.at(key);
    std::string defect = plan_defect(gpu_, problem, layout_, entry.plan);
    if (defect.empty() && !usable(entry.plan)) defect = "it does not compile or fit here";
    if (!defect.empty()) {
      notes.push_back(fmt::format("{}: the entry for {} tokens was passed over: {}", table_->name,
                                  key, defect));
      continue;
    }
    // It runs and is right, as all legal points: only its time is of other kernels.
    const auto changed =
        changed_variants(variants_of(entry.plan), table_->table.identity.kernels, kernel_hashes());
    if (choices.empty() && !changed.empty()) {
      notes.push_back(
          fmt::format("{}: {} changed since the entry for {} tokens was tuned; search "
                      "again with --tokens {}",
                      table_->name, fmt::join(changed, " and "), key, key));
    }
    choices.push_back({key == num_tokens ? ChoiceStep::exact : ChoiceStep::nearest, table_->name,
                       key, entry.plan, entry.timing.median_us});
  }
  if (!choices.empty()) return choices;
  // Only where no entry serves: looking at every point takes a while.
  const std::int64_t key = table_ ? num_tokens : near.front();
  for (const Plan& plan : model_plans(key)) {
    if (choices.size() == kChoices) break;
    if (usable(plan) && plan_defect(gpu_, problem, layout_, plan).empty())
      choices.push_back({ChoiceStep::model, "", key, plan, 0});
  }
  return choices;
}

std::string choice_text(const Gpu& gpu, const Problem& problem, const ChoiceReport& report) {
  std::string text = fmt::format("{} tokens, {} on {}\n", report.num_tokens,
                                 layer_text(problem.shape, problem.dtype), gpu.name);
  if (const auto& choice = report.choice) {
    text += fmt::format("table  {}\n", choice->table.empty() ? "none" : choice->table);
    switch (choice->step) {
      case ChoiceStep::exact:
        text += fmt::format("step   exact: the entry for {} tokens\n", choice->key);
        break;
      case ChoiceStep::nearest:
        text += fmt::format("step   nearest: the entry for {} tokens\n", choice->key);
        break;
      case ChoiceStep::model:
        text +=
            fmt::format("step   model: predicted best at {} tokens, not measured\n", choice->key);
        break;
    }
    for (const Step& step : choice->plan.steps)
      text += fmt::format("{}  {} {}\n", step.op, step.variant, step.point.key());
    if (choice->recorded_us > 0)
      text += fmt::format("time   {:.1f} us, recorded by the table\n", choice->recorded_us);
  } else {
    text += "no kernel here runs this layer\n";
  }
  for (const std::string& note : report.notes) text += fmt::format("note   {}\n", note);
  return text;
}

nlohmann::ordered_json choice_json(const Gpu& gpu, const Problem& problem,
                                   const ChoiceReport& report) {
  using Json = nlohmann::ordered_json;
  Json json{{"num_tokens", report.num_tokens},
            {"gpu", gpu.name},
            {"num_experts", problem.shape.num_experts},
            {"top_k", problem.shape.top_k},
            {"hidden_size", problem.shape.hidden_size},
            {"intermediate_size", problem.shape.intermediate_size},
            {"dtype", to_string(problem.dtype)}};
  if (const auto& choice = report.choice) {
    json["step"] = to_string(choice->step);
    json["table"] = choice->table.empty() ? Json(nullptr) : Json(choice->table);
    json["key"] = choice->key;
    json["plan"] = choice->plan;
    json["recorded_us"] = choice->recorded_us > 0 ? Json(choice->recorded_us) : Json(nullptr);
  } else {
    json["step"] = nullptr;
  }
  json["notes"] = report.notes;
  return json;
}

}  // namespace moetune
