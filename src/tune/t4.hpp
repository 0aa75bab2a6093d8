// Export to the format that the autotuning community exchanges results in: T4 results, version
// 1.0.0 (https://github.com/odgaard/TuningSchema, the schema that Kernel Tuner ships as
// kernel_tuner/schema/T4/1.0.0/results-schema.json).
#pragma once

#include <nlohmann/json.hpp>

#include "tune/journal.hpp"

namespace moetune {

// One result for each first look. A configuration is the point with its stage, token count and
// variant. The GPU, compiler and layer, for which the format has no place, are under "moe_tune".
nlohmann::ordered_json t4_json(const JournalContents& journal);

}  // namespace moetune
