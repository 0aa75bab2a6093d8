#include "bench/check_plan.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "jit/static_check.hpp"

namespace moetune {
namespace {

// Rules that only spare a search do not matter here.
void check_rules(const Gpu& gpu, const Problem& problem, const Step& step) {
  SearchSpace space = find_variant(step.variant).space(gpu, problem, stage_of(step), Fp8Mode::both);
  std::erase_if(space.constraints, [](const Constraint& rule) { return rule.spares_search; });
  if (const auto rejection = space.reject(step.point)) {
    throw Error(ErrorKind::failed, fmt::format("{} {}: {}: {}", step.op, step.variant,
                                               rejection->rule, rejection->reason));
  }
}

}  // namespace

void check_plan(const Gpu& gpu, const Problem& problem, const Plan& plan, Compiler& compiler) {
  for (const char* const op : {"gemm1", "gemm2"}) {
    const Step* const step = plan.find(op);
    if (step == nullptr) throw Error(ErrorKind::failed, fmt::format("the plan has no {} step", op));
    check_rules(gpu, problem, *step);
    Trial trial;
    if (check_static(gpu, problem, *step, compiler, trial)) continue;
    throw Error(ErrorKind::failed, fmt::format("{}:{}: {}: {}", step->variant, step->point.key(),
                                               to_string(trial.status), trial.reason));
  }
  if (const std::string defect = pair_defect(plan); !defect.empty())
    throw Error(ErrorKind::failed, defect);
}

}  // namespace moetune
