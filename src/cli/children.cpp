#include "cli/children.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "tune/evaluator_pool.hpp"
#include "tune/worker_evaluator.hpp"

namespace moetune {

void ChildrenOptions::add_to(CLI::App& command, CLI::Option& device) {
  const std::string group = "Many GPUs";
  auto* launcher =
      command
          .add_option("--launcher", launchers,
                      "Starts the processes that measure, instead of --device: a command such as "
                      "'srun -N1 -n1 --gpus=1' that runs what follows it and connects its standard "
                      "streams; may be repeated")
          ->type_name("'CMD ...'")
          ->allow_extra_args(false)
          ->excludes(&device)
          ->group(group);
  command.add_option("--workers", num_workers, "Processes that each --launcher starts")
      ->capture_default_str()
      ->type_name("N")
      ->check(integer_from(1))
      ->needs(launcher)
      ->group(group);
  command
      .add_option("--worker-path", worker_path,
                  "moe-tune's path where the launcher runs it; when left out, as here")
      ->type_name("PATH")
      ->needs(launcher)
      ->group(group);
}

std::unique_ptr<Evaluator> launch_children(const ChildrenOptions& options, const Problem& problem,
                                           const EvaluatorOptions& evaluator_options) {
  if (options.launchers.empty()) return nullptr;
  const std::string program = options.worker_path.empty()
                                  ? std::filesystem::read_symlink("/proc/self/exe").string()
                                  : options.worker_path;
  const auto quarantine = std::make_shared<Quarantine>();
  std::vector<EvaluatorPool::Make> makers;
  for (const std::string& launcher : options.launchers) {
    for (int i = 0; i < options.num_workers; ++i) {
      makers.emplace_back([=] {
        // Device 0: the launcher shows its child the GPU that it is to have.
        return std::make_unique<WorkerEvaluator>(WorkerCommand{program, launcher}, 0, problem,
                                                 evaluator_options, WorkerLimits{}, quarantine);
      });
    }
  }
  auto pool = std::make_unique<EvaluatorPool>(makers);
  spdlog::info("{} of {} launched processes measure, on {}", pool->num_members(), makers.size(),
               pool->gpu().name);
  return pool;
}

std::unique_ptr<Evaluator> make_local_children(const std::vector<DeviceChoice>& devices,
                                               const Problem& problem,
                                               const EvaluatorOptions& evaluator_options) {
  EvaluatorOptions shared = evaluator_options;
  if (shared.num_threads == 0) {
    const auto num_cores = static_cast<int>(std::thread::hardware_concurrency());
    shared.num_threads = std::max(1, num_cores / static_cast<int>(devices.size()));
  }
  const auto quarantine = std::make_shared<Quarantine>();
  std::vector<EvaluatorPool::Make> makers;
  makers.reserve(devices.size());
  for (const DeviceChoice& device : devices) {
    makers.emplace_back([=, ordinal = device.ordinal] {
      return std::make_unique<WorkerEvaluator>(WorkerCommand{}, ordinal, problem, shared,
                                               WorkerLimits{}, quarantine);
    });
  }
  auto pool = std::make_unique<EvaluatorPool>(makers);
  if (devices.size() > 1)
    spdlog::info("{} GPUs measure: {}", pool->num_members(), pool->gpu().name);
  return pool;
}

}  // namespace moetune
