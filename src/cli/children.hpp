// The processes that measure for a search: one for each GPU, here or wherever a launcher starts
// them.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/problem_options.hpp"
#include "core/problem.hpp"
#include "tune/evaluator.hpp"

namespace moetune {

struct ChildrenOptions {
  std::vector<std::string> launchers;  // --launcher, a shell's words each
  int num_workers = 1;                 // --workers: of each launcher
  std::string worker_path;             // --worker-path; empty: this program's own

  void add_to(CLI::App& command, CLI::Option& device);
};

// Null without launchers. The children's GPUs are all of one kind, else Error(device).
std::unique_ptr<Evaluator> launch_children(const ChildrenOptions& options, const Problem& problem,
                                           const EvaluatorOptions& evaluator_options);
// One child for each of these GPUs of one kind.
std::unique_ptr<Evaluator> make_local_children(const std::vector<DeviceChoice>& devices,
                                               const Problem& problem,
                                               const EvaluatorOptions& evaluator_options);

}  // namespace moetune
