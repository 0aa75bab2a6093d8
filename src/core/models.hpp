// Model shapes: shipped in configs/models, or read from a Hugging Face config.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/problem.hpp"

namespace moetune {

// The shipped models, by name, sorted (embedded in the program at build time).
const std::vector<LayerShape>& shipped_models();
// A shipped name, a path to one of this project's model files, or a path to a Hugging Face
// config.json (MoE fields of mixtral, qwen2/3_moe, deepseek_v2/v3, gpt_oss, llama4, glm4_moe,
// olmoe). Throws Error(input/usage): nearest known name; file and line for malformed JSON; missing
// field.
LayerShape load_model(const std::string& name_or_path);
// I / tp and E / ep; throws Error(usage) that says what does not divide.
LayerShape shard(LayerShape shape, std::int64_t tp, std::int64_t ep);

}  // namespace moetune
