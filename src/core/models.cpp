#include "core/models.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <limits>

#include "core/embedded.hpp"
#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void throw_input(const std::string& message) {
  throw Error(ErrorKind::input, message);
}

// The first of `names` that `json` holds; families call the same size by different names.
std::int64_t read_size(const Json& json, const std::string& path,
                       std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (!json.contains(name) || json.at(name).is_null()) continue;
    const Json& value = json.at(name);
    const bool fits = value.is_number_unsigned() && value.get<std::uint64_t>() >= 1 &&
                      value.get<std::uint64_t>() <= std::numeric_limits<std::int32_t>::max();
    if (!fits) {
      throw_input(fmt::format("{}: '{}' must be an integer from 1 to 2147483647, not {}", path,
                              name, value.is_structured() ? value.type_name() : value.dump()));
    }
    return value.get<std::int64_t>();
  }
  throw_input(
      fmt::format("{}: '{}' is missing; give a model file or the config.json of a "
                  "mixture-of-experts model, or --shape E,K,H,I",
                  path, fmt::join(names, "' or '")));
}

std::string name_of_config(const Json& json, const std::string& path) {
  const std::filesystem::path file = std::filesystem::absolute(path).lexically_normal();
  if (file.filename() != "config.json") return file.stem().string();
  if (const std::string folder = file.parent_path().filename().string(); !folder.empty())
    return folder;
  return json.value("model_type", "custom");
}

LayerShape from_model_file(const Json& json, const std::string& path) {
  if (!json.contains("name") || !json.at("name").is_string() ||
      json.at("name").get<std::string>().empty()) {
    throw_input(fmt::format("{}: 'name' is missing or no text", path));
  }
  LayerShape shape;
  shape.model = json.at("name").get<std::string>();
  shape.num_experts = read_size(json, path, {"num_experts"});
  shape.top_k = read_size(json, path, {"top_k"});
  shape.hidden_size = read_size(json, path, {"hidden_size"});
  shape.intermediate_size = read_size(json, path, {"intermediate_size"});
  return shape;
}

LayerShape from_hugging_face(const Json& json, const std::string& path) {
  // Multimodal configurations (llama4, qwen3_vl_moe) nest the language model's.
  const bool nested = json.contains("text_config") && json.at("text_config").is_object();
  const Json& config = nested ? json.at("text_config") : json;
  LayerShape shape;
  shape.model = name_of_config(json, path);
  shape.num_experts =
      read_size(config, path, {"num_local_experts", "num_experts", "n_routed_experts"});
  shape.top_k = read_size(config, path, {"num_experts_per_tok", "experts_per_token"});
  shape.hidden_size = read_size(config, path, {"hidden_size"});
  // Where both are given, intermediate_size is that of the dense layers.
  shape.intermediate_size = read_size(config, path, {"moe_intermediate_size", "intermediate_size"});
  return shape;
}

LayerShape parse_model(std::string_view text, const std::string& path) {
  const Json json = parse_json(text, path);
  if (!json.is_object())
    throw_input(fmt::format("{}: a model must be a JSON object, not {}", path, json.type_name()));
  bool hugging_face = false;
  for (const char* field : {"model_type", "architectures", "text_config", "num_experts_per_tok"})
    hugging_face = hugging_face || json.contains(field);
  const LayerShape shape =
      hugging_face ? from_hugging_face(json, path) : from_model_file(json, path);
  if (shape.top_k > shape.num_experts) {
    throw_input(fmt::format("{}: top_k {} is more than the {} experts there are", path, shape.top_k,
                            shape.num_experts));
  }
  return shape;
}

[[noreturn]] void throw_unknown(const std::string& name) {
  std::vector<std::string> names;
  for (const LayerShape& shape : shipped_models()) names.push_back(shape.model);
  const std::string near = nearest(name, names);
  throw Error(ErrorKind::usage,
              fmt::format("unknown model '{}'{}; it is neither a file nor one of those that "
                          "`moe-tune models` lists",
                          name, near.empty() ? "" : fmt::format(", did you mean {}?", near)));
}

}  // namespace

const std::vector<LayerShape>& shipped_models() {
  static const std::vector<LayerShape> models = [] {
    std::vector<LayerShape> result;
    for (const EmbeddedFile& file : embedded_configs()) {
      if (file.name.starts_with("models/"))
        result.push_back(parse_model(file.text, std::string(file.name)));
    }
    std::sort(result.begin(), result.end(),
              [](const LayerShape& a, const LayerShape& b) { return a.model < b.model; });
    return result;
  }();
  return models;
}

LayerShape load_model(const std::string& name_or_path) {
  for (const LayerShape& shape : shipped_models())
    if (shape.model == name_or_path) return shape;
  std::error_code ignored;
  std::string path = name_or_path;
  if (std::filesystem::is_directory(path, ignored)) path += "/config.json";
  const bool is_path = path.ends_with(".json") || name_or_path.find('/') != std::string::npos ||
                       std::filesystem::exists(path, ignored);
  if (!is_path) throw_unknown(name_or_path);
  return parse_model(read_file(path), path);
}

LayerShape shard(LayerShape shape, std::int64_t tp, std::int64_t ep) {
  const auto fail = [](const std::string& message) -> LayerShape {
    throw Error(ErrorKind::usage, message);
  };
  if (tp < 1) return fail(fmt::format("--tp is {}, it must be at least 1", tp));
  if (ep < 1) return fail(fmt::format("--ep is {}, it must be at least 1", ep));
  if (shape.intermediate_size % tp != 0) {
    return fail(fmt::format("--tp {} does not divide intermediate_size {} of {}", tp,
                            shape.intermediate_size, shape.model));
  }
  if (shape.num_experts % ep != 0) {
    return fail(fmt::format("--ep {} does not divide the {} experts of {}", ep, shape.num_experts,
                            shape.model));
  }
  if (shape.num_experts / ep < shape.top_k) {
    return fail(
        fmt::format("--ep {} leaves {} experts a GPU, fewer than top_k {} of {}; use a "
                    "smaller --ep",
                    ep, shape.num_experts / ep, shape.top_k, shape.model));
  }
  shape.intermediate_size /= tp;
  shape.num_experts /= ep;
  return shape;
}

}  // namespace moetune
