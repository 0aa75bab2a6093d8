#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/variant.hpp"
#include "table/validate.hpp"
#include "tune/evaluator.hpp"

namespace moetune {
namespace {

bool has_failing(const EntryReport& report, Check check) {
  return std::any_of(report.findings.begin(), report.findings.end(),
                     [&](const Finding& f) { return f.fails && f.check == check; });
}

// Slower beyond noise: the medians lie outside each other's 10th to 90th percentiles.
bool clearly_slower(const Timing& time, const Timing& than) {
  return time.median_us > than.p90_us && time.p10_us > than.median_us;
}

std::vector<Finding> regressions(const EntryReport& report, const Plan& reference,
                                 double max_regression_pct) {
  std::vector<Finding> findings;
  const Timing& now = report.trial->timing;
  const double recorded_us = report.entry.timing.median_us;
  const double slower_pct = (now.median_us / recorded_us - 1) * 100;
  if (report.entry.source == Source::measured && !(slower_pct <= max_regression_pct)) {
    findings.push_back(
        {Check::speed, fmt::format("{:.2f} us is {:.1f} % slower than the {:.2f} us recorded; {} % "
                                   "is allowed",
                                   now.median_us, slower_pct, recorded_us, max_regression_pct)});
  }
  const std::optional<Trial>& base = report.reference_trial;
  if (base && base->status == TrialStatus::ok && report.entry.plan != reference &&
      clearly_slower(now, base->timing)) {
    findings.push_back({Check::speed, fmt::format("{:.2f} us is slower than the reference point's "
                                                  "{:.2f} us",
                                                  now.median_us, base->timing.median_us)});
  }
  return findings;
}

void check_entry(EntryReport& report, Evaluator& evaluator, const Request& request,
                 const Request& reference, double max_regression_pct) {
  report.trial = evaluator.evaluate(request);
  if (report.trial->status != TrialStatus::ok) {
    report.findings.push_back(
        {report.trial->status == TrialStatus::rejected ? Check::legality : Check::correctness,
         fmt::format("{}: {}", to_string(report.trial->status), report.trial->reason)});
    return;
  }
  if (report.trial->source != Source::measured) {
    report.findings.push_back({Check::speed, fmt::format("the time is {}, not measured",
                                                         to_string(report.trial->source))});
    return;
  }
  report.reference_trial = evaluator.evaluate(reference);
  if (report.reference_trial->status != TrialStatus::ok) {
    report.findings.push_back(
        {Check::speed,
         fmt::format("not compared with the reference point, {}: {}",
                     to_string(report.reference_trial->status), report.reference_trial->reason),
         false});
  }
  std::vector<Finding> slow = regressions(report, reference.plan, max_regression_pct);
  if (!slow.empty()) {
    // One slow look may be a neighbour's doing.
    const Trial again = evaluator.evaluate(request);
    if (again.status == TrialStatus::ok) {
      if (again.timing.median_us < report.trial->timing.median_us) report.trial = again;
      slow = regressions(report, reference.plan, max_regression_pct);
    } else {
      slow = {{Check::correctness,
               fmt::format("right once, then {}: {}", to_string(again.status), again.reason)}};
    }
  }
  report.findings.insert(report.findings.end(), slow.begin(), slow.end());
}

}  // namespace

void check_on_device(TableReport& report, const Table& table, Evaluator& evaluator,
                     double max_regression_pct,
                     const std::function<void(const EntryReport&)>& on_entry) {
  struct Work {
    EntryReport* report;
    Request entry, reference;
  };
  std::vector<Work> work;
  std::vector<Request> requests;
  Problem problem = largest_problem(table);
  for (EntryReport& entry : report.entries) {
    if (has_failing(entry, Check::legality)) continue;
    problem.num_tokens = entry.num_tokens;
    const Request request{Stage::layer, entry.num_tokens, entry.entry.plan, 0, true};
    const Request reference{Stage::layer, entry.num_tokens,
                            reference_plan(evaluator.gpu(), problem), 0, true};
    work.push_back({&entry, request, reference});
    requests.insert(requests.end(), {request, reference});
  }
  try {
    evaluator.prefetch(requests);
    for (const Work& item : work) {
      if (on_entry) on_entry(*item.report);
      check_entry(*item.report, evaluator, item.entry, item.reference, max_regression_pct);
    }
    report.checked_on_device = true;
  } catch (const Error& error) {
    report.error = error;
  }
}

}  // namespace moetune
