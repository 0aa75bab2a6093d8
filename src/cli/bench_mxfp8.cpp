// `moe-tune bench --mxfp8`: the quantise kernel on the tensors that a layer would quantise.
#include <fmt/format.h>

#include <vector>

#include "bench/mxfp8.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "report/bench_record.hpp"
#include "report/mxfp8_report.hpp"
#include "report/row_record.hpp"

namespace moetune {

int bench_mxfp8(const BenchOptions& given) {
  const DeviceChoice device = choose_real_device(given, "--mxfp8");
  BenchOptions options = given;
  options.plans.reference = true;  // no GEMM is run, so no table is looked for
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "mxfp8");
    check_record_place(options.out);
  }
  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  const Mxfp8Bench bench(device.gpu, options.cache_dir);
  std::vector<Mxfp8Row> rows;
  for (const BenchLayer& layer : layers) {
    const LayerShape& s = layer.problem.shape;
    for (const std::int64_t num_tokens : options.token_counts) {
      for (Mxfp8Row row :
           {Mxfp8Row{layer.name, num_tokens, "x", num_tokens, s.hidden_size, {}, {}, 0},
            Mxfp8Row{layer.name,
                     num_tokens,
                     "activation",
                     num_tokens * s.top_k,
                     s.intermediate_size,
                     {},
                     {},
                     0}}) {
        bench.measure(row, run.seed);
        rows.push_back(row);
        if (!options.out.empty())
          update_rows(options.out, run, mxfp8_row_json(run, row),
                      {"model", "num_tokens", "tensor"});
      }
    }
  }
  if (options.json) {
    print_json(mxfp8_json(run, rows));
  } else {
    fmt::print("{}", mxfp8_text(run, rows));
  }
  return 0;
}

}  // namespace moetune
