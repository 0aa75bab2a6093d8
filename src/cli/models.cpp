#include "core/models.hpp"

#include <fmt/format.h>

#include "cli/command.hpp"
#include "report/text_table.hpp"

namespace moetune {
namespace {

nlohmann::ordered_json models_json() {
  auto json = nlohmann::ordered_json::array();
  for (const LayerShape& shape : shipped_models()) {
    json.push_back({{"name", shape.model},
                    {"num_experts", shape.num_experts},
                    {"top_k", shape.top_k},
                    {"hidden_size", shape.hidden_size},
                    {"intermediate_size", shape.intermediate_size}});
  }
  return json;
}

std::string models_text() {
  TextTable table({"<model", "experts", "top_k", "hidden", "intermediate", "bf16 GB a layer"});
  for (const LayerShape& shape : shipped_models()) {
    table.add({shape.model, std::to_string(shape.num_experts), std::to_string(shape.top_k),
               std::to_string(shape.hidden_size), std::to_string(shape.intermediate_size),
               fmt::format("{:.2f}", weight_bytes(shape, Dtype::bf16) * 1e-9)});
  }
  return table.text();
}

}  // namespace

void add_models(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("models", "List the shipped models and their shapes");
  command->footer(
      "Example:\n  moe-tune models --json\n\nOther models: --model PATH with a Hugging Face "
      "config.json, or --shape E,K,H,I.");
  CLI::Option* json = command->add_flag("--json")->description("Print JSON");
  command->callback([&run, json] {
    run = [as_json = json->count() > 0] {
      fmt::print("{}", as_json ? models_json().dump(2) + "\n" : models_text());
      return 0;
    };
  });
}

}  // namespace moetune
