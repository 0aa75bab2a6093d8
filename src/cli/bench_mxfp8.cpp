// `moe-tune bench --mxfp8`: the quantise kernel on the tensors that a layer quantises, the tuned
// products, and the whole layer.
#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bench/mxfp8_layer.hpp"
#include "cli/bench_modes.hpp"
#include "core/error.hpp"
#include "report/bench_record.hpp"
#include "report/mxfp8_report.hpp"
#include "report/row_record.hpp"

namespace moetune {

int bench_mxfp8(const BenchOptions& given) {
  const DeviceChoice device = choose_real_device(given, "--mxfp8");
  BenchOptions options = given;
  options.plans.reference = true;  // points are tuned here, so no table is looked for
  const std::vector<BenchLayer> layers = choose_layers(options, device.gpu);
  const BenchRun run = make_run(options, device.gpu, layers.front().problem);
  if (!options.out.empty()) {
    read_rows(options.out, run, "mxfp8");
    check_record_place(options.out);
  }
  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  Mxfp8Bench bench(device.gpu, options.cache_dir);
  std::vector<Mxfp8Row> rows;
  std::vector<Mxfp8Product> products;
  const auto keep = [&](auto& all, auto row, const char* key) {
    all.push_back(row);
    if (options.out.empty()) return;
    update_rows(options.out, run, mxfp8_row_json(run, row), {"model", "num_tokens", key});
  };
  for (const BenchLayer& layer : layers) {
    const LayerShape& s = layer.problem.shape;
    Mxfp8Layer mxfp8(device.gpu, layer.problem, options.cache_dir, options.num_jobs);
    for (const std::int64_t num_tokens : options.token_counts) {
      for (const auto& [tensor, num_rows, columns] :
           {std::tuple{"x", num_tokens, s.hidden_size},
            std::tuple{"activation", num_tokens * s.top_k, s.intermediate_size}}) {
        Mxfp8Row row{layer.name, num_tokens, tensor, num_rows, columns, {}, {}, 0};
        bench.measure(row, run.seed);
        keep(rows, row, "tensor");
      }
      mxfp8.prepare(num_tokens);
      for (Mxfp8Product product :
           {mxfp8.tune(Stage::gemm1), mxfp8.tune(Stage::gemm2), mxfp8.measure()}) {
        product.model = layer.name;
        keep(products, product, "product");
      }
    }
  }
  if (options.json) {
    print_json(mxfp8_json(run, rows, products));
  } else {
    fmt::print("{}", mxfp8_text(run, rows, products));
  }
  const bool wrong = std::any_of(products.begin(), products.end(),
                                 [](const Mxfp8Product& p) { return p.num_wrong > 0; });
  return wrong ? exit_code(ErrorKind::failed) : 0;
}

}  // namespace moetune
