// Which plan a call takes: a table's entry for its token count, else a neighbour's, else what the
// time model likes best. The same rule for libmoetune, `moe-tune which` and `moe-tune bench`.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "program/build.hpp"
#include "table/table.hpp"

namespace moetune {

enum class ChoiceStep {
  exact,    // the table has this token count
  nearest,  // the table has another one: see nearest_key()
  model     // no table has a usable entry: the time model's best legal points
};
std::string_view to_string(ChoiceStep step);

struct PlanChoice {
  ChoiceStep step = ChoiceStep::model;
  std::string table;     // path, "built-in: NAME", or "" for the model
  std::int64_t key = 0;  // the token count that the plan was chosen for
  Plan plan;
  double recorded_us = 0;  // of the table's entry; 0: none
};

// What `explain` and `moe-tune which` tell.
struct ChoiceReport {
  std::int64_t num_tokens = 0;
  std::optional<PlanChoice> choice;  // nothing: no kernel here runs the layer
  std::vector<std::string> notes;    // what was looked at and passed over, and why
};
std::string choice_text(const Gpu& gpu, const Problem& problem, const ChoiceReport& report);
nlohmann::ordered_json choice_json(const Gpu& gpu, const Problem& problem,
                                   const ChoiceReport& report);

// "" or why a call of this layer must not run `plan`: a step is missing, its variant unknown or not
// for this GPU, dtype or layout, a value is none of its parameter's, or a rule broken, with
// numbers. Rules that only spare a search do not count.
std::string plan_defect(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
                        const Plan& plan);

// Tables of one layer on one GPU. All members may be called from several threads.
class PlanChooser {
 public:
  // `paths`: tables, or folders with a table of this layer (in the folder, or in one named by the
  // GPU), in this order, before the built-in ones. What cannot be read or is of another GPU or
  // layer is passed over with a note. problem.num_tokens does not matter.
  PlanChooser(const Gpu& gpu, const Problem& problem, const CallLayout& layout,
              const std::vector<std::string>& paths);

  // A few plans for a call with this many tokens, best first, without those that have a step of
  // which `is_unfit` says that it does not compile or fit. Notes say what was passed over.
  using IsUnfit = std::function<bool(const Step&)>;
  std::vector<PlanChoice> choose(std::int64_t num_tokens, std::vector<std::string>& notes,
                                 const IsUnfit& is_unfit = {}) const;
  // Token counts that plans were chosen for, ascending: any call takes one of their plans, unless
  // that breaks a rule at its size.
  const std::vector<std::int64_t>& keys() const { return keys_; }

 private:
  struct Named {
    std::string name;
    Table table;
  };
  void add(const std::string& name, std::string_view text, bool is_named);
  const std::vector<Plan>& model_plans(std::int64_t key) const;

  Gpu gpu_;
  Problem problem_;
  CallLayout layout_;
  std::optional<Named> table_;
  std::vector<std::string> notes_;  // about tables
  std::vector<std::int64_t> keys_;
  mutable std::mutex mutex_;
  mutable std::map<std::int64_t, std::vector<Plan>> model_plans_;  // by key
};

// Plans that the time model likes best at problem.num_tokens: the best of each GEMM, paired in
// order of their ranks. Many, for a good part of what it likes may not compile without spills.
// Empty where no variant has a legal point.
std::vector<Plan> model_plans(const Gpu& gpu, const Problem& problem, const CallLayout& layout);

}  // namespace moetune
