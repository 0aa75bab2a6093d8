#include "tune/evaluator.hpp"

#include "jit/static_check.hpp"

namespace moetune {

void submit(const Gpu& gpu, const Problem& problem, std::span<const Request> requests,
            Compiler& compiler) {
  for (const Request& request : requests)
    for (const Step& step : request.plan.steps)
      compiler.submit(source_of(gpu, problem, step), request.urgency);
}

}  // namespace moetune
