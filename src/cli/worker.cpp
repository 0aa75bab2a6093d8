#include "cli/command.hpp"
#include "tune/child_process.hpp"
#include "tune/evaluator.hpp"
#include "tune/worker_protocol.hpp"

namespace moetune {

void add_worker(CLI::App& app, Run& run) {
  app.add_subcommand("worker", "Measure for a parent process")->group("")->callback([&run] {
    run = [] { return serve(kChildSocket, make_device_evaluator); };
  });
}

}  // namespace moetune
