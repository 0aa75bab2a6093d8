#include <memory>

#include "cli/command.hpp"
#include "core/child_process.hpp"
#include "jit/compile_worker.hpp"
#include "tune/evaluator.hpp"
#include "tune/worker_protocol.hpp"

namespace moetune {

void add_worker(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("worker", "Measure for the search at the other end of a socket")
          ->group("");
  const auto stdio = std::make_shared<bool>(false);
  command->add_flag("--stdio", *stdio, "It is at the other end of stdin and stdout");
  command->callback([&run, stdio] {
    run = [stdio] {
      const auto make = [](int ordinal, const Problem& problem, EvaluatorOptions options) {
        options.program = kOwnProgram;
        return make_device_evaluator(ordinal, problem, options);
      };
      return *stdio ? serve_streams(make) : serve(kChildSocket, make);
    };
  });
}

void add_compile_worker(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("compile-worker", "Compile for the process at the other end of a socket")
          ->group("");
  const auto num_threads = std::make_shared<int>(1);
  command->add_option("--threads", *num_threads, "Compilations at a time")
      ->check(CLI::Range(1, 1024));
  command->callback([&run, num_threads] {
    run = [num_threads]() -> int { serve_compilations(kChildSocket, *num_threads); };
  });
}

}  // namespace moetune
