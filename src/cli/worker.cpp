#include <memory>

#include "cli/command.hpp"
#include "tune/child_process.hpp"
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
      return *stdio ? serve_streams(make_device_evaluator)
                    : serve(kChildSocket, make_device_evaluator);
    };
  });
}

}  // namespace moetune
